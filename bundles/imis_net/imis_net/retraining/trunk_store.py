"""A frozen trunk's features on disk: what one retraining encoded, the next one does not encode again."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.networks.imis_net import IMISNet
from imis_net.prompts import ImageEmbedding
from imis_net.segmenter import digest_of, resize_mode
from imis_net.training.trunk_features import TrunkCache, image_key


class TrunkStore(TrunkCache):
    """``TrunkCache`` that also looks on disk, under the image's digest and the trunk's; in half precision."""

    def __init__(self, network: IMISNet, disk: EmbeddingDisk) -> None:
        super().__init__(network)
        self.disk = disk
        trunk = network.image_encoder.trunk
        self.trunk_digest = digest_of(trunk, resize_mode(network), str(network.image_size))

    def _encode(self, image: np.ndarray) -> tuple[Tensor, ...]:
        key = f"trunk-{image_key(image)}-{self.trunk_digest}"
        kept = self.disk.read(key)
        if kept is not None:
            return kept.features
        maps = tuple(m.half().cpu() for m in super()._encode(image))
        self.disk.write(key, ImageEmbedding(maps, (image.shape[0], image.shape[1]), self.trunk_digest))
        return maps
