"""The network's graphs on ONNX Runtime, in this process: the same masks as torch's, sooner on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from imis_net import export
from imis_net.errors import ExportError
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.segmenter import TorchSegmenter
from imis_net.serving.tensors import FEATURES, LOW_RES_MASKS, POINT_COORDS, POINT_LABELS, PREDICTIONS, TEXT


class OnnxNetwork:
    """What ``TorchSegmenter`` asks of an ``IMISNet``; names are embedded by torch, once each and of little cost."""

    def __init__(self, network: IMISNet, folder: Path, threads: int = 0) -> None:
        """
        Args:
            folder: what ``export.export`` wrote of this network.
            threads: of one operation; 0 is ONNX Runtime's choice.

        Raises:
            ExportError: a graph is missing or cannot be loaded.
        """
        self.name, self.image_size, self.known_texts = network.name, network.image_size, network.known_texts
        self.pixel_mean, self.pixel_std = network.pixel_mean, network.pixel_std
        self.encode_text = network.encode_text
        self._labelled_points = network.prompt_encoder.labelled_points
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graphs = [path for path in sorted(folder.glob("*.onnx")) if path.stem != export.TEXT_ENCODER]
        self._sessions = {path.stem: _session(path, options) for path in graphs}
        has_text = (False, True) if network.known_texts != () else (False,)
        decoders = {export.decoder_name(text, mask) for text in has_text for mask in (False, True)}
        missing = {export.TRUNK, export.NECK, *decoders} - self._sessions.keys()
        if missing:
            raise ExportError(f"{folder.name}: expected the graphs of a network, {', '.join(sorted(missing))} missing")

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self._run(export.TRUNK, [images])
        return tuple(torch.from_numpy(feature) for feature in self._run(export.NECK, maps))

    def predict_masks(
        self,
        features: tuple[Tensor, ...],
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Tensor | None = None,
        low_res_masks: Tensor | None = None,
    ) -> MaskPrediction:
        """As ``IMISNet.predict_masks``."""
        given = next((p for p in (point_coords, boxes, low_res_masks, text) if p is not None), None)
        coords, labels = self._labelled_points(
            point_coords, point_labels, boxes, 1 if given is None else given.shape[0]
        )
        inputs = {**dict(zip(FEATURES, features, strict=False)), POINT_COORDS: coords, POINT_LABELS: labels}
        if text is not None:
            inputs[TEXT] = text
        if low_res_masks is not None:
            inputs[LOW_RES_MASKS] = low_res_masks
        session = self._sessions[export.decoder_name(text is not None, low_res_masks is not None)]
        answers = session.run(list(PREDICTIONS), {name: _array(value) for name, value in inputs.items()})
        masks, ious, semantic = map(torch.from_numpy, answers)
        return MaskPrediction(masks, ious, semantic, tokens=masks[:0], src=masks[:0])

    def _run(self, graph: str, values: Sequence[Tensor | np.ndarray]) -> list[np.ndarray]:
        session = self._sessions[graph]
        names = [i.name for i in session.get_inputs()]
        return session.run(None, {n: _array(v) for n, v in zip(names, values, strict=True)})


class OnnxSegmenter(TorchSegmenter):
    """The segmenter contract on ``OnnxNetwork``. Embeddings are interchangeable with torch's of the same weights."""

    def __init__(self, local: TorchSegmenter, folder: Path, threads: int = 0) -> None:
        """Graphs that are not in ``folder`` are exported, and kept only where they agree with torch.

        Raises:
            ExportError: they do not.
        """
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            export.export(local.network, folder)
        self.network = OnnxNetwork(local.network, folder, threads)  # type: ignore[assignment]
        self.device = torch.device("cpu")
        self.resize_mode, self.may_answer_nothing = local.resize_mode, local.may_answer_nothing
        self.encoder_digest, self.weights_digest = local.encoder_digest, local.weights_digest


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ExportError(f"{path.name}: cannot be loaded ({type(error).__name__})") from error


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.contiguous().numpy() if isinstance(value, Tensor) else value
