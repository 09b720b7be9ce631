"""Compare our IMIS-Net with golden outputs of the reference network, array by array.

    python scripts/check_parity.py --golden DIR [--only NAME]

Weights are drawn by the golden set's recipe under the official checkpoint's names and go through the key map that
loads official checkpoints. One line per case with its largest error; exit status 1 if anything is missing or out of
tolerance.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

from imis_net.checkpoint import LAYOUTS, convert, fill
from imis_net.metrics import dice, iou
from imis_net.networks.build import imis_net_vit_b
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.text_encoder import EOT_ID
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter

Arrays = dict[str, np.ndarray]

EMBEDDING_SUFFIXES = (
    "pos_embed",
    *(f"point_embeddings.{i}.weight" for i in range(4)),
    *(f"{n}.weight" for n in ("not_a_point_embed", "no_mask_embed", "iou_token", "mask_tokens", "semantic_tokens")),
    *(f"{n}.weight" for n in ("token_embedding", "position_embedding")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder with manifest.json and .npz files")
    parser.add_argument("--only", default="", help="only scenes or cases whose file name begins so")
    args = parser.parse_args()
    try:
        manifest = json.loads((args.golden / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        print(f"{args.golden}: expected a golden set with a manifest.json ({error})", file=sys.stderr)
        return 2
    num_arrays = num_bad = 0
    for scene in manifest["scenes"]:
        files = [f for f in manifest["files"] if f.split("__")[0].removesuffix(".npz") == scene["name"]]
        wanted = sorted(f for f in files if f.startswith(args.only))
        if not wanted:
            continue
        start = time.perf_counter()
        checker = SceneChecker(args.golden, scene)
        for name in wanted:
            produced = checker.produce(name)
            with np.load(args.golden / name) as golden:
                errors = [_compare(k, produced.get(k), golden[k], manifest["tolerances"]) for k in golden.files]
            num_arrays += len(errors)
            num_bad += _report(name, errors)
        if "loss" in scene and f"{scene['name']}__loss".startswith(args.only or scene["name"]):
            errors = checker.check_loss(scene["loss"])
            num_arrays += len(errors)
            num_bad += _report(f"{scene['name']}__loss", errors)
        print(f"     {scene['name']}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"compared {num_arrays} arrays, {num_bad} missing or out of tolerance")
    return 1 if num_bad or not num_arrays else 0


class SceneChecker:
    """One scene's network and image; makes the arrays of its files."""

    def __init__(self, golden: Path, scene: dict) -> None:
        self.golden, self.scene = golden, scene
        self.cases = {case["file"]: case for case in scene["cases"].values()}
        self.network = imis_net_vit_b(image_size=scene["size"]).eval()
        fill_by_recipe(self.network, json.loads((golden / scene["weights_manifest"]).read_text()), scene["weight_salt"])
        self.segmenter = TorchSegmenter(self.network)
        self.stages: Arrays = {}
        if "image" in scene:
            self.image = make_image(scene["image"]["seed"], scene["image"]["h"], scene["image"]["w"])
            with self._recorded_stages():
                self.embedding = self.segmenter.encode_image(self.image)
            self.features = self.embedding.features
        else:
            side = scene["embedding"]["side"]
            drawn = np.random.RandomState(scene["embedding"]["seed"]).standard_normal((1, 768, side, side))
            self.features = (torch.from_numpy(drawn.astype(np.float32)),)

    def produce(self, name: str) -> Arrays:
        """The arrays of one golden file, at its own sampling."""
        with np.load(self.golden / name) as file:
            golden = dict(file)
        if name in self.cases:
            full = self._case(self.cases[name], golden)
        elif name.endswith("__predictor.npz"):
            full = self._predictor()
        else:
            full = self._scene_arrays()
        return dict(_sampled(full, golden))

    def _scene_arrays(self) -> Arrays:
        arrays = dict(self.stages)
        arrays["dense_pe"] = self.network.prompt_encoder.dense_pe().numpy()
        if "image" in self.scene:
            pixels = self.segmenter.frame.image(self.image)
            arrays["preprocessed"] = ((pixels - self.network.pixel_mean) / self.network.pixel_std).numpy()
            embedding = self.features[0].numpy()
            arrays["image_embedding"] = embedding
            arrays["image_embedding.channel_mean"] = embedding.mean((0, 2, 3))
            arrays["image_embedding.channel_std"] = embedding.std((0, 2, 3))
        return arrays

    def _recorded_stages(self) -> _Recorder:
        encoder = self.network.image_encoder
        trunk, neck = encoder.get_submodule("trunk"), encoder.get_submodule("neck")
        recorder = _Recorder(self.stages)
        recorder.output("stage.patch_embed", trunk.get_submodule("patch_embed"))
        blocks = list(trunk.get_submodule("blocks").children())
        recorder.input("stage.after_pos_embed", blocks[0])
        for i, block in enumerate(blocks):
            recorder.output(f"stage.block{i:02d}", block)
        for i, layer in enumerate(neck.children()):
            recorder.output(f"stage.neck{i}", layer)
        return recorder

    @torch.inference_mode()
    def _case(self, case: dict, golden: Arrays) -> Arrays:
        net, prompt = self.network, case["prompt"]
        arrays: Arrays = {}
        coords = labels = boxes = text = masks = None
        if "points" in prompt:
            arrays["in.point_coords"] = np.array(prompt["points"][0], np.float32)
            arrays["in.point_labels"] = np.array(prompt["points"][1], golden["in.point_labels"].dtype)
            coords, labels = (torch.from_numpy(arrays[k]) for k in ("in.point_coords", "in.point_labels"))
        if "boxes" in prompt:
            arrays["in.bboxes"] = np.array(prompt["boxes"], np.float32).reshape(-1, 1, 4)
            boxes = torch.from_numpy(arrays["in.bboxes"])[:, 0]
        if "text" in prompt:
            ids = net.text_encoder.tokenize(prompt["text"])
            arrays.update(_token_arrays(ids, golden))
            arrays["text.pooled"] = net.text_encoder(ids).numpy()
            text = net.encode_text(prompt["text"])
            arrays["text.projected"] = text.numpy()
        if "in.mask_inputs" in golden:  # the reference's own low-res mask is an input, not a result
            arrays["in.mask_inputs"] = golden["in.mask_inputs"]
            masks = torch.from_numpy(golden["in.mask_inputs"])
        sparse, dense = net.prompt_encoder(coords, labels, boxes, text, masks)
        output = net.predict_masks(self.features, coords, labels, boxes, text, masks)
        low_res, iou_selected, index = output.best()
        side = self.scene["size"]
        upsampled = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
        offset, stride, coarse = case["masks_up_offset"], case["masks_up_stride"], case["masks4_stride"]
        return arrays | {
            "out.sparse": sparse.numpy(),
            "out.dense": dense[0].numpy(),
            "out.decoder_tokens": output.tokens.numpy(),
            "out.decoder_src": output.src.numpy(),
            "out.masks4": output.low_res_masks[..., ::coarse, ::coarse].numpy(),
            "out.iou4": output.iou_predictions.numpy(),
            "out.semantic4": output.semantic_embeddings.numpy(),
            "out.best_index": (index - 1).numpy(),
            "out.low_res_selected": low_res.numpy(),
            "out.iou_selected": iou_selected[:, None].numpy(),
            "out.masks_up.strided": upsampled[..., offset::stride, offset::stride].numpy(),
            "out.masks_up.positive_count": (upsampled > 0).sum((1, 2, 3)).numpy(),
        }

    def _predictor(self) -> Arrays:
        """End to end in original pixels, through the segmenter."""
        arrays: Arrays = {}
        size = self.embedding.original_size
        for name, call in self.scene["predictor"]["calls"].items():
            given = call["inputs"]
            texts = given.get("text", [None])
            prompts = [
                Prompt(given.get("point_coords"), given.get("point_labels"), box, text)
                for box in given.get("box", [None])
                for text in texts
            ]
            predictions = self.segmenter.predict_batch(self.embedding, prompts)
            low_res = torch.from_numpy(np.stack([p.low_res_mask for p in predictions])[:, None])
            logits = self.segmenter.frame.to_original(low_res, size).numpy()
            arrays[f"{name}.logits.strided4"] = logits[..., ::4, ::4]
            arrays[f"{name}.mask_bits"] = np.packbits(np.stack([p.mask for p in predictions]).ravel())
            arrays[f"{name}.low_res_last"] = low_res[-1].numpy()
        return arrays

    def check_loss(self, want: dict) -> list[tuple[str, bool, str, float]]:
        """The reference's loss and every parameter's gradient norm, for the setup that the manifest words describe."""
        net, side = self.network, self.scene["size"]
        case = self.scene["cases"]["multi_clicks_B3"]
        with np.load(self.golden / case["file"]) as file:
            golden = dict(file)
            best = golden["out.best_index"] + 1
            previous = golden.get("out.low_res_selected")
            if previous is None:
                previous = golden["out.masks4"][np.arange(len(best)), best][:, None]
        coords, labels = (torch.tensor(v) for v in case["prompt"]["points"])
        net.zero_grad()
        text = net.encode_text(["liver", "spleen", "pancreas"])
        features = tuple(f.clone() for f in self.features)
        output = net.predict_masks(features, coords, labels, None, text, torch.from_numpy(previous))
        low_res, iou_predictions, _ = output.best()
        logits = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
        truth = torch.zeros_like(logits)
        q = side // 8
        for b, (rows, columns) in enumerate(
            (((q, 3 * q), (2 * q, 5 * q)), ((4 * q, 7 * q), (q, 2 * q)), ((5 * q, 6 * q), (5 * q, 8 * q)))
        ):
            truth[b, 0, slice(*rows), slice(*columns)] = 1
        got = reference_loss(logits, truth, iou_predictions)
        got["total"].backward()
        results = [_close(f"loss.{k}", got[k].item(), want[k], 2e-5, 0) for k in ("total", "focal", "dice", "iou_mse")]
        masks, target = (logits > 0).numpy()[:, 0], truth.numpy()[:, 0] > 0
        for name, metric in (("dice_per_mask", dice), ("iou_per_mask", iou)):
            values = [metric(m, t) for m, t in zip(masks, target, strict=True)]
            results += [
                _close(f"{name}.{i}", v, w, 0, 1e-4) for i, (v, w) in enumerate(zip(values, want[name], strict=True))
            ]
        return results + self._check_gradients(want)

    def _check_gradients(self, want: dict) -> list[tuple[str, bool, str, float]]:
        rename, _ = LAYOUTS["imis-bench"]
        parameters = dict(self.network.named_parameters())
        norms = {k: 0.0 if p.grad is None else float(p.grad.norm()) for k, p in parameters.items()}
        results = [_close(f"grad.{k}", norms[rename(k)], w, 2e-3, 1e-5) for k, w in want["grad_l2"].items()]
        return results + [_close(f"grad.{k}", norms[rename(k)], 0.0, 0, 0) for k in want["no_gradient"]]


