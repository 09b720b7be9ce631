"""The same network run as MONAI Label's own interactive tasks are: read, encode, decode and write at every click."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundles" / "imis_net"))

import numpy as np
import torch
from monai.transforms import EnsureChannelFirstd, LoadImaged
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask

from imis_net.images import Volume
from imis_net.prompts import Prompt
from imis_net.segmenter import load_segmenter


class EncodeAtEveryClick(BasicInferTask):
    """``BasicInferTask`` with its own reading and writing; the network is this project's."""

    def __init__(self) -> None:
        super().__init__(
            path=None, network=None, type=InferType.DEEPGROW, labels=["target"], dimension=3, description="stock policy"
        )
        self.segmenter = load_segmenter()
        self.num_encoder_runs = 0

    def is_valid(self) -> bool:
        return True

    def pre_transforms(self, data: Any = None) -> Sequence[Callable]:
        return [LoadImaged(keys="image"), EnsureChannelFirstd(keys="image")]

    def post_transforms(self, data: Any = None) -> Sequence[Callable]:
        return []

    def run_inferer(self, data: Any, convert_to_batch: bool = True, device: str = "cpu") -> Any:
        voxels = np.asarray(data["image"][0])
        index = data["foreground"][-1][2]
        image = Volume(voxels.astype(np.int16), np.eye(4)).slice_rgb(index, 2, (40.0, 400.0))
        embedding = self.segmenter.encode_image(image)
        self.num_encoder_runs += 1
        prompt = Prompt(
            point_coords=[(i, j) for i, j, k in data["foreground"] if k == index],
            point_labels=[1 for *_, k in data["foreground"] if k == index],
        )
        mask = torch.zeros(voxels.shape, dtype=torch.uint8)
        mask[:, :, index] = torch.from_numpy(self.segmenter.predict(embedding, prompt).mask.T.astype(np.uint8))
        data["pred"] = type(data["image"])(mask, meta=data["image"].meta)
        return data

    def __call__(self, request: Any) -> Any:
        file, params = super().__call__(request)
        return file, {**params, "encoder_runs": self.num_encoder_runs}


class StockPolicyApp(MONAILabelApp):
    def __init__(self, app_dir: str, studies: str, conf: Any) -> None:
        super().__init__(app_dir, studies, conf, name="stock policy")

    def init_infers(self) -> dict[str, InferTask]:
        return {"stock": EncodeAtEveryClick()}
