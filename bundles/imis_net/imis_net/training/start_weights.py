"""Where a training starts: a converted file of published weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imis_net.checkpoint import load_weights
from imis_net.errors import CheckpointError
from imis_net.networks.imis_net import IMISNet


@dataclass(frozen=True)
class StartWeights:
    """Loads ``path`` strictly; ``scripts/convert_checkpoint.py`` makes such a file of SAM's or IMIS-Net's weights."""

    path: Path | str

    def __call__(self, network: IMISNet) -> None:
        """Fill the network.

        Raises:
            CheckpointError: no such file, or one of another network.
        """
        if not Path(self.path).is_file():
            raise CheckpointError(f"start_weights: no file {self.path}; make one with scripts/convert_checkpoint.py")
        load_weights(network, Path(self.path))