class _Recorder:
    """Keeps what passes through modules while it is entered."""

    def __init__(self, into: Arrays) -> None:
        self._into = into
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def output(self, name: str, module: nn.Module) -> None:
        self._handles.append(module.register_forward_hook(lambda _m, _i, out: self._keep(name, out)))

    def input(self, name: str, module: nn.Module) -> None:
        self._handles.append(module.register_forward_pre_hook(lambda _m, args: self._keep(name, args[0])))

    def _keep(self, name: str, value: Tensor) -> None:
        self._into[name] = value.numpy().copy()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def reference_loss(logits: Tensor, truth: Tensor, iou_predictions: Tensor) -> dict[str, Tensor]:
    """IMIS-Bench's formula: Dice and IoU over the whole batch as one set. For parity only; see ``imis_net.losses``."""
    p = logits.sigmoid()
    correct = torch.where(truth == 1, p, 1 - p)
    alpha = torch.where(truth == 1, 0.25, 0.75)
    focal = -(alpha * (1 - correct) ** 2 * torch.log(correct + 1e-12)).mean()
    overlap, total = (p * truth).sum(), p.sum() + truth.sum()
    dice_term = 1 - (2 * overlap + 1) / (total + 1)
    soft_iou = (overlap + 1e-7) / (total - overlap + 1e-7)
    iou_mse = ((iou_predictions - soft_iou) ** 2).mean()
    return {"focal": focal, "dice": dice_term, "iou_mse": iou_mse, "total": 20 * focal + dice_term + iou_mse}


