"""Prompts and predictions as the tensors of the interactive Triton model; the only owner of their names.

One request asks for P targets of one image. All its prompts are of one kind and number of clicks, since nothing is
ever padded. Coordinates are pixels of the original image. Whatever a prompt lacks is left out of the request.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from imis_net.errors import PromptError, ServingError
from imis_net.prompts import MAX_NUM_CLICKS, Prediction, Prompt

MODEL = "imis_interactive"

HANDLE = "handle"  # BYTES [1], image_handle() of the image
IMAGE = "image"  # UINT8 [H, W, 3], left out where the server has seen it
POINT_COORDS = "point_coords"  # FP32 [P, N, 2], (x, y)
POINT_LABELS = "point_labels"  # INT64 [P, N], 1 foreground, 0 background
BOXES = "boxes"  # FP32 [P, 4], x0, y0, x1, y1
TEXTS = "texts"  # BYTES [P], UTF-8
LOW_RES_MASKS = "low_res_masks"  # FP32 [P, S/4, S/4] logits; an output of the same name is the next request's input
PREFETCH = "prefetch"  # BOOL [1], true: nobody waits for this image yet, others go first

PACKED_MASKS = "packed_masks"  # UINT8 [P, ceil(H * W / 8)], numpy.packbits of the rows
IOU_PREDICTIONS = "iou_predictions"  # FP32 [P]
SEMANTIC_EMBEDDINGS = "semantic_embeddings"  # FP32 [P, D], D is 0 where there are none
INFO = "info"  # BYTES [1], a JSON object: what answered, see InteractiveModel.info

UNKNOWN_HANDLE = "unknown image handle"
"""How a refusal that asks for the image begins."""
ANSWERS = (PACKED_MASKS, LOW_RES_MASKS, IOU_PREDICTIONS, SEMANTIC_EMBEDDINGS)
MAX_TARGETS = 256
"""Per request; more than a person draws on one image."""

Tensors = Mapping[str, np.ndarray]


def image_handle(image: np.ndarray) -> str:
    """Names an image by its content, so that equal images share an encoder run and a name can be verified."""
    shape = "x".join(str(side) for side in image.shape).encode()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, person=shape[:16]).hexdigest()


def as_bytes(texts: Sequence[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=np.object_)


def as_text(tensor: np.ndarray) -> str:
    return bytes(tensor.reshape(-1)[0]).decode(errors="replace")


def alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts that may share a request."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(prompts):
        groups[(p.num_clicks, p.box is None, p.text is None, p.low_res_mask is None)].append(i)
    return [part for group in groups.values() for part in _chunks(group)]


def _chunks(group: list[int]) -> Iterable[list[int]]:
    return (group[i : i + MAX_TARGETS] for i in range(0, len(group), MAX_TARGETS))


def from_prompts(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Alike prompts -> tensors."""
    parts = {
        POINT_COORDS: [p.point_coords for p in prompts],
        POINT_LABELS: [p.point_labels for p in prompts],
        BOXES: [p.box for p in prompts],
        LOW_RES_MASKS: [p.low_res_mask for p in prompts],
    }
    tensors = {name: np.stack(given) for name, all_ in parts.items() if (given := [a for a in all_ if a is not None])}
    texts = [p.text for p in prompts if p.text is not None]
    return tensors | ({TEXTS: as_bytes(texts)} if texts else {})


def to_prompts(tensors: Tensors) -> list[Prompt]:
    """Tensors, which may come from anybody, -> prompts; none where there are none.

    Raises:
        PromptError: tensors that disagree about P, too many targets or clicks, or anything ``Prompt`` refuses.
    """
    given = {n: tensors[n] for n in (POINT_COORDS, POINT_LABELS, BOXES, TEXTS, LOW_RES_MASKS) if n in tensors}
    counts = {name: len(tensor) for name, tensor in given.items()}
    if not counts:
        return []
    if len(set(counts.values())) > 1:
        raise PromptError(f"prompts: expected one number of targets in every tensor, got {counts}")
    num_targets = next(iter(counts.values()))
    if not 1 <= num_targets <= MAX_TARGETS:
        raise PromptError(f"prompts: expected 1 to {MAX_TARGETS} targets in a request, got {num_targets}")
    coords = given.get(POINT_COORDS)
    if coords is not None and coords.shape[1] > MAX_NUM_CLICKS:
        raise PromptError(f"too many clicks: got {coords.shape[1]}, at most {MAX_NUM_CLICKS}")
    return [_prompt({name: tensor[i] for name, tensor in given.items()}) for i in range(num_targets)]


def _prompt(parts: Mapping[str, np.ndarray]) -> Prompt:
    text = parts.get(TEXTS)
    return Prompt(
        point_coords=parts.get(POINT_COORDS),
        point_labels=parts.get(POINT_LABELS),
        box=parts.get(BOXES),
        text=None if text is None else bytes(text).decode(errors="replace"),
        low_res_mask=parts.get(LOW_RES_MASKS),
    )


def from_predictions(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    semantic = [p.semantic_embedding for p in predictions if p.semantic_embedding is not None]
    return {
        PACKED_MASKS: np.stack([np.packbits(p.mask.reshape(-1)) for p in predictions]),
        LOW_RES_MASKS: np.stack([p.low_res_mask for p in predictions]).astype(np.float32),
        IOU_PREDICTIONS: np.array([p.iou_prediction for p in predictions], np.float32),
        SEMANTIC_EMBEDDINGS: np.stack(semantic) if semantic else np.zeros((len(predictions), 0), np.float32),
    }


def to_predictions(
    tensors: Tensors, num_targets: int, original_size: tuple[int, int], image_size: int
) -> list[Prediction]:
    """Tensors -> predictions.

    Raises:
        ServingError: anything that cannot be the answer to ``num_targets`` prompts on such an image.
    """
    height, width = original_size
    expected = {
        PACKED_MASKS: (np.uint8, (num_targets, -(-height * width // 8))),
        LOW_RES_MASKS: (np.float32, (num_targets, image_size // 4, image_size // 4)),
        IOU_PREDICTIONS: (np.float32, (num_targets,)),
    }
    for name, (dtype, shape) in expected.items():
        got = tensors.get(name)
        if got is None or got.dtype != dtype or got.shape != shape:
            what = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
            raise ServingError(f"Triton answered {name}: {what}, expected {np.dtype(dtype)} {list(shape)}")
        if not np.isfinite(got).all():
            raise ServingError(f"Triton answered {name} with values that are not finite")
    semantic = tensors.get(SEMANTIC_EMBEDDINGS, np.zeros((num_targets, 0), np.float32))
    masks = np.unpackbits(tensors[PACKED_MASKS], axis=1, count=height * width).astype(bool)
    return [
        Prediction(
            masks[i].reshape(height, width),
            float(tensors[IOU_PREDICTIONS][i]),
            tensors[LOW_RES_MASKS][i],
            semantic[i] if semantic.shape[1] else None,
        )
        for i in range(num_targets)
    ]


def from_info(info: Mapping[str, object]) -> np.ndarray:
    return as_bytes([json.dumps(info)])


def to_info(tensor: np.ndarray | None) -> dict[str, object]:
    """The answer's JSON object.

    Raises:
        ServingError: not one.
    """
    try:
        info = json.loads(as_text(tensor)) if tensor is not None else None
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise ServingError(f"Triton answered {INFO}: expected a JSON object, got something else")
    return info
