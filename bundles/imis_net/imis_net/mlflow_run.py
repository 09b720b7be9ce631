"""One run in an MLflow store that is a file of its own: ``mlflow.db``, with ``mlflow_artifacts/`` beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path


class MlflowRun:
    """Of a training or a retraining; nothing leaves this computer.

    Attributes:
        run_id: with which a later process goes on in the same run.
    """

    def __init__(self, folder: Path, experiment: str, run_id: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # patients' data stays here, and so does the habit
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.run_id: str = run_id or self._new_run(folder, experiment)

    def _new_run(self, folder: Path, experiment: str) -> str:
        known = self._client.get_experiment_by_name(experiment)
        location = (folder / "mlflow_artifacts").resolve().as_uri()
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, location)
        return str(self._client.create_run(experiment_id).info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.run_id, [self._metric(k, v, now, step) for k, v in values.items()])

    def describe(self, facts: Mapping[str, str]) -> None:
        """Tags: what was begun, and how it ended."""
        for name, value in facts.items():
            self._client.set_tag(self.run_id, name, value)

    def keep(self, file: Path) -> None:
        """A copy of a small file with the run."""
        self._client.log_artifact(self.run_id, str(file))

    def add_model(self, name: str, weights: Path, facts: Mapping[str, str]) -> None:
        """A version of the model ``name`` that lies where ``weights`` is: it is named, not copied."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.create_model_version(name, weights.resolve().as_uri(), self.run_id, tags=dict(facts))

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")
