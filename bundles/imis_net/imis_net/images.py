"""Any image file -> ``Volume``: the format is told by the content, never by the name.

Everything here may come from strangers: sizes are checked before anything is allocated, no other file is opened than
the one asked for, and whatever a decoder raises becomes an ``ImageError`` that names the file without its folder.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path

from imis_net.bounded_read import MAX_IMAGE_BYTES, open_maybe_gzip
from imis_net.errors import ImageError
from imis_net.nrrd_files import read_nrrd, write_mask_nrrd
from imis_net.read_dicom import read_dicom_file, read_dicom_series
from imis_net.read_nifti import is_nifti, read_nifti
from imis_net.read_photo import read_photo
from imis_net.volume import CT_WINDOW, Volume

__all__ = ["CT_WINDOW", "Volume", "read_volume", "write_mask_nrrd"]

log = logging.getLogger(__name__)

_PHOTO_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")


def read_volume(path: Path | str) -> Volume:
    """A NIfTI (.nii, .nii.gz), NRRD, DICOM, PNG, JPEG, TIFF or BMP file, or a folder with one DICOM series.

    Raises:
        ImageError: missing, unreadable, truncated, not one 2D or 3D image, or larger than is read.
    """
    path = Path(path)
    try:
        return _reader(path)(path)
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from error
    except (EOFError, zlib.error) as error:
        raise ImageError(f"{path.name}: truncated or damaged") from error
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror or 'damaged'})") from error
    except Exception as error:  # decoders of foreign files raise anything; the text may hold the file's path
        log.debug("decoder failed", exc_info=error)
        raise ImageError(f"{path.name}: damaged, or of a kind that is not read ({type(error).__name__})") from error


def _reader(path: Path) -> Callable[[Path], Volume]:
    if path.is_dir():
        return read_dicom_series
    if not path.is_file():
        raise ImageError("no such file")
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise ImageError(f"{path.stat().st_size} bytes: at most {MAX_IMAGE_BYTES} are read")
    stream, _ = open_maybe_gzip(path)
    with stream:
        head = stream.read(348)
    if head.startswith(b"NRRD000"):
        return read_nrrd
    if head[128:132] == b"DICM":  # before the photos: a DICOM file may also begin as a TIFF
        return read_dicom_file
    if head.startswith(_PHOTO_MAGICS):
        return read_photo
    if is_nifti(head):
        return read_nifti
    raise ImageError(
        "not an image that is read: expected NIfTI, NRRD, DICOM, PNG, JPEG, TIFF or BMP"
        if head
        else "empty file: expected an image"
    )
