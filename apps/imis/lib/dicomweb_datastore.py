"""A PACS as MONAI Label's data store: labels are kept here first, and then go there as DICOM SEG of our own making.

The stock store uploads before it keeps, so that a PACS that is down loses the label; names segments by their order;
and writes a new DICOM SEG again for each label that it is asked to show.
"""

from __future__ import annotations

import io
import logging
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import requests
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import dicom_to_nifti
from monailabel.datastore.utils.dicom import dicom_web_download_series
from pydicom import Dataset, dcmread

from imis_net.errors import ImageError
from imis_net.files import write_atomically
from imis_net.images import Volume, read_volume
from lib.dicom_labels import from_dicom_seg, identity, series_of, to_dicom_seg
from lib.label_files import RAW_SUFFIX, label_array
from lib.label_store import LabelStore, LabelStoreError, Version
from lib.labelled import FINAL
from lib.pacs_client import never_wait_for_ever, store, told
from lib.uploads import Uploads
from lib.versioned_datastore import AUTHOR, PARENT, VERSION, Versioned

logger = logging.getLogger(__name__)

ARCHIVE, TAKEN_FROM = "archive", "taken_from"
"""Of a label: how far it is on its way to the PACS; in its info, the series there that it was taken in from."""
ANNOTATOR_WAITS_S = 20.0


