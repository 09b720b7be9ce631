"""A frozen trunk's features on disk: what one retraining encoded, the next one does not encode again."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.prompts import ImageEmbedding
from imis_net.training.trunk_features import TrunkCache, TrunkFeatures, image_key


class TrunkStore(TrunkCache):
    """``TrunkCache`` that also looks on disk, under the image's digest and the trunk's."""

    def __init__(self, source: TrunkFeatures, disk: EmbeddingDisk, trunk_digest: str) -> None:
        super().__init__(source)
        self.disk = disk
        self.trunk_digest = trunk_digest

    def _maps(self, image: np.ndarray) -> tuple[Tensor, ...]:
        key = f"trunk-{image_key(image)}-{self.trunk_digest}"
        kept = self.disk.read(key)
        if kept is not None:
            return kept.features
        maps = super()._maps(image)
        self.disk.write(key, ImageEmbedding(maps, (image.shape[0], image.shape[1]), self.trunk_digest))
        return maps
