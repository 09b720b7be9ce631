"""Segment one target in one image from the shell: clicks, a box, a name, or any combination of them.

    python scripts/segment.py --image ct.nii.gz --slice 40 --click 210,180 --click 300,200,0 --out mask.png

Prints one JSON line: the network's own estimate of the IoU, the area and the milliseconds of each stage. What cannot be
done is said in one sentence on stderr, with exit code 2, and nothing is written.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

import numpy as np
from PIL import Image

from imis_net.errors import ImageError, ImisError, PromptError
from imis_net.files import write_atomically
from imis_net.images import Volume, read_volume
from imis_net.overlay import draw_overlay
from imis_net.prompts import Prediction, Prompt
from imis_net.segmenter import DEFAULT_MODEL, load_segmenter
from imis_net.stepwise import StepwisePredictor
from imis_net.stopwatch import Stopwatch
from imis_net.volume import Window


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        report = segment(args)
    except ImisError as error:
        print(f"segment: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"segment: cannot write: {error.strerror or error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def segment(args: argparse.Namespace) -> dict[str, object]:
    """Do what the command line says; returns what is printed.

    Raises:
        ImisError: a prompt, an image, weights or an output path that cannot be used.
    """
    watch = Stopwatch()
    _check_outputs(args.out, args.overlay)
    prompt = parse_prompt(args.click, args.box, args.text)
    volume = read_volume(args.image)
    index = volume.num_slices() // 2 if args.slice is None else args.slice
    image = volume.slice_rgb(index, window=_window(args.window))
    prompt.check_inside(*image.shape[:2])
    watch.lap("read")
    segmenter = load_segmenter(args.model, args.weights)
    watch.lap("load_model")
    embedding = segmenter.encode_image(image)
    watch.lap("encode")
    prediction = StepwisePredictor().predict(segmenter, embedding, args.image, prompt)
    watch.lap("predict")
    pictures = {args.out: prediction.mask.astype(np.uint8) * 255}
    if args.overlay:
        pictures[args.overlay] = draw_overlay(image, prediction.mask, prompt)
    encoded = {path: _png(picture) for path, picture in pictures.items()}
    for path, content in encoded.items():
        write_atomically(path, content)
    watch.lap("write")
    return _report(prediction, volume, index, prompt.text) | {"milliseconds": watch.report()}


def parse_prompt(clicks: list[str], box: str | None, text: str | None) -> Prompt:
    """Raises PromptError: not numbers, too few or too many of them, or no prompt at all."""
    points = [_numbers(click, "--click", (2, 3)) for click in clicks]
    return Prompt(
        point_coords=np.array([p[:2] for p in points], np.float32) if points else None,
        point_labels=np.array([p[2] if len(p) == 3 else 1 for p in points]) if points else None,
        box=np.array(_numbers(box, "--box", (4,)), np.float32) if box else None,
        text=text,
    )


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    center, width = _numbers(text, "--window", (2,))
    return center, width


def _numbers(text: str, option: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Raises PromptError: not as many numbers as one of ``counts``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        expected = " or ".join(map(str, counts))
        raise PromptError(f"{option}: expected {expected} numbers with commas between them, got {text[:80]!r}")
    return values


def _report(prediction: Prediction, volume: Volume, index: int, text: str | None) -> dict[str, object]:
    area_px = int(prediction.mask.sum())
    row_mm, column_mm = volume.pixel_spacing_mm()
    return {
        "iou_prediction": round(prediction.iou_prediction, 4),
        "area_px": area_px,
        "area_mm2": round(area_px * row_mm * column_mm, 3) if volume.has_spacing else None,
        "slice": index,
        "num_slices": volume.num_slices(),
        "text": text,
    }


def _check_outputs(*paths: Path | None) -> None:
    """Before the work, not after it. Raises ImageError: neither PNG nor in an existing folder, or the same twice."""
    given = [path for path in paths if path is not None]
    for path in given:
        if path.suffix.lower() != ".png":
            raise ImageError(f"{path.name}: expected a name that ends in .png")
        if not path.parent.is_dir():
            raise ImageError(f"{path.name}: there is no folder {path.parent} to write it into")
        if path.is_dir():
            raise ImageError(f"{path.name}: is a folder, expected a file to write")
    if len({path.resolve() for path in given}) < len(given):
        raise ImageError("--out and --overlay: expected two files, got the same one twice")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--image", required=True, type=Path, help="NIfTI, NRRD, DICOM, PNG, JPEG, TIFF, BMP, or a DICOM series' folder")
    add("--slice", type=int, metavar="K", help="slice of a volume, from 0 (default: the middle one)")
    add(
        "--click", action="append", default=[], metavar="X,Y[,0|1]", help="pixel in the target; ,0: outside; repeatable"
    )
    add("--box", metavar="X0,Y0,X1,Y1", help="two opposite corners in pixels")
    add("--text", metavar="NAME", help="the target's name")
    add("--out", required=True, type=Path, metavar="MASK.png", help="mask: 0 or 255, of the slice's size")
    add("--overlay", type=Path, metavar="O.png", help="a picture of image, mask and prompt")
    add(
        "--window",
        metavar="CENTER,WIDTH",
        help="grey values shown from black to white, HU for CT (default: by modality)",
    )
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help="default: %(default)s")
    add("--weights", type=Path, metavar="FILE", help="safetensors file (default: the model's own)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
