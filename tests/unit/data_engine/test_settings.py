"""The one file of numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imis_net.data_engine.settings import SETTINGS_FILE, load_settings
from imis_net.errors import DatasetError


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grid_side: 32", "grid_side: many", "candidates.grid_side: expected a whole number"),
        ("nms_by: box", "nms_by: circle", "expected box or mask"),
        ("max_mask_iou: 0.7", "max_mask_iou: -1", "expected a number"),
        ("  grid_side: 32", "  gird_side: 32", "missing.*grid_side.*unknown.*gird_side"),
        ("report:", "reports:", "missing.*report"),
        ("axes: [0, 1, 2]", "axes: 3", "expected a list"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Breaks if a mistyped key silently leaves a default in force."""
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS_FILE.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=message):
        load_settings(path)


def test_a_model_may_have_its_own_bound() -> None:
    """Breaks if SAM is held to the compact model's bound, or the other way round."""
    candidates = load_settings().candidates
    assert candidates.of_model("sam_vit_b").min_predicted_iou == 0.85
    assert (
        candidates.of_model("imis_net_compact").min_predicted_iou == candidates.min_predicted_iou_of["imis_net_compact"]
    )


def test_the_digest_follows_what_masks_follow_from() -> None:
    """Breaks if a resumed run mixes masks of two thresholds, or the report's numbers make everything anew."""
    settings = load_settings()
    other = replace(settings, quality_control=replace(settings.quality_control, max_mask_iou=0.6))
    assert other.digest != settings.digest
    assert replace(settings, report=replace(settings.report, num_worst=3)).digest == settings.digest
