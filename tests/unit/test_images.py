"""Every format, the grid and geometry that come back, the grey values, and files made to do harm."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from imis_net import bounded_read
from imis_net.errors import ImageError
from imis_net.images import CT_WINDOW, Volume, read_volume, write_mask_nrrd

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "dev"
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
IDENTITY = np.eye(3)
ROTATION = np.array(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()).reshape(3, 3)


def affine(rotation: np.ndarray = IDENTITY) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * [2.0, 3.0, 4.0]
    matrix[:3, 3] = 10, -20, 30
    return matrix


def volume(array: np.ndarray, modality: str | None = None) -> Volume:
    return Volume(array, affine(), modality)


def write_nifti(path: Path, matrix: np.ndarray | None, array: np.ndarray = VOXELS) -> Path:
    nib.save(nib.Nifti1Image(array, matrix), path)
    return path


def write_nrrd(path: Path, rotation: np.ndarray = IDENTITY, compress: bool = False) -> Path:
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetDirection(rotation.ravel().tolist())
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((5, 6, 7))
    sitk.WriteImage(image, str(path), compress)
    return path


def write_dicom(path: Path, k: int = 0, rotation: np.ndarray = IDENTITY, **tags: object) -> Path:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientName = "1.2.3", "CT", "Secret"
    dataset.Columns, dataset.Rows, dataset.SamplesPerPixel = 4, 5, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelSpacing, dataset.SliceThickness = [2.0, 1.5], 4.0
    dataset.ImageOrientationPatient = [round(float(v), 8) for v in rotation[:, :2].T.ravel()]
    dataset.ImagePositionPatient = [round(float(v), 6) for v in np.array([1, 2, 3]) + 4.0 * k * rotation[:, 2]]
    dataset.PixelData = VOXELS[:, :, k].T.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path, write_like_original=False)
    return path


def write_series(folder: Path, rotation: np.ndarray = IDENTITY) -> Path:
    """File names run against the positions."""
    folder.mkdir()
    for k in range(6):
        write_dicom(folder / f"{9 - k}.dcm", k, rotation)
    return folder


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "gz.nrrd", "series"])
def test_voxels_stay_in_the_files_own_grid(tmp_path: Path, name: str) -> None:
    """Fails if a reader turns, flips or transposes to some canonical orientation: masks would land elsewhere."""
    path = tmp_path / name
    flip = np.diag([-1.0, 1.0, -1.0])
    if name == "series":
        write_series(path, ROTATION)
    elif name.endswith("nrrd"):
        write_nrrd(path, flip, compress=name.startswith("gz"))
    else:
        write_nifti(path, affine(flip))
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, VOXELS)
    assert read.modality == ("CT" if name == "series" else None)


@pytest.mark.parametrize("rotation", [np.eye(3), np.diag([-1.0, 1.0, 1.0]), ROTATION], ids=["plain", "flip", "oblique"])
@pytest.mark.parametrize("kind", ["sform", "qform", "codeless", "nrrd", "dicom"])
def test_masks_lie_where_simpleitk_puts_the_image(tmp_path: Path, kind: str, rotation: np.ndarray) -> None:
    """Fails on any slip between RAS and LPS, rows and columns of the direction, or the order of voxels."""
    if kind == "nrrd":
        path = write_nrrd(tmp_path / "a.nrrd", rotation)
        image = sitk.ReadImage(str(path))
    elif kind == "dicom":
        right_handed = rotation if np.linalg.det(rotation) > 0 else rotation @ np.diag([1.0, 1.0, -1.0])
        path = write_series(tmp_path / "series", right_handed)
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        path = tmp_path / "a.nii"
        nifti = nib.Nifti1Image(VOXELS, affine(rotation))
        nifti.set_sform(affine(rotation), code=int(kind == "sform"))
        nifti.set_qform(affine(rotation), code=int(kind == "qform"))
        nib.save(nifti, path)
        image = sitk.ReadImage(str(path))
    mask = (VOXELS % 3).astype(np.uint8)
    for level in (0, 1):
        write_mask_nrrd(tmp_path / "m.nrrd", mask, read_volume(path), compress_level=level)
        written = sitk.ReadImage(str(tmp_path / "m.nrrd"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written).T, mask)
        np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), atol=1e-4)
        np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-4)


def test_masks_of_another_size_or_type_are_not_written(tmp_path: Path) -> None:
    """Fails if a mask of the wrong shape or of labels above 255 is written silently."""
    for mask in (np.zeros((5, 4, 6), np.uint8), np.zeros(VOXELS.shape, np.int16)):
        with pytest.raises(ImageError, match="mask"):
            write_mask_nrrd(tmp_path / "m.nrrd", mask, volume(VOXELS))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("RGB", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("I;16", "a.png"), ("L", "a.tif"),
     ("RGB", "a.tif"), ("I;16", "a.tif"), ("F", "a.tif"), ("RGB", "a.bmp"), ("L", "a.jpg"), ("1", "a.png")],
)  # fmt: skip
def test_photos_keep_rows_and_columns(tmp_path: Path, mode: str, name: str) -> None:
    """Fails if a mode of Pillow comes transposed, with its alpha, as palette indices, or cut to 8 bits."""
    grey = np.full((7, 9), 10, np.uint8)
    grey[2, 5] = 250
    picture = Image.fromarray(grey)
    if mode in ("I;16", "F"):
        picture = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.float32) * 100)
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / name)
    read = read_volume(tmp_path / name)
    assert read.array.shape[:3] == (9, 7, 1)
    assert read.is_colour == (mode in ("RGB", "RGBA", "P"))
    assert not read.has_spacing
    if mode in ("I;16", "F"):
        assert read.array.max() == 25000
    pixels = read.slice_rgb(0)
    assert pixels.shape == (7, 9, 3)
    assert np.unravel_index(pixels[..., 0].argmax(), (7, 9)) == (2, 5)


def test_dicom_rescale_gives_hounsfield_units_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    """Fails if slope and intercept are not applied, or if bright and dark are swapped in MONOCHROME1."""
    scaled = read_volume(write_dicom(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1024))
    np.testing.assert_array_equal(scaled.array[:, :, 0], VOXELS[:, :, 0] * 2 - 1024)
    np.testing.assert_allclose(scaled.pixel_spacing_mm(), [2.0, 1.5])
    for bits, kind in ((1, "a signed number"), (0, "an unsigned one")):
        tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": bits, "Modality": "DX"}
        pixels = read_volume(write_dicom(tmp_path / "c.dcm", **tags)).slice_rgb(0)[..., 0]
        assert pixels[0, 0] == 255, kind
        assert pixels[-1, -1] == 0, kind


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_implicit.dcm"])
def test_dicom_transfer_syntaxes_decode_alike(name: str) -> None:
    """Fails if the clean copy for GDCM loses what a transfer syntax needs."""
    reference = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    np.testing.assert_array_equal(read_volume(get_testdata_file(name)).array[:, :, 0], reference.T)


def test_dicom_colour_comes_as_rgb() -> None:
    """Fails if YBR colours are shown as they are stored, or RGB loses a channel."""
    rgb = read_volume(get_testdata_file("SC_rgb_rle.dcm")).slice_rgb(0)
    ybr = read_volume(get_testdata_file("SC_ybr_full_422_uncompressed.dcm")).slice_rgb(0)
    np.testing.assert_array_equal(rgb, pydicom.dcmread(get_testdata_file("SC_rgb_rle.dcm")).pixel_array)
    assert np.abs(rgb.astype(int) - ybr).mean() < 5


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("pattern", ["volumes/*/image*", "dicom/*", "images2d/skimage*"])
def test_real_files_are_read(pattern: str) -> None:
    """Fails on what scanners and archives really write: palettes, overlays, bad sequences, SEG, 1-bit masks."""
    paths = sorted(SHARED.glob(pattern))
    assert paths
    for path in paths:
        read = read_volume(path)
        assert read.slice_rgb(read.num_slices() // 2).std() > 5, path.name


# --- shapes --------------------------------------------------------------------------------------------------------


def test_a_nifti_of_one_picture_or_one_time_point_is_a_volume(tmp_path: Path) -> None:
    """Fails if 2D files or trailing axes of 1 are refused."""
    assert read_volume(write_nifti(tmp_path / "2.nii", affine(), VOXELS[..., 0])).array.shape == (4, 5, 1)
    assert read_volume(write_nifti(tmp_path / "4.nii", affine(), VOXELS[..., None])).array.shape == (4, 5, 6)


def test_nifti_scaling_and_rgb_are_understood(tmp_path: Path) -> None:
    """Fails if slope and intercept are ignored, or records of RGB are taken for numbers."""
    image = nib.Nifti1Image(VOXELS.astype(np.float32), affine())
    image.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "s.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "s.nii").array, VOXELS * 0.5 - 3)
    rgb = np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["G"] = 7
    assert read_volume(write_nifti(tmp_path / "c.nii", affine(), rgb)).slice_rgb(0)[0, 0].tolist() == [0, 7, 0]


def test_a_series_of_volumes_is_refused_in_plain_words(tmp_path: Path) -> None:
    """Fails if a 4D file is read as its first volume without a word."""
    path = write_nifti(tmp_path / "4.nii", affine(), np.zeros((4, 5, 6, 3), np.int16))
    with pytest.raises(ImageError, match=r"4\.nii: .*one 3D image"):
        read_volume(path)


@pytest.mark.parametrize(("axis", "shape", "spacing"), [(0, (6, 5), (4, 3)), (1, (6, 4), (4, 2)), (2, (5, 4), (3, 2))])
def test_slices_and_masks_are_inverse(axis: int, shape: tuple[int, int], spacing: tuple[int, int]) -> None:
    """Fails if rows and columns swap between slice_rgb, place_mask and pixel_spacing_mm."""
    voxels = volume((np.arange(120) % 2).astype(np.uint8).reshape(4, 5, 6) * VOXELS.astype(np.uint8))
    pixels = voxels.slice_rgb(1, axis)
    assert pixels.shape == (*shape, 3)
    assert pixels.flags["C_CONTIGUOUS"]
    placed = voxels.place_mask(pixels[..., 0], 1, axis)
    np.testing.assert_array_equal(placed.take(1, axis), voxels.array.take(1, axis))
    assert placed.any()
    assert not np.delete(placed, 1, axis).any()
    assert voxels.pixel_spacing_mm(axis) == spacing


@pytest.mark.parametrize("index", [-1, 6, 1.5, "1", None])
def test_slices_that_are_not_there_are_refused(index: object) -> None:
    """Fails if -1 wraps around to the last slice, or a fraction is rounded."""
    with pytest.raises(ImageError, match="slice"):
        volume(VOXELS).slice_rgb(index)  # type: ignore[arg-type]


def test_axes_and_mask_sizes_are_checked() -> None:
    """Fails if a fourth axis or a transposed mask is accepted."""
    with pytest.raises(ImageError, match="axis"):
        volume(VOXELS).slice_rgb(0, axis=3)
    with pytest.raises(ImageError, match="expected \\[5, 4\\]"):
        volume(VOXELS).place_mask(np.zeros((4, 5), bool), 0)


# --- grey values ---------------------------------------------------------------------------------------------------


def test_ct_gets_its_window_by_tag_or_by_its_values() -> None:
    """Fails if a CT without a tag is stretched over bone and air, or if MR is windowed."""
    hounsfield = np.linspace(-1000, 2000, 3001).astype(np.int16).reshape(1, -1, 1)
    low, high = CT_WINDOW[0] - CT_WINDOW[1] / 2, CT_WINDOW[0] + CT_WINDOW[1] / 2
    assert volume(hounsfield).default_limits == (low, high)
    assert volume(hounsfield[:, 1000:], "CT").default_limits == (low, high)
    assert volume(hounsfield, "MR").default_limits != (low, high)
    assert volume(hounsfield + np.float32(0.5)).default_limits != (low, high)
    grey = volume(hounsfield).slice_rgb(0)[:, 0, 0]
    assert (grey[hounsfield[0, :, 0] <= low] == 0).all()
    assert (grey[hounsfield[0, :, 0] >= high] == 255).all()
    assert abs(int(grey[1040]) - 128) <= 1


def test_other_grey_is_stretched_by_the_whole_volume() -> None:
    """Fails if each slice is stretched alone (neighbours would flicker), or one hot voxel darkens all."""
    array = np.zeros((20, 20, 10), np.uint16)
    array[..., 1] = 100
    array[..., 2] = 1000
    array[0, 0, 3] = 60000
    read = volume(array)
    assert read.slice_rgb(2).max() == 255
    assert 20 <= read.slice_rgb(1).max() <= 30


def test_eight_bits_and_colour_stay_as_they_are_unless_windowed() -> None:
    """Fails if pictures are stretched again, or if an asked window is ignored on grey."""
    array = np.full((4, 5, 1), 100, np.uint8)
    assert (volume(array).slice_rgb(0) == 100).all()
    assert (volume(array).slice_rgb(0, window=(90, 40)) == 191).all()
    colour = np.repeat(array[..., None], 3, axis=3)
    assert (volume(colour).slice_rgb(0, window=(100, 50)) == 100).all()


@pytest.mark.parametrize("window", [(40, 0), (40, -1), (np.nan, 400), (40, np.inf), (40,), "ab", (None, 4)])
def test_impossible_windows_are_refused(window: object) -> None:
    """Fails if a window leads to a division by zero or to a black picture."""
    with pytest.raises(ImageError, match="window"):
        volume(VOXELS).slice_rgb(0, window=window)  # type: ignore[arg-type]


def test_nan_and_infinity_and_flat_images_become_pictures() -> None:
    """Fails if one NaN blackens the image, warns, or a flat image divides by zero."""
    array = np.linspace(0, 1, 120, dtype=np.float32).reshape(4, 5, 6)
    array[0, 0, 0], array[1, 0, 0], array[2, 0, 0] = np.nan, np.inf, -np.inf
    pixels = volume(array).slice_rgb(0)
    assert pixels[0, :3, 0].tolist() == [0, 255, 0]
    assert pixels.std() > 30
    for flat in (np.full((4, 5, 6), np.nan), np.zeros((4, 5, 6)), np.full((4, 5, 6), -1e308)):
        assert not volume(flat).slice_rgb(0).any()


# --- hostile files -------------------------------------------------------------------------------------------------


def png_bomb() -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def nrrd_bytes(sizes: str, extra: str = "", encoding: str = "raw") -> bytes:
    return (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n{extra}\n".encode()
    )


def nifti_bytes(shape: tuple[int, ...], offset: float = 352.0) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", offset
    return header.binaryblock + bytes(4)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text.nii": (lambda: b"this is no image" * 100, "not an image"),
    "short.nii": (lambda: b"\x5c\x01\0\0", "not an image"),
    "empty.png": (lambda: b"", "empty"),
    "claim.nii": (lambda: nifti_bytes((500, 500, 500)), "truncated"),
    "huge.nii": (lambda: nifti_bytes((32767, 32767, 32767)), "at most"),
    "zero.nii": (lambda: nifti_bytes((4, 0, 6)) + bytes(500), "at least 1"),
    "offset.nii": (lambda: nifti_bytes((4, 5, 6), 3e9) + bytes(500), "voxels at byte"),
    "bomb.nii.gz": (lambda: zlib.compress(nifti_bytes((1000, 1000, 1000)), wbits=31), "truncated"),
    "claim.nrrd": (lambda: nrrd_bytes("500 500 500"), "truncated"),
    "huge.nrrd": (lambda: nrrd_bytes("99999 99999 99999"), "at most"),
    "negative.nrrd": (lambda: nrrd_bytes("-4 5 6"), "at least 1"),
    "detached.nrrd": (lambda: nrrd_bytes("4 5 6", "data file: /etc/passwd\n"), "another file"),
    "list.nrrd": (lambda: nrrd_bytes("4 5 6", "data file: LIST\n") + b"/etc/passwd\n", "another file"),
    "bomb.nrrd": (lambda: nrrd_bytes("900 900 900", encoding="gzip") + zlib.compress(b"", wbits=31), "truncated"),
    "text.nrrd": (lambda: b"NRRD0004\n" + b"x" * 5000, "damaged"),
    "bomb.png": (png_bomb, "pixels|damaged|kind"),
    "half.png": (lambda: png_bomb()[:40], "read"),
    "text.jpg": (lambda: b"\xff\xd8\xff" + b"text" * 50, "read"),
    "text.bmp": (lambda: b"BMtext" * 50, "read"),
    "text.dcm": (lambda: bytes(128) + b"DICM" + b"text" * 50, "DICOM|damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_without_their_folder(tmp_path: Path, name: str) -> None:
    """Fails if a forged size is believed, another file is opened, a decoder's exception escapes, or a path leaks."""
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(ImageError, match=message) as caught:
        read_volume(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: ")
    assert str(tmp_path) not in str(caught.value)
    assert "passwd" not in str(caught.value)


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an honest but too large file is decoded: its bytes are all there."""
    path = write_nifti(tmp_path / "a.nii", affine())
    monkeypatch.setattr(bounded_read, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(ImageError, match="at most 100"):
        read_volume(path)


def test_missing_files_and_folders_without_one_series_are_refused(tmp_path: Path) -> None:
    """Fails if two series are stacked into one volume, or an empty folder raises anything but ImageError."""
    for path, message in ((tmp_path / "none.nii", "no such file"), (tmp_path, "got 0 series")):
        with pytest.raises(ImageError, match=message):
            read_volume(path)
    folder = write_series(tmp_path / "series")
    write_dicom(folder / "other.dcm", SeriesInstanceUID="1.2.4")
    with pytest.raises(ImageError, match="got 2 series"):
        read_volume(folder)


def test_a_series_with_two_images_at_one_place_is_refused(tmp_path: Path) -> None:
    """Fails if two time points are interleaved into one volume."""
    folder = write_series(tmp_path / "series")
    write_dicom(folder / "again.dcm", 3)
    with pytest.raises(ImageError, match="one position"):
        read_volume(folder)


def test_a_dicom_that_promises_more_pixels_than_it_has_is_refused(tmp_path: Path) -> None:
    """Fails if GDCM gets to see a file with missing or far too many pixels."""
    for tags in ({"Rows": 6}, {"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": 10**9}, {"PixelData": b"\0\0"}):
        with pytest.raises(ImageError):
            read_volume(write_dicom(tmp_path / "a.dcm", **tags))


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nrrd", "gz.nrrd", "a.png", "a.jpg", "a.tif", "a.bmp", "a.dcm"]
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Fails if any of 30 files with changed or missing bytes raises something else, hangs or crashes."""
    path = tmp_path / name
    if name.endswith("nrrd"):
        write_nrrd(path, compress=name.startswith("gz"))
    elif name.endswith("dcm"):
        write_dicom(path)
    elif "nii" in name:
        write_nifti(path, affine())
    else:
        Image.fromarray(VOXELS[:, :, :3].astype(np.uint8)).save(path)
    original = path.read_bytes()
    for seed in range(30):
        rng = random.Random(seed)
        content = bytearray(original)
        for _ in range(rng.choice([1, 4, 16])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if seed % 3 == 0 else content)
        with contextlib.suppress(ImageError):
            read_volume(path).slice_rgb(0)
