"""The tensors of the interactive model: what goes in comes out, what cannot be right is refused."""

from __future__ import annotations

import numpy as np
import pytest

from imis_net.errors import PromptError, ServingError
from imis_net.prompts import Prediction, Prompt
from imis_net.serving import wire

CLICK = Prompt(point_coords=[[1, 2]], point_labels=[1])
CORRECTED = Prompt(point_coords=[[1, 2], [3, 4]], point_labels=[1, 0], low_res_mask=np.ones((4, 4)))
NAMED = Prompt(box=[0, 0, 9, 9], text="Milz, groß")


@pytest.mark.parametrize("prompts", [[CLICK], [CORRECTED, CORRECTED], [NAMED]])
def test_prompts_survive(prompts: list[Prompt]) -> None:
    """Breaks if any part of a prompt is lost or changed between client and server."""
    back = wire.to_prompts(wire.from_prompts(prompts))
    assert len(back) == len(prompts)
    for sent, got in zip(prompts, back, strict=True):
        for part in ("point_coords", "point_labels", "box", "low_res_mask"):
            np.testing.assert_array_equal(getattr(sent, part), getattr(got, part))
        assert got.text == sent.text


def test_only_alike_prompts_share_a_request() -> None:
    """Breaks if prompts of unlike kind or number of clicks would have to be padded."""
    assert sorted(wire.alike([CLICK, NAMED, CLICK, CORRECTED])) == [[0, 2], [1], [3]]
    assert [len(group) for group in wire.alike([CLICK] * (wire.MAX_TARGETS + 1))] == [wire.MAX_TARGETS, 1]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({wire.BOXES: np.ones((2, 4)), wire.TEXTS: wire.as_bytes(["liver"])}, "one number of targets"),
        ({wire.BOXES: np.ones((0, 4))}, "1 to 256 targets, got 0|1 to 256 targets in a request, got 0"),
        ({wire.BOXES: np.ones((257, 4))}, "got 257"),
        ({wire.POINT_COORDS: np.ones((1, 10_000, 2)), wire.POINT_LABELS: np.ones((1, 10_000))}, "too many clicks"),
        ({wire.POINT_COORDS: np.ones((1, 1, 2))}, "without the other"),
        ({wire.BOXES: np.array([[0, 0, np.nan, 5]])}, "finite"),
    ],
)
def test_hostile_tensors_are_refused_with_the_reason(tensors: wire.Tensors, message: str) -> None:
    """Breaks if a stranger's tensors reach the network unchecked."""
    with pytest.raises(PromptError, match=message):
        wire.to_prompts(tensors)


def prediction() -> Prediction:
    mask = np.zeros((5, 7), bool)
    mask[1, 3] = mask[4, 6] = True
    return Prediction(mask, 0.75, np.full((4, 4), -1.5, np.float32), np.ones(8, np.float32))


def test_predictions_survive_packing() -> None:
    """Breaks if masks whose pixels do not fill whole bytes are shifted or cut."""
    (back,) = wire.to_predictions(wire.from_predictions([prediction()]), 1, (5, 7), 16)
    np.testing.assert_array_equal(back.mask, prediction().mask)
    np.testing.assert_array_equal(back.low_res_mask, prediction().low_res_mask)
    assert back.iou_prediction == 0.75
    assert back.semantic_embedding is not None


@pytest.mark.parametrize(
    "change",
    [
        {wire.LOW_RES_MASKS: np.full((1, 4, 4), np.nan, np.float32)},
        {wire.IOU_PREDICTIONS: np.array([np.inf], np.float32)},
        {wire.PACKED_MASKS: np.zeros((1, 4), np.uint8)},
        {wire.PACKED_MASKS: np.zeros((2, 5), np.uint8)},
        {wire.LOW_RES_MASKS: np.zeros((1, 4, 4), np.float64)},
        {wire.IOU_PREDICTIONS: None},
    ],
)
def test_an_answer_that_cannot_be_right_is_no_mask(change: dict) -> None:
    """Breaks if a broken server's answer is shown to a physician as a mask."""
    answer = {k: v for k, v in (wire.from_predictions([prediction()]) | change).items() if v is not None}
    with pytest.raises(ServingError, match="Triton answered"):
        wire.to_predictions(answer, 1, (5, 7), 16)


def test_an_image_is_named_by_content_and_shape() -> None:
    """Breaks if two images can share an embedding, or one image gets two."""
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert wire.image_handle(image) == wire.image_handle(image.copy(order="F"))
    assert wire.image_handle(image) != wire.image_handle(image.reshape(4, 2, 3))
    assert wire.image_handle(image) != wire.image_handle(image + 1)


@pytest.mark.parametrize("tensor", [None, wire.as_bytes(["["]), wire.as_bytes(["[1]"])])
def test_info_is_an_object(tensor: np.ndarray | None) -> None:
    """Breaks if an answer without its origin is trusted."""
    with pytest.raises(ServingError, match="info"):
        wire.to_info(tensor)
