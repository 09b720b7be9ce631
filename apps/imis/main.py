"""IMIS-Net as a MONAI Label app: ``monailabel start_server --app apps/imis --studies FOLDER``."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

# The library lives in the bundle, which need not be installed. MONAI Label loads this file by path.
_BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "imis_net"
if _BUNDLE.is_dir() and str(_BUNDLE) not in sys.path:
    sys.path.insert(0, str(_BUNDLE))

import torch  # noqa: E402
from fastapi import HTTPException  # noqa: E402
from monailabel.config import settings  # noqa: E402
from monailabel.datastore.dicom import DICOMWebDatastore  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from monailabel.interfaces.tasks.scoring import ScoringMethod  # noqa: E402
from monailabel.interfaces.tasks.strategy import Strategy  # noqa: E402
from monailabel.interfaces.tasks.train import TrainTask  # noqa: E402
from monailabel.utils.async_tasks.task import AsyncTask  # noqa: E402

from imis_net import __version__  # noqa: E402
from imis_net.categories import load_categories  # noqa: E402
from imis_net.embedding_disk import EmbeddingDisk  # noqa: E402
from imis_net.errors import ImageError, PromptError  # noqa: E402
from imis_net.retraining.schedule import RetrainingSchedule  # noqa: E402

# All of lib now: MONAI Label takes this folder off sys.path again once this file is loaded.
from lib import front, request_log, routes  # noqa: E402
from lib.config import read_config, state_dir  # noqa: E402
from lib.dicomweb_datastore import VersionedDicomWebDatastore  # noqa: E402
from lib.gate import check_binding, credentials_of  # noqa: E402
from lib.infer import Engine, InteractiveTask, TextTask  # noqa: E402
from lib.label_store import LabelStore  # noqa: E402
from lib.names import checked_name  # noqa: E402
from lib.pool import WorkerPool  # noqa: E402
from lib.prompt_log import PromptLog  # noqa: E402
from lib.propagate import PropagateTask  # noqa: E402
from lib.publication import Publication, served_weights  # noqa: E402
from lib.retraining import RetrainTask, give_way, new_labels, retraining_dir  # noqa: E402
from lib.score_store import ScoreStore  # noqa: E402
from lib.segmenters import build_segmenter  # noqa: E402
from lib.strategies import ScoreImages, Scorer, strategies  # noqa: E402
from lib.targets import Targets  # noqa: E402
from lib.telemetry import Telemetry  # noqa: E402
from lib.versioned_datastore import VersionedLocalDatastore  # noqa: E402

IMAGE_EXTENSIONS = ("nii.gz", "nii", "nrrd", "mha", "dcm", "png", "jpg", "jpeg", "tif", "tiff", "bmp")


class ImisApp(MONAILabelApp):
    """Two models on one network. A direct subclass: MONAI Label looks for the literal name of the base."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.config = read_config(conf or {})
        check_binding(self.config, sys.argv)
        self.credentials = credentials_of(self.config)
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.retraining_root = retraining_dir(self.config, studies)
        self.task = sys.argv[2] if sys.argv[1:2] == ["-m"] else ""  # how MONAI Label starts one in a process of its own
        _set_host_defaults()
        if self.task in ("train", "scoring"):  # they would write back the list of labels that they began with
            _set_host("MONAI_LABEL_DATASTORE_READ_ONLY", True)
            give_way(self.config)
        super().__init__(
            app_dir,
            studies,
            dict(conf or {}),
            name="IMIS-Net",
            description="Interactive medical image segmentation: click, box or name a target",
            version=__version__,
        )

    def init_datastore(self) -> Datastore:
        self.label_store = LabelStore(state_dir(self.config, self.studies.rstrip("/")) / "labels")
        if self.studies.startswith(("http://", "https://")):
            store = super().init_datastore()
            is_dicomweb = isinstance(store, DICOMWebDatastore)
            return VersionedDicomWebDatastore.adopt(store, self.label_store) if is_dicomweb else store
        return VersionedLocalDatastore(
            self.label_store,
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        if self.task == "train":  # it asks no model that serves
            return {}
        config = self.config
        state = state_dir(config, self.studies)
        segmenter = build_segmenter(config, served_weights(config, self.retraining_root), state / "graphs")
        self.telemetry = Telemetry()
        # Triton keeps its own; and two processes in one folder would remove each other's files.
        keeps = config.disk_cache_bytes and config.segmenter != "triton" and not self.task
        disk = EmbeddingDisk(state / "embeddings", config.disk_cache_bytes) if keeps else None
        self.engine = Engine(segmenter, config.cache_bytes, self.telemetry, disk, config.prefetch, config.previous_mask)
        labels = config.labels or segmenter.known_texts or tuple(category.name for category in load_categories())
        return {
            "imis": InteractiveTask(self.engine, labels),
            "imis_text": TextTask(self.engine, labels, config.min_iou),
            "imis_propagate": PropagateTask(self.engine, labels),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        return {"imis": RetrainTask(self.config, self.studies)}

    def init_strategies(self) -> dict[str, Strategy]:
        if self.task == "train":
            return {}
        scores = ScoreStore(state_dir(self.config, self.studies) / "scores.sqlite")
        self.scorer = Scorer(self.engine, self.datastore, scores)
        return strategies(self.scorer)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {} if self.task == "train" else {"uncertainty": ScoreImages(self.scorer)}

    def on_init_complete(self) -> None:
        """Only the server gets here; the processes of background tasks do not."""
        super().on_init_complete()
        from monailabel.app import app as server  # it imports every endpoint, which only a server has loaded

        self.pool = WorkerPool(self.config.workers, self.config.max_queued, self.telemetry.queued)
        log = PromptLog(state_dir(self.config, self.studies) / "prompts.sqlite")
        self.targets = Targets(self.engine, log, tuple(self._infers["imis"].labels))
        self.telemetry.watch(self.engine, self.pool)
        request_log.log_to_stderr()
        self._init_retraining()
        routes.install(server, lambda: self)
        front.install(server, self)
        if isinstance(self.datastore(), VersionedDicomWebDatastore):
            self.datastore().resume()
            self.telemetry.watch_uploads(lambda: len(self.label_store.waiting()))
        threading.Thread(target=self.engine.warm_up, name="warm-up", daemon=True).start()

    def _init_retraining(self) -> None:
        """Follow what is published, and retrain when it is due, with no one logged in."""
        config, root = self.config, self.retraining_root
        self.publication = Publication(config, root, self.engine)
        self.publication.watch()
        self.schedule = RetrainingSchedule(
            root,
            config.retrain,
            config.retrain_after,
            lambda: new_labels(root, self.datastore()),
            lambda: AsyncTask.run("train", request={"model": "imis"})[0] is not None,
        )
        self.schedule.start()

    def infer(self, request: Mapping[str, object], datastore: Datastore | None = None) -> dict[str, object]:
        """Run a model on an image of the datastore, or on a file that this server itself received (a ``Path``).

        Raises:
            HTTPException: 404 for a model or image that is not there, 422 for a prompt or image that cannot be used.
        """
        model = request.get("model")
        task = self._infers.get(model)
        if task is None:
            raise HTTPException(404, f"unknown model: got {model!r}, expected one of {', '.join(self._infers)}")
        datastore = datastore or self.datastore()
        image = request.get("image")
        path = image if isinstance(image, Path) else self.path_of(image, datastore)
        try:
            file, params = task({**request, "image": str(path), "is_upload": isinstance(image, Path)})
        except (PromptError, ImageError) as error:
            raise HTTPException(422, str(error)) from error
        given = request.get("label_tag") or DefaultLabelTag.ORIGINAL
        tag = str(given.value if isinstance(given, DefaultLabelTag) else given)
        label = file
        if request.get("save_label") and not isinstance(image, Path):
            label = datastore.save_label(
                image, file, checked_name("label_tag", tag), {"model": model, "params": params}
            )
        return {"label": label, "tag": tag, "file": file, "params": params}

    def path_of(self, image: object, datastore: Datastore | None = None) -> Path:
        """The file, or the folder, of an image id.

        Raises:
            HTTPException: 422 for what is no id, 404 for one that is not there.
        """
        if not isinstance(image, str) or not image:
            raise HTTPException(422, f"image: expected an image id, got {image!r}")
        path = (datastore or self.datastore()).get_image_uri(checked_name("image", image))
        if not path or not os.path.exists(path):
            raise HTTPException(404, f"unknown image: got {image!r}, expected an id from /datastore/?output=all")
        return Path(path)


def _set_host_defaults() -> None:
    """Where MONAI Label's own defaults do not work or say too much, in this process and in the tasks it starts."""
    if not settings.MONAI_LABEL_TRACKING_URI:  # MLflow refuses the default, a folder, and training would fail
        _set_host("MONAI_LABEL_TRACKING_ENABLED", False)
    _set_host("MONAI_LABEL_AUTO_UPDATE_SCORING", False)  # a process per save: the server scores by itself while idle
    if type(settings).model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default == settings.MONAI_LABEL_DATASTORE_FILE_EXT:
        _set_host("MONAI_LABEL_DATASTORE_FILE_EXT", [f"*.{extension}" for extension in IMAGE_EXTENSIONS])
    # The second is MONAI Label's command, for the server and for each task.
    for name in ("monailabel", "__main__", "dicomweb_client", "highdicom"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they log file names and UIDs, which may name a patient
    # Of folders made one inside the other at a first start it says that it watches one of them twice, with the path.
    logging.getLogger("watchdog").setLevel(logging.ERROR)


def _set_host(key: str, value: object) -> None:
    setattr(settings, key, value)
    os.environ[key] = json.dumps(value)