def fill_by_recipe(network: IMISNet, weights: dict, salt: str) -> None:
    """Draw the official checkpoint's tensors and load them as ``convert_checkpoint`` would."""
    drawn = {key: torch.from_numpy(_draw(key, entry["shape"], salt)) for key, entry in weights.items()}
    state, _ = convert(drawn, "imis-bench")
    problems = fill(network, state).problems()
    if problems:
        raise SystemExit(f"the golden weights do not fit\n{problems}")


def _draw(key: str, shape: list[int], salt: str) -> np.ndarray:
    z = np.random.RandomState(_seed(f"{key}|{salt}" if salt else key)).standard_normal(tuple(shape))
    if key.endswith("positional_encoding_gaussian_matrix"):
        scaled = z
    elif len(shape) == 1:
        scaled = 0.1 * z + (1.0 if key.endswith(".weight") else 0.0)
    elif key.endswith(("rel_pos_h", "rel_pos_w")):
        scaled = 0.1 * z
    elif key.endswith(EMBEDDING_SUFFIXES):
        scaled = 0.5 * z
    else:
        scaled = z * (1.0 / math.sqrt(math.prod(shape) // shape[0]))
    return scaled.astype(np.float32)


def make_image(seed: int, height: int, width: int) -> np.ndarray:
    """The golden sets' uint8 test image [H, W, 3]: 16-pixel blocks and pixel noise."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 200, (-(-height // 16), -(-width // 16), 3))
    blocks = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return (blocks + random.randint(0, 56, (height, width, 3))).astype(np.uint8)


def _seed(text: str) -> int:
    return zlib.crc32(text.encode("utf-8")) & 0xFFFFFFFF


def _token_arrays(ids: Tensor, golden: Arrays) -> Arrays:
    """Our ids padded as the reference pads: to the longest, with the end-of-text id."""
    lengths = (ids != EOT_ID).long().cumprod(1).sum(1) + 1
    longest = int(lengths.max())
    mask = torch.arange(longest)[None] < lengths[:, None]
    padded = torch.where(mask, ids[:, :longest], torch.tensor(EOT_ID))
    arrays = {"in.text_input_ids": padded, "in.text_attention_mask": mask.long()}
    return {k: v.numpy().astype(golden[k].dtype) for k, v in arrays.items()}


def _sampled(full: Arrays, golden: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    for key, want in golden.items():
        stem, _, kind = key.rpartition(".")
        if key in full:
            yield key, full[key]
        elif kind == "sample" and stem in full:
            yield key, full[stem].ravel()[_sample_index(stem, full[stem].size, want.size)]
        elif kind == "stats" and stem in full:
            x = full[stem].astype(np.float64)
            yield key, np.array([x.mean(), x.std(), x.min(), x.max(), np.abs(x).mean()])


def _sample_index(name: str, size: int, count: int) -> np.ndarray:
    if size <= count:
        return np.arange(size)
    return np.sort(np.random.RandomState(_seed(f"sample:{name}")).choice(size, count, replace=False))


def _compare(name: str, got: np.ndarray | None, want: np.ndarray, rules: list[dict]) -> tuple[str, bool, str, float]:
    if got is None:
        return name, False, "missing", 0.0
    if got.shape != want.shape:
        return name, False, f"shape {got.shape}, expected {want.shape}", 0.0
    rule = next(r for r in rules if fnmatch.fnmatch(name, r["pattern"]))
    if rule["kind"] == "exact":
        return name, bool(np.array_equal(got, want)), "differs", 0.0
    if rule["kind"] == "bits":
        flipped = int(np.unpackbits(got ^ want).sum())
        return name, flipped <= rule["atol"], f"{flipped} flipped pixels", 0.0
    if rule["kind"] == "count":
        off = int(np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0))
        return name, off <= rule["atol"], f"off by {off} pixels", 0.0
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    within = bool((error <= rule["atol"] + rule["rtol"] * np.abs(want)).all()) and bool(np.isfinite(got).all())
    worst = float(error.max(initial=0.0))
    return name, within, f"off by {worst:.2e}", worst


def _close(name: str, got: float, want: float, rtol: float, atol: float) -> tuple[str, bool, str, float]:
    error = abs(got - want)
    return name, error <= atol + rtol * abs(want), f"{got:.8g}, expected {want:.8g}", error


def _report(name: str, errors: list[tuple[str, bool, str, float]]) -> int:
    bad = [(key, message) for key, ok, message, _ in errors if not ok]
    worst = max(errors, key=lambda e: e[3])
    print(f"{'FAIL' if bad else 'ok  '} {name}: {len(errors)} arrays, largest error {worst[3]:.2e} ({worst[0]})")
    for key, message in bad:
        print(f"       {key}: {message}")
    return len(bad)


if __name__ == "__main__":
    sys.exit(main())
