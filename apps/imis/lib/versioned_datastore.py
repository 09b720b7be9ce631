"""MONAI Label's data stores on top of the label store: what viewers and training read is a view of the newest versions.

The stock store keeps one file per image and tag, and its index in a JSON file that it overwrites in place: the second
save erases the first, and a disk that fills at that moment leaves a store that does not start any more.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from imis_net.files import write_durably
from lib.label_store import LabelStore, Version

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"
VERSION, AUTHOR, PARENT, REMOVED = "version", "author", "parent", "is_removed"
"""Keys of a label's info: the version that the view shows; who saved it; what they started from; whether it is gone."""


class Versioned(LocalDatastore):
    """The part that both kinds of store share; goes before the stock class."""

    label_store: LabelStore

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep the file as a new version, whose number ``label_info`` gets, then show it.

        Raises:
            OSError, sqlite3.Error: it is not kept.
        """
        info = {key: value for key, value in (label_info or {}).items() if key != VERSION}
        path, tag = Path(label_filename), str(label_tag)
        author, parent = info.pop(AUTHOR, None) or info.get("client_id"), info.pop(PARENT, None)
        version = self.label_store.append(
            image_id,
            tag,
            path.read_bytes(),
            "".join(path.suffixes),
            str(author or ""),
            info,
            parent,
            self._is_to_upload(tag, info),
        )
        if label_info is not None:
            label_info[VERSION] = version.id
        self._view(version, path)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take it out of the view. Its versions stay, and the removal is one of them."""
        newest = self.label_store.newest(label_id, label_tag)
        super().remove_label(label_id, label_tag)
        if newest is not None:
            content, facts = self.label_store.read(newest), {**newest.facts, REMOVED: True}
            self.label_store.append(label_id, label_tag, content, newest.suffix, "", facts, newest.id)

    def show(self, version: Version) -> None:
        """Make the view of this image and tag that version."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"label{version.suffix}"
            file.write_bytes(self.label_store.read(version))
            self._view(version, file)

    def show_newest(self) -> None:
        """Bring back what a kill or a full disk kept from the view, file by file; what is there already stays."""
        here = set(LocalDatastore.list_images(self))
        for version in self.label_store.all_newest():
            if version.image not in here or version.facts.get(REMOVED) or self._shown(version) == version.id:
                continue
            try:
                self.show(version)
                logger.warning("restored version %d of a label, which the data store had lost", version.id)
            except Exception:  # the server shall start with the others
                logger.exception("version %d of a label cannot be shown", version.id)

    def _is_to_upload(self, tag: str, info: dict[str, Any]) -> bool:
        return False

    def _view(self, version: Version, file: Path) -> None:
        """Put the file where viewers and training look."""
        info = {**version.facts, VERSION: version.id}
        super().save_label(version.image, str(file), version.tag, info)

    def _shown(self, version: Version) -> int | None:
        try:
            info: Mapping[str, Any] = self.get_label_info(version.image, version.tag)
            path = Path(self.get_label_uri(version.image, version.tag))
        except Exception:  # the stock store raises its own for what it does not have
            return None
        return info.get(VERSION) if path.is_file() and path.stat().st_size else None

    def _update_datastore_file(self, lock: bool = True) -> None:
        """As the stock method, but a reader never sees half a file, nor does the next start."""
        if lock:
            with FileLock(self._lock_file):
                return self._update_datastore_file(lock=False)
        self._ignore_event_config = True
        content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
        write_durably(Path(self._datastore_config_path), content.encode())
        self._config_ts = os.stat(self._datastore_config_path).st_mtime
        return None


class VersionedLocalDatastore(Versioned):
    """A folder of studies. Its index is made anew where another program left half of one."""

    def __init__(
        self, label_store: LabelStore, datastore_path: str, read_only: bool = False, **options: object
    ) -> None:
        self.label_store = label_store
        if not read_only:
            _set_aside_if_torn(Path(datastore_path) / INDEX)
        super().__init__(datastore_path, read_only=read_only, **options)
        if not read_only:
            self.show_newest()


def _set_aside_if_torn(index: Path) -> None:
    """A half-written index is renamed; the stock store then finds images and labels by their files."""
    if not index.exists():
        return
    try:
        LocalDatastoreModel.model_validate_json(index.read_text())
    except ValueError:
        index.replace(index.with_suffix(".torn.json"))
        logger.warning("%s was damaged and is made anew; the old one is kept as .torn.json", index.name)
