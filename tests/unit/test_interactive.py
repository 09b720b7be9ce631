"""The interactive model without a server: handles, single flight, bounds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from imis_net.errors import PromptError, UnknownHandleError
from imis_net.networks.build import imis_net_compact
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import TorchSegmenter
from imis_net.serving import wire
from imis_net.serving.interactive import InteractiveModel


class CountingSegmenter(TorchSegmenter):
    num_encoded = 0

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        self.num_encoded += 1
        return super().encode_image(image)


@pytest.fixture(scope="module")
def segmenter() -> CountingSegmenter:
    torch.manual_seed(0)
    return CountingSegmenter(imis_net_compact(image_size=64))


@pytest.fixture
def model(segmenter: CountingSegmenter) -> InteractiveModel:
    segmenter.num_encoded = 0
    return InteractiveModel(lambda: segmenter, cache_bytes=1 << 20)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 40, 3)).astype(np.uint8)


def named(image: np.ndarray) -> dict[str, np.ndarray]:
    return {wire.HANDLE: wire.as_bytes([wire.image_handle(image)])}


CLICK = wire.from_prompts([Prompt(point_coords=[[5, 6]], point_labels=[1])])


def test_a_handle_is_enough_after_the_image(model: InteractiveModel, segmenter: CountingSegmenter) -> None:
    """Breaks if a click needs the image again, encodes again, or answers otherwise than the segmenter."""
    image = picture(0)
    first = model.answer({**named(image), wire.IMAGE: image})
    answer = model.answer({**named(image), **CLICK})
    assert set(first) == {wire.INFO}
    assert wire.to_info(answer[wire.INFO])["cache_hit"] is True
    (got,) = wire.to_predictions(answer, 1, (48, 40), 64)
    assert segmenter.num_encoded == 1
    want = segmenter.predict(segmenter.encode_image(image), wire.to_prompts(CLICK)[0])
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.low_res_mask, want.low_res_mask)


def test_an_unknown_handle_asks_for_the_image(model: InteractiveModel) -> None:
    """Breaks if a restarted server answers about some other image, or the request hangs."""
    with pytest.raises(UnknownHandleError, match="send the image"):
        model.answer({**named(picture(1)), **CLICK})


def test_users_who_send_one_image_at_once_share_a_run(model: InteractiveModel, segmenter: CountingSegmenter) -> None:
    """Breaks if six annotators on a new case cost six encoder runs."""
    image = picture(2)
    request = {**named(image), wire.IMAGE: image, **CLICK}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(model.answer, [request] * 6))
    assert segmenter.num_encoded == 1
    assert len({answer[wire.PACKED_MASKS].tobytes() for answer in answers}) == 1


def test_another_images_name_is_refused(model: InteractiveModel) -> None:
    """Breaks if one client can put its image under the name of another one's."""
    with pytest.raises(PromptError, match="not the name"):
        model.answer({**named(picture(3)), wire.IMAGE: picture(4)})


def test_embeddings_are_bounded(segmenter: CountingSegmenter) -> None:
    """Breaks if the server grows with every image it has seen."""
    size = segmenter.encode_image(picture(0)).num_bytes
    model = InteractiveModel(lambda: segmenter, cache_bytes=2 * size)
    for seed in range(3):
        model.answer({**named(picture(seed)), wire.IMAGE: picture(seed)})
    model.answer({**named(picture(2)), **CLICK})
    with pytest.raises(UnknownHandleError):
        model.answer({**named(picture(0)), **CLICK})


def test_prompts_without_a_handle_are_refused(model: InteractiveModel) -> None:
    """Breaks if such a request is answered with the model's description and taken for a mask."""
    with pytest.raises(PromptError, match="handle"):
        model.answer({wire.HANDLE: wire.as_bytes([""]), **CLICK})
    assert wire.to_info(model.answer({wire.HANDLE: wire.as_bytes([""])})[wire.INFO])["frame"]["side"] == 64
