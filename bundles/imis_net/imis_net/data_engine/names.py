"""Names of a source -> classes of the data set -> the 204 categories, by ``configs/data_engine_names.yaml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from imis_net.categories import load_categories, normalised
from imis_net.data_engine.settings import CONFIGS
from imis_net.errors import DatasetError

NAMES_FILE = CONFIGS / "data_engine_names.yaml"


@dataclass(frozen=True)
class Meaning:
    """``name`` means ``means`` where both patterns are found."""

    name: str
    means: str
    modality: str = ""
    source: str = ""


@dataclass(frozen=True)
class NamesTable:
    """The written rules; see the file for each."""

    ignore: frozenset[str]
    meanings: tuple[Meaning, ...]
    aliases: dict[str, str]
    overlaps: tuple[tuple[str, str], ...]
    swapped_sides: Literal["swap", "reject"]

    def class_of(self, name: str, modality: str, source: str) -> str | None:
        """The class that a name stands for: a data-set label such as ``kidney_left`` where a category has one, else
        the name itself with underscores; None for what is no target."""
        plain = normalised(name)
        if not plain or plain in self.ignore:
            return None
        for rule in self.meanings:
            if rule.name == plain and _found(rule.modality, modality) and _found(rule.source, source):
                return rule.means
        if plain in self.aliases:
            return self.aliases[plain]
        return _labels().get(plain) or _labels_in_any_order().get(frozenset(plain.split())) or plain.replace(" ", "_")


def category_of(label: str) -> str | None:
    """The category of a class, or None outside the 204."""
    return _categories().get(label)


def load_names(path: Path | str = NAMES_FILE) -> NamesTable:
    """
    Raises:
        DatasetError: no such file, not YAML, a section missing or malformed, an alias that leads to no category.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
        table = NamesTable(
            frozenset(normalised(n) for n in tree["ignore"]),
            tuple(Meaning(**{**m, "name": normalised(m["name"])}) for m in tree["meanings"]),
            {normalised(k): v for k, v in tree["aliases"].items()},
            tuple((o["over"], o["under"]) for o in tree["overlaps"]),
            tree["swapped_sides"],
        )
        for rule in table.meanings:
            re.compile(rule.modality), re.compile(rule.source)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, re.error) as error:
        raise DatasetError(f"{path.name}: expected a table of names ({type(error).__name__}: {error})") from error
    if table.swapped_sides not in ("swap", "reject"):
        raise DatasetError(f"{path.name}: swapped_sides: expected swap or reject, got {table.swapped_sides!r}")
    return table


def other_side(label: str) -> str | None:
    """``kidney_left`` -> ``kidney_right`` and back; None without a side."""
    words = label.split("_")
    for here, there in (("left", "right"), ("right", "left")):
        if here in words:
            return "_".join(there if w == here else w for w in words)
    return None


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


@cache
def _labels() -> dict[str, str]:
    """Normalised label or category name -> label. Labels win over names that read the same."""
    by_name = {normalised(c.name): c.labels[0] for c in load_categories()}
    return by_name | {normalised(label): label for c in load_categories() for label in c.labels}


@cache
def _labels_in_any_order() -> dict[frozenset[str], str]:
    return {frozenset(name.split()): label for name, label in _labels().items()}


@cache
def _categories() -> dict[str, str]:
    return {label: c.name.strip() for c in load_categories() for label in c.labels}