class VersionedDicomWebDatastore(Versioned, DICOMWebDatastore):
    """A PACS, to which final labels go; its copy of what was fetched lies in a cache folder."""

    uploads: Uploads
    _taking: threading.Lock
    _fetching: defaultdict[str, threading.Lock]

    @classmethod
    def adopt(cls, stock: DICOMWebDatastore, label_store: LabelStore) -> VersionedDicomWebDatastore:
        """The same store, versioned: MONAI Label builds it in one method with its session and settings."""
        stock.__class__ = cls
        adopted = cast(VersionedDicomWebDatastore, stock)
        adopted.label_store = label_store
        adopted.uploads, adopted._taking = Uploads(label_store, adopted._send), threading.Lock()
        adopted._fetching = defaultdict(threading.Lock)
        never_wait_for_ever(stock._client)
        return adopted

    def resume(self) -> None:
        """Show what is kept of images that are here, and send what still waits. In the server alone."""
        self.show_newest()
        self.uploads.start()

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep and show it, then try to send it; the label store knows how far that came."""
        label_info = {} if label_info is None else label_info
        saved = super().save_label(image_id, label_filename, label_tag, label_info)
        self.uploads.send_now(label_info[VERSION], ANNOTATOR_WAITS_S)
        return saved

    def get_image_uri(self, image_id: str) -> str:
        """Fetched once, and seen by nobody before it is whole; "" where the PACS has no such series.

        Raises:
            Unreachable, Refused: the PACS does not answer, or not with that.
        """
        folder = Path(self._datastore.image_path())
        series, nifti = folder / image_id, folder / f"{image_id}.nii.gz"
        with self._fetching[image_id], told():
            if not series.is_dir() and not self._fetch(image_id, series):
                return ""
            if self._convert_to_nifti and not nifti.is_file():
                self._convert(image_id, series, nifti)
        return str(nifti if self._convert_to_nifti else series)

    def _fetch(self, image: str, series: Path) -> bool:
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": image})
        if image not in [Dataset.from_json(f).SeriesInstanceUID for f in found]:
            return False
        with tempfile.TemporaryDirectory(dir=series.parent, prefix=".") as draft:
            dicom_web_download_series(None, image, f"{draft}/series", self._client, self._fetch_by_frame)
            Path(draft, "series").rename(series)
        return True

    def _convert(self, image: str, series: Path, nifti: Path) -> None:
        about = self._dicom_info(image)
        draft = Path(dicom_to_nifti(str(series)))
        try:
            write_atomically(nifti, draft.read_bytes())
        finally:
            draft.unlink()
        self.refresh()  # the stock store finds it by its file
        self.update_image_info(image, about)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """What was submitted or taken in here; the stock method asks the PACS for a series of the image's name."""
        return LocalDatastore.get_label_uri(self, image_id or label_id, label_tag)

    def list_images(self) -> list[str]:
        """Of a PACS that does not answer, the images that are here, so that work on them goes on."""
        try:
            return cast(list[str], super().list_images())
        except requests.RequestException as error:
            logger.warning("PACS: %s", type(error).__name__)
            return LocalDatastore.list_images(self)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Also those whose label is still on its way."""
        here = LocalDatastore.get_labeled_images(self)
        try:
            return sorted({*here, *super().get_labeled_images(label_tag, labels)})
        except requests.RequestException as error:
            logger.warning("PACS: %s", type(error).__name__)
            return here

    def archived(self, image: str) -> list[dict[str, Any]]:
        """The DICOM SEGs of an image on the PACS, the oldest first; ``version`` where one is kept here.

        Raises:
            Unreachable, Refused: the PACS does not answer, or not with that.
        """
        with told():
            study = self._head(image).StudyInstanceUID
            found = self._client.search_for_series(study, search_filters={"Modality": "SEG"})
            series = [str(Dataset.from_json(f).SeriesInstanceUID) for f in found]
            heads = [Dataset.from_json(self._client.retrieve_series_metadata(study, uid)[0]) for uid in series]
        here = self._versions_by_series(image)
        heads.sort(key=lambda head: (str(head.get("ContentDate", "")), str(head.get("ContentTime", ""))))
        return [
            {
                "series": str(head.SeriesInstanceUID),
                "description": str(head.get("SeriesDescription", "")),
                "segments": [str(s.get("SegmentLabel", "")) for s in head.get("SegmentSequence", [])],
                VERSION: here.get(str(head.SeriesInstanceUID)),
            }
            for head in heads
            if image in [str(r.SeriesInstanceUID) for r in head.get("ReferencedSeriesSequence", [])]
        ]

    def take_in(self, image: str, series: str, author: str = "") -> int:
        """Keep a DICOM SEG of the PACS as the newest final label; its version, which is the old one if it is here.

        Raises:
            LabelStoreError: the PACS has no such label of this image.
            ImageError: it does not fit, or is of a kind that cannot be read.
            Unreachable, Refused: the PACS does not answer, or not with that.
        """
        with self._taking:
            if (known := self._versions_by_series(image).get(series)) is not None:
                return known
            return self._taken(image, series, author)

    def _taken(self, image: str, series: str, author: str) -> int:
        if series not in [found["series"] for found in self.archived(image)]:
            raise LabelStoreError(f"no DICOM SEG of this image on the PACS: got {series!r}")
        with told():
            instances = self._client.retrieve_series(self._head(image).StudyInstanceUID, series)
        if len(instances) != 1:
            raise ImageError(f"DICOM SEG: expected a series of one file, got {len(instances)}")
        newest = self.label_store.newest(image, FINAL)
        info: dict[str, Any] = {TAKEN_FROM: series, AUTHOR: author, PARENT: newest and newest.id}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "seg.dcm"
            instances[0].save_as(file, write_like_original=False)
            volume, files = self._volume(image)
            super().save_label(image, str(from_dicom_seg(file, files, volume, info)), FINAL, info)
        return cast(int, info[VERSION])

    def _download_labeled_data(self) -> None:
        """Labels of the PACS for images that have none here; before a data set is packed."""
        for image in self.get_labeled_images():
            if self.label_store.newest(image, FINAL) is None:
                for found in self.archived(image):
                    try:
                        self.take_in(image, found["series"])
                    except ImageError as error:
                        logger.warning("a label of the PACS was not taken in: %s", error)

    def _is_to_upload(self, tag: str, info: dict[str, Any]) -> bool:
        return tag == FINAL and TAKEN_FROM not in info

    def _view(self, version: Version, file: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if version.suffix == RAW_SUFFIX:
                file = self._as_nifti(version, file, Path(folder) / "label.nii.gz")
            head = self._head(version.image)
            about = {key: str(head.get(key, "")) for key in ("Modality", "PatientID", "StudyInstanceUID")}
            info = {**version.facts, VERSION: version.id, "SeriesInstanceUID": _series_uid(version), **about}
            LocalDatastore.save_label(self, version.image, str(file), version.tag, info)

    def _as_nifti(self, version: Version, file: Path, target: Path) -> Path:
        volume, _ = self._volume(version.image)
        label = label_array(file.read_bytes(), version.suffix, volume.array.shape[:3])
        nib.Nifti1Image(np.asfortranarray(label), volume.affine).to_filename(target)
        return target

    def _volume(self, image: str) -> tuple[Volume, Path]:
        """The image, and the folder of its DICOM files."""
        path = Path(self.get_image_uri(image))
        return read_volume(path), series_of(self, image, path)

    def _send(self, version: Version) -> None:
        volume, series = self._volume(version.image)
        content = to_dicom_seg(version, self.label_store.read(version), series, volume)
        store(self._client, dcmread(io.BytesIO(content)))

    def _head(self, image: str) -> Dataset:
        """What the first file of an image says; its info here is lost where the stock index was made anew."""
        folder = series_of(self, image, Path(self.get_image_uri(image)))
        return dcmread(min(folder.iterdir()), stop_before_pixels=True)

    def _versions_by_series(self, image: str) -> dict[str, int]:
        return {_series_uid(version): version.id for version in self.label_store.versions(image, FINAL)}


def _series_uid(version: Version) -> str:
    """Of its DICOM SEG on the PACS: the one that it came from, or our own."""
    return str(version.facts.get(TAKEN_FROM, identity(version).series_uid))
