"""A retraining in a real MLflow store on disk."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from imis_net.retraining.cycle import Outcome
from imis_net.retraining.gate import GroupVerdict, Verdict
from imis_net.retraining.registry import ModelRegistry
from imis_net.retraining.run_tracking import EXPERIMENT, track
from imis_net.training.finetune import Progress

GROUPS = (GroupVerdict("all", 30, 0.7, 0.8, 0.05, 0.15), GroupVerdict("label:left (kidney)", 9, 0.6, 0.7, 0.0, 0.2))
CURVE = [Progress(step, step / 4, 1.0, 0.5, (0.5,), best) for step, best in enumerate((0.7, 0.7, 0.75, 0.8))]


def tracked(root: Path, number: int, state: str = "published") -> str:
    """A run with a candidate of its own; the candidate's digest."""
    draft = root / "draft.safetensors"
    draft.write_text(f"weights {number}")
    candidate = ModelRegistry(root / "registry").add(draft, {})
    report = root / "report.html"
    report.write_text("a page")
    outcome = Outcome(state, "it is better", "p" * 64, candidate, Verdict(True, "it is better", GROUPS))
    track(root, "imis_net_compact", outcome, CURVE, report)
    return candidate


def runs(root: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], order_by=["start_time"])


def test_a_retraining_is_a_run_with_its_curve_verdict_report_and_model(tmp_path: Path) -> None:
    """Breaks if MLflow shows no runs or models, names no weights, or a second run fails on what the first made."""
    candidates = [tracked(tmp_path, n) for n in range(2)]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run, candidate in zip(runs(tmp_path), candidates, strict=True):
        assert run.info.status == "FINISHED"
        assert run.data.tags["state"] == "published"
        assert run.data.tags["candidate"] == candidate
        assert run.data.metrics["gate/all/candidate"] == pytest.approx(0.8)
        assert run.data.metrics["gate/label/left _kidney_/difference_high"] == pytest.approx(0.2)
        curve = client.get_metric_history(run.info.run_id, "validation/best_dice")
        assert [(m.step, m.value) for m in curve] == [(0, 0.7), (2, 0.75), (3, 0.8)]
        assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["report.html"]
    versions = sorted(client.search_model_versions("name='imis_net_compact'"), key=lambda v: int(v.version))
    assert [v.tags["digest"] for v in versions] == candidates
    assert all(Path(v.source.removeprefix("file://")).read_text().startswith("weights") for v in versions)


def test_a_run_that_could_not_be_written_whole_is_closed_as_failed(tmp_path: Path) -> None:
    """Breaks if MLflow shows a retraining as running for ever because its report was gone."""
    track(tmp_path, "imis_net_compact", Outcome("kept", "worse", "p" * 64), [], tmp_path / "no_report.html")
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "worse"


def test_a_store_that_fails_changes_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Breaks if a retraining that was published ends as failed because its books cannot be kept."""
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    tracked(tmp_path, 0)
    assert "not in MLflow" in caplog.text
