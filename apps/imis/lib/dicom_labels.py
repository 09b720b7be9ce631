"""Labels of a DICOM series as the label store keeps them, from and to DICOM SEG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore

from imis_net.dicom_seg import read_dicom_seg, write_dicom_seg
from imis_net.images import Volume
from lib.labelled import target_names


def series_of(datastore: Datastore, image: str, path: Path) -> Path:
    """The folder of an image's DICOM files: of a DICOMweb store beside the NIfTI that it made of them."""
    if isinstance(datastore, DICOMWebDatastore):
        return Path(datastore._datastore.image_path()) / image
    return path


def from_dicom_seg(file: Path, series: Path, volume: Volume, info: dict[str, Any]) -> Path:
    """An uploaded DICOM SEG as NIfTI beside it; ``info`` gets the segments' names unless the caller gave some.

    Raises:
        ImageError: not a DICOM SEG of this series.
    """
    label, names = read_dicom_seg(file, series, volume.array.shape[:3], volume.affine)
    info.setdefault("label_info", [{"name": name, "idx": value} for value, name in names.items()])
    converted = file.with_name("converted.nii")
    nib.Nifti1Image(label, volume.affine).to_filename(converted)
    return converted


def to_dicom_seg(label: np.ndarray, facts: Mapping[str, Any], series: Path, volume: Volume) -> bytes:
    """A kept label with the names that it was saved with; OHIF's raw bytes are in the image's own order.

    Raises:
        ImageError: the image is no DICOM series, or nothing is labelled.
    """
    label = label.reshape(volume.array.shape[:3], order="F") if label.ndim == 1 else label
    names = target_names(facts, [int(v) for v in np.unique(label) if v])
    return write_dicom_seg(label, volume.affine, series, names)
