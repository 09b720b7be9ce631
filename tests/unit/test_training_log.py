"""What a training tells."""

import json

from imis_net.training.checkpointing import Place
from imis_net.training.training_log import TrainingLog


def test_lines_after_the_checkpoint_are_cut_off(tmp_path):
    """Breaks if a step that a killed training repeats stands in the files twice, or half a line survives."""
    log = TrainingLog(tmp_path, Place("a recipe"), tensorboard=False, mlflow=False)
    for step in (1, 2, 3):
        log.step(0, step, step, 0.5, [0.1, 0.2], 1e-3)
        log.validation(0, step, step, {"box": 0.7})
    log.close(finished=False)
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("0,")
    TrainingLog(tmp_path, Place("a recipe", step=2), tensorboard=False, mlflow=False).close(finished=False)
    assert (tmp_path / "steps.csv").read_text() == "0,1,0.5,0.10000,0.20000\n0,2,0.5,0.10000,0.20000\n"
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == [1, 2]


def test_stages_may_have_another_number_of_rounds(tmp_path):
    """Breaks if what is shown of a stage's first steps is averaged with the stage before."""
    log = TrainingLog(tmp_path, Place("a recipe"), tensorboard=False, mlflow=False)
    for stage, dices in enumerate(([0.1], [0.2, 0.3])):
        log.begin_stage(stage, 1, 0)
        log.step(stage, 1, stage + 1, 0.5, dices, 1e-3)
        log.end_stage()
    log.close(finished=True)
    assert (tmp_path / "steps.csv").read_text() == "0,1,0.5,0.10000\n1,1,0.5,0.20000,0.30000\n"
