"""The data engine's numbers, as read from ``configs/data_engine.yaml``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml

from imis_net.errors import DatasetError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETTINGS_FILE = CONFIGS / "data_engine.yaml"


@dataclass(frozen=True)
class IngestSettings:
    """What becomes an image of the data set; see the file for each."""

    axes: tuple[int, ...]
    slice_step: int
    max_aspect_ratio: float
    min_target_fraction: float
    max_slices_per_volume: int
    intensity: Literal["full_range", "window"]
    test_fraction: float
    duplicate_hash_side: int
    duplicate_max_distance: int
    min_contrast: int


@dataclass(frozen=True)
class CandidateSettings:
    """Which generated masks are considered at all; ``of_model`` gives a model its own bound."""

    grid_side: int
    batch_size: int
    min_predicted_iou: float
    min_predicted_iou_of: dict[str, float]
    max_nms_iou: float
    nms_by: Literal["box", "mask"]
    max_area_fraction: float

    def of_model(self, name: str) -> CandidateSettings:
        return replace(self, min_predicted_iou=self.min_predicted_iou_of.get(name, self.min_predicted_iou))


@dataclass(frozen=True)
class QualityRules:
    """What the ground truth lets through."""

    min_box_overlap: float
    min_part_fraction: float
    max_hole_fraction: float
    max_mask_iou: float


@dataclass(frozen=True)
class SemanticsSettings:
    min_precision: float
    min_calibration_masks: int


@dataclass(frozen=True)
class ReportSettings:
    num_worst: int
    min_masks_per_image: float
    min_agreement: float
    max_rejected_fraction: float


@dataclass(frozen=True)
class Settings:
    """One run's numbers."""

    ingest: IngestSettings
    candidates: CandidateSettings
    quality_control: QualityRules
    semantics: SemanticsSettings
    report: ReportSettings

    @property
    def digest(self) -> str:
        """Of what the masks follow from: equal digests, equal masks from equal images and weights."""
        facts = [asdict(self.ingest), asdict(self.candidates), asdict(self.quality_control)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_settings(path: Path | str = SETTINGS_FILE) -> Settings:
    """
    Raises:
        DatasetError: no such file, not YAML, a key missing, unknown or of the wrong type.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise DatasetError(f"{path.name}: expected settings in YAML ({type(error).__name__})") from error
    sections = get_type_hints(Settings)
    _check_keys(tree, sections, path.name)
    return Settings(**{name: _section(kind, tree[name], f"{path.name}: {name}") for name, kind in sections.items()})


Section = TypeVar("Section")


def _section(kind: type[Section], values: Any, where: str) -> Section:
    hints = get_type_hints(kind)
    _check_keys(values, hints, where)
    return kind(**{f.name: _value(values[f.name], hints[f.name], f"{where}.{f.name}") for f in fields(kind)})  # type: ignore[arg-type]


def _check_keys(values: Any, expected: dict[str, Any], where: str) -> None:
    got = set(values) if isinstance(values, dict) else set()
    if got != set(expected):
        missing, unknown = sorted(set(expected) - got), sorted(map(str, got - set(expected)))
        raise DatasetError(f"{where}: missing {missing}, unknown {unknown}")


def _value(value: Any, hint: Any, where: str) -> Any:
    if hint == tuple[int, ...] and isinstance(value, list) and all(type(v) is int for v in value):
        return tuple(value)
    if hint == dict[str, float] and isinstance(value, dict):
        return {str(k): _value(v, float, f"{where}.{k}") for k, v in value.items()}
    if hint is int and type(value) is int and value >= 0:
        return value
    if hint is float and type(value) in (int, float) and value >= 0:
        return float(value)
    choices = getattr(hint, "__args__", ()) if getattr(hint, "__origin__", None) is Literal else ()
    if value in choices:
        return value
    expected = " or ".join(choices) if choices else {int: "a whole number", float: "a number"}.get(hint, "a list")
    raise DatasetError(f"{where}: expected {expected}, got {value!r}")
