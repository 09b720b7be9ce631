"""One retraining from labels to a verdict, on files whose content is the model: a number that is its Dice."""

import dataclasses
import errno

import numpy as np
import pytest
from filelock import FileLock

from imis_net.checkpoint import sha256
from imis_net.errors import CheckpointError, DatasetError
from imis_net.evaluation.harness import Score
from imis_net.retraining.cycle import Labels, RetrainingCycle, adopt
from imis_net.retraining.registry import ModelRegistry
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuned


def record(patient: str, number: int = 0) -> Record:
    rng = np.random.default_rng([number, *patient.encode()])
    label = np.zeros((40, 40), np.uint16)
    label[10:30, 8 + number % 5 : 28] = 1
    image = np.where(label[..., None] > 0, 200, 20) + rng.integers(0, 20, (40, 40, 3))
    return Record(f"{patient}_{number}", patient, "labels", "CT", image.astype(np.uint8), ((label, {1: "liver"}),))


def empty(patient: str) -> Record:
    return dataclasses.replace(record(patient), targets=((np.zeros((40, 40), np.uint16), {}),))


LABELS = Labels([record(p, n) for p in "abc" for n in range(2)], [record(p, n) for p in "xyz" for n in range(3)])


class Fake:
    """Stands in for the network, which has tests of its own: learns to a Dice that the test chooses."""

    def __init__(self, dice: float, ended_by: str = "steps") -> None:
        self.dice, self.ended_by, self.learnt = dice, ended_by, ()

    def train(self, start, training, validation, candidate):
        self.learnt = training
        candidate.write_text(str(self.dice))
        return FineTuned(float(start.read_text()), self.dice, 10, 1.0, self.ended_by)

    def answers(self, weights, records):
        value = float(weights.read_text())
        facts = {"iou": 0.0, "nsd": 0.0, "iou_prediction": 0.0, "milliseconds": 1.0, "num_pixels": 9, "target": 0}
        return [
            Score(r.case, r.source, r.modality, "liver", strategy=s, round=0, dice=value, **facts)
            for r in records
            for s in ("click", "box", "text")
        ]


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.safetensors"
    path.write_text("0.7")
    return path


def cycle(tmp_path, fake: Fake) -> RetrainingCycle:
    return RetrainingCycle(tmp_path / "retraining", fake.train, fake.answers)


def test_a_better_candidate_is_published_and_the_base_is_the_way_back(tmp_path, base):
    """Breaks if a better model is not served, or there is no version to roll back to after the first retraining."""
    run = cycle(tmp_path, Fake(0.8))
    outcome = run.run(base, LABELS)
    assert outcome.state == "published"
    assert run.registry.current().digest == outcome.candidate
    assert run.registry.rollback().digest == sha256(base) == outcome.production
    assert outcome.num_slices == {"training": 4, "validation": 2, "reference": 9}


@pytest.mark.parametrize("dice", [0.6, 0.65])
def test_a_worse_candidate_is_kept_with_its_reason(tmp_path, base, dice):
    """Breaks if a candidate that fell on the judges is served, although its validation rose."""
    fake = Fake(dice)
    train = lambda *args: dataclasses.replace(fake.train(*args), best_dice=0.9)  # noqa: E731
    run = RetrainingCycle(tmp_path / "retraining", train, fake.answers)
    outcome = run.run(base, LABELS)
    assert (outcome.state, run.registry.current().digest) == ("kept", sha256(base))
    assert outcome.candidate in run.registry.versions()
    assert "may be worse" in run.registry.facts(outcome.candidate)["reason"]


def test_no_gain_no_reference_and_stop_leave_production(tmp_path, base):
    """Breaks if nothing learnt, nobody to judge, or a stop publishes something."""
    for fake, labels, word in (
        (Fake(0.7), LABELS, "did not improve"),
        (Fake(0.9), Labels(LABELS.learning), "no reference label"),
        (Fake(0.9, "stop"), LABELS, "stopped"),
    ):
        run = cycle(tmp_path / word, fake)
        outcome = run.run(base, labels)
        assert outcome.state != "published"
        assert word in outcome.reason
        assert run.registry.current().digest == sha256(base)
        assert not (run.root / "candidate.safetensors").exists()


def test_bad_labels_are_set_aside_and_training_goes_on(tmp_path, base):
    """Breaks if an empty or a doubled label is learnt from, or stops the others."""
    double = dataclasses.replace(LABELS.learning[0], case="again")
    fake = Fake(0.8)
    outcome = cycle(tmp_path, fake).run(base, Labels([*LABELS.learning, empty("e"), double], LABELS.reference))
    assert {f.case: f.rule for f in outcome.findings} == {"e_0": "empty", "again": "duplicate"}
    assert outcome.state == "published"
    assert {r.case for r in fake.learnt} == {"a_0", "a_1", "c_0", "c_1"}


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ([], "no label to learn from"),
        ([empty("a"), empty("b")], "no label to learn from.*2 were quarantined"),
        ([record("a", n) for n in range(5)], "one patient only: expected at least two"),
    ],
)
def test_too_few_labels_are_said_in_one_sentence(tmp_path, base, learning, message):
    """Breaks if an operator cannot tell from the status what to do."""
    with pytest.raises(DatasetError, match=message):
        cycle(tmp_path, Fake(0.9)).run(base, Labels(learning, LABELS.reference))


def test_a_full_disk_and_a_lost_base_change_nothing(tmp_path, base):
    """Breaks if either leaves a half-written version or takes production away."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RetrainingCycle(tmp_path / "retraining", full, Fake(0).answers)
    with pytest.raises(OSError, match="No space"):
        run.run(base, LABELS)
    assert run.registry.versions() == [sha256(base)]
    base.unlink()
    assert cycle(tmp_path, Fake(0.8)).run(base, LABELS).state == "published"  # the registry has its own copy
    with pytest.raises(CheckpointError, match="is gone"):
        cycle(tmp_path / "new", Fake(0.8)).run(base, LABELS)


def test_two_never_overlap(tmp_path, base):
    """Breaks if a second server on the same studies trains at the same time."""
    run = cycle(tmp_path, Fake(0.8))
    with FileLock(run.root / "run.lock"), pytest.raises(DatasetError, match="another retraining runs"):
        run.run(base, LABELS)
    assert run.registry.current() is None


def test_weights_that_the_operator_exchanged_are_served(tmp_path, base):
    """Breaks if an old retrained version hides the new weights that an operator installed."""
    run = cycle(tmp_path, Fake(0.8))
    tuned = run.run(base, LABELS).candidate
    assert adopt(run.registry, base) == tuned
    base.write_text("0.95")
    assert adopt(run.registry, base) == sha256(base) == ModelRegistry(run.registry.root).current().digest
    assert run.registry.rollback().digest == tuned
    assert adopt(run.registry, run.registry.weights(tuned)) == tuned  # given by its file: no version of its own
    assert run.registry.current().previous == (run.registry.facts(tuned)["base"],)
