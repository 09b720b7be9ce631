"""The 204 targets of IMIS-Net by name, and the 238 data-set labels that lead to them (``configs/categories.json``).

``group`` is the name with left and right merged. Source: IMIS-Bench's label map, typing errors included, since its text
prompts were made from it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATEGORIES_FILE = Path(__file__).resolve().parents[1] / "configs" / "categories.json"


@dataclass(frozen=True)
class Category:
    """A target: its name as prompted, its group, and the data-set labels that mean it."""

    name: str
    group: str
    labels: tuple[str, ...]


@cache
def load_categories() -> tuple[Category, ...]:
    rows = json.loads(CATEGORIES_FILE.read_text())
    return tuple(Category(r["name"], r["group"], tuple(r["labels"])) for r in rows)


def normalised(text: str) -> str:
    """Lower case, ``_`` and ``-`` as spaces, runs of spaces collapsed."""
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def display_name(text: str) -> str:
    """The name behind a data-set label such as ``kidney_right``; any other text is returned as it is."""
    return _names_by_label().get(text, text)


def nearest_names(text: str, names: Sequence[str], limit: int = 5) -> list[str]:
    """The names most like a text, best first; never empty unless ``names`` is."""
    wanted = normalised(text)
    return sorted(names, key=lambda n: -difflib.SequenceMatcher(None, wanted, normalised(n)).ratio())[:limit]


@cache
def _names_by_label() -> dict[str, str]:
    return {label: category.name for category in load_categories() for label in category.labels}
