"""Tables from scores."""

import csv
from dataclasses import replace

import pytest

from imis_net.evaluation.harness import Score
from imis_net.evaluation.report import (
    area_under_rounds,
    number_of_clicks,
    plot,
    summarise,
    write_records,
    write_summary,
)

SCORE = Score("a", "BTCV", "CT", "liver", 0, "click", 0, 100, 0.5, 0.4, 0.6, 0.7, 3.0)


def rounds(case: str, target: int, ious: list[float]) -> list[Score]:
    return [replace(SCORE, case=case, target=target, round=r, iou=v, dice=v) for r, v in enumerate(ious)]


def test_clicks_are_counted_to_the_first_time_a_target_is_reached():
    """Breaks if a later fall below the target counts, or an unreached one counts as the rounds that were run."""
    scores = [*rounds("a", 0, [0.5, 0.86, 0.7]), *rounds("a", 1, [0.95, 0.95, 0.95]), *rounds("b", 0, [0.1, 0.2, 0.3])]
    assert number_of_clicks(scores) == pytest.approx({0.80: (2 + 1 + 20) / 3, 0.85: (2 + 1 + 20) / 3, 0.90: 41 / 3})


def test_image_level_weighs_images_and_mask_level_masks():
    """Breaks if the paper's two averages are mixed up: an image with many masks must not count more as an image."""
    scores = [*rounds("a", 0, [1.0]), *rounds("a", 1, [1.0]), *rounds("a", 2, [1.0]), *rounds("b", 0, [0.0])]
    dice = {r["level"]: r["dice"] for r in summarise(scores) if r["group"] == "all"}
    assert dice == {"mask": 0.75, "image": 0.5}


def test_intervals_hold_the_mean_and_repeat():
    """Breaks if the bootstrap resamples something else or is not seeded."""
    scores = [s for i in range(30) for s in rounds(str(i), 0, [i / 30])]
    first, second = summarise(scores, seed=1), summarise(scores, seed=1)
    assert first == second
    row = first[0]
    assert row["dice_low"] < row["dice"] < row["dice_high"]


def test_groups_by_modality_source_and_label():
    """Breaks if a group's name or members change."""
    scores = [*rounds("a", 0, [1.0]), replace(SCORE, case="b", modality="MR", dice=0.0)]
    groups = {r["group"]: r["num_masks"] for r in summarise(scores) if r["level"] == "mask"}
    assert groups == {"all": 2, "modality:CT": 1, "modality:MR": 1, "source:BTCV": 2, "label:liver": 2}


def test_area_under_rounds_by_hand():
    """Breaks if the first or last round counts whole instead of half."""
    assert area_under_rounds([0.5, 1.0, 1.0]) == pytest.approx((0.75 + 1.0) / 2)
    assert area_under_rounds([0.7]) == 0.7


def test_files_are_written_and_read_back(tmp_path):
    """Breaks if a column is lost or a plot is empty."""
    scores = rounds("a", 0, [0.5, 0.9])
    write_records(scores, tmp_path / "records.csv")
    write_summary(summarise(scores), tmp_path, "a title")
    plot(scores, tmp_path)
    with (tmp_path / "records.csv").open() as file:
        assert [row["dice"] for row in csv.DictReader(file)] == ["0.5", "0.9"]
    header = (tmp_path / "summary.csv").read_text().splitlines()[0]
    expected = "level,group,strategy,round,num_masks,dice,dice_low,dice_high,nsd,noc80,noc85,noc90"
    assert header == expected
    assert "Area under the rounds, all: 0.7000" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "dice_by_round.png").stat().st_size > 1000
