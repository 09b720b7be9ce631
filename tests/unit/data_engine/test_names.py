"""Names of a source to classes and categories, by the written table."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imis_net.data_engine.names import NAMES_FILE, category_of, load_names, other_side
from imis_net.errors import DatasetError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Spleen", "spleen"),
        ("kidney right", "kidney_right"),
        ("Right kidney", "kidney_right"),
        ("adrenal-gland left", "adrenal_gland_left"),
        ("portal vein and splenic vein", "portal_vein_and_splenic_vein"),
        ("IVC", "inferior_vena_cava"),
        ("Background", None),
        ("  ", None),
        ("retinal vessel", "retinal_vessel"),
    ],
)
def test_names_lead_to_classes(name: str, expected: str | None) -> None:
    """Breaks if spelling, order of words or an alias is lost, or background becomes a target."""
    assert load_names().class_of(name, "CT", "BTCV") == expected


def test_one_name_means_what_its_source_means() -> None:
    """Breaks if a brain's and a liver's tumour become one class."""
    table = load_names()
    assert table.class_of("tumor", "MR", "BRATS 2021") == "brain_tumor"
    assert table.class_of("Tumor", "CT", "LiTS") == "liver_tumor"
    assert table.class_of("tumor", "CT", "unheard of") == "tumor"


def test_what_the_table_leads_to_has_a_category() -> None:
    """Breaks if someone mistypes a class in the shipped table."""
    table = load_names()
    classes = [
        *table.aliases.values(),
        *(m.means for m in table.meanings),
        *(c for pair in table.overlaps for c in pair),
    ]
    assert [c for c in classes if category_of(c) is None] == []
    assert category_of("retinal_vessel") is None


def test_sides() -> None:
    """Breaks if a word that only contains a side is taken for one."""
    assert other_side("kidney_left") == "kidney_right"
    assert other_side("right_lens") == "left_lens"
    assert other_side("cleft") is None


@pytest.mark.parametrize("change", [{"swapped_sides": "maybe"}, {"aliases": None}, {"meanings": [{"nome": "x"}]}])
def test_a_broken_table_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Breaks if a mistake in the table comes out as a traceback, or not at all."""
    path = tmp_path / "names.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(NAMES_FILE.read_text()) | change))
    with pytest.raises(DatasetError, match=r"names\.yaml"):
        load_names(path)
