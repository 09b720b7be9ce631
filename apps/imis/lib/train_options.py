"""What whoever starts a training may choose, as viewers show it and send it back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imis_net.errors import ImisError
from imis_net.training.low_rank import check_rank
from lib.config import Config

LEARN_ALL, LEARN_DECODER = "neck, prompt encoder and decoder", "prompt encoder and decoder"
MIN_MINUTES, MAX_MINUTES = 0.05, 24 * 60.0


@dataclass(frozen=True)
class TrainOptions:
    """See ``FineTuning``, whose fields these become."""

    learn_neck: bool
    adapter_rank: int
    max_seconds: float


def shown(config: Config) -> dict[str, object]:
    """For viewers: lists are choices, their first the default."""
    return {
        "learn": [LEARN_ALL, LEARN_DECODER],
        "adapters": config.retrain_adapters,
        "max_minutes": round(config.retrain_minutes, 1),
    }


def read_options(request: Mapping[str, Any], config: Config) -> TrainOptions:
    """A request's options; what it leaves out is the deployment's.

    Raises:
        ImisError: an option that cannot be; says which, what was given and what is accepted.
    """
    keeps_encoder = request.get("learn") == LEARN_DECODER  # a viewer whose user chose nothing sends the whole list
    rank = _rank(request.get("adapters"), 0 if keeps_encoder else config.retrain_adapters)
    if rank and keeps_encoder:
        raise ImisError(
            f"adapters: got {rank} with learn {LEARN_DECODER!r}, which keeps the image encoder; "
            f"expected 0, or learn {LEARN_ALL!r}"
        )
    # Triton exchanges decoders, never encoders: only adapters, which change the trunk, are worth another repository.
    learn_neck = not keeps_encoder and (config.segmenter != "triton" or rank > 0)
    return TrainOptions(learn_neck, rank, 60 * _minutes(request.get("max_minutes"), config.retrain_minutes))


def _rank(given: object, default: int) -> int:
    if given is None:
        return default
    is_number = isinstance(given, int) and not isinstance(given, bool)
    if not is_number and not (isinstance(given, str) and given.isascii() and given.isdigit()):
        raise ImisError(f"adapters: got {str(given)[:40]!r}, expected a rank as a whole number, 0 for no adapters")
    try:
        return check_rank(int(given))  # type: ignore[call-overload]
    except ValueError as error:
        raise ImisError(f"adapters: {error}") from error


def _minutes(given: object, default: float) -> float:
    try:
        wanted = float(given or default)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        wanted = math.nan
    if math.isnan(wanted):
        raise ImisError(f"max_minutes: got {str(given)[:40]!r}, expected a number")
    return min(max(wanted, MIN_MINUTES), MAX_MINUTES)
