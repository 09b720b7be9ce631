"""The network as a whole, in its compact size, and the segmenter on it."""

import numpy as np
import pytest
import torch

from imis_net.errors import CheckpointError, ImageError, PromptError
from imis_net.networks.build import imis_net_compact
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import TorchSegmenter, load_segmenter


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return imis_net_compact(image_size=256).eval()


@pytest.fixture(scope="module")
def segmenter(network) -> TorchSegmenter:
    return TorchSegmenter(network)


@pytest.fixture(scope="module")
def embedding(segmenter) -> ImageEmbedding:
    return segmenter.encode_image(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8))


def click(x: float, y: float, label: int = 1) -> Prompt:
    return Prompt(np.array([[x, y]]), np.array([label]))


BOX = Prompt(box=np.array([10, 10, 60, 50]))
TEXT = Prompt(text="liver")
BOTH = Prompt(np.array([[30, 30], [5, 5]]), np.array([1, 0]), np.array([10, 10, 60, 50]), "spleen")


def test_many_prompts_in_one_call_equal_one_by_one(segmenter, embedding):
    """Breaks if prompts share anything but the image, are padded to a common length, or come back in another order."""
    prompts = [BOX, click(20, 30), TEXT, BOTH, click(90, 80), BOX]
    together = segmenter.predict_batch(embedding, prompts)
    for prompt, prediction in zip(prompts, together, strict=True):
        alone = segmenter.predict(embedding, prompt)
        np.testing.assert_allclose(prediction.low_res_mask, alone.low_res_mask, atol=1e-4)
        assert prediction.iou_prediction == pytest.approx(alone.iou_prediction, abs=1e-5)
        assert prediction.mask.shape == (100, 150)


def test_each_kind_of_prompt_changes_the_mask(segmenter, embedding):
    """Breaks if a prompt kind is dropped on the way to the decoder."""
    logits = segmenter.predict(embedding, BOX).low_res_mask
    previous = Prompt(box=BOX.box, low_res_mask=np.full((64, 64), 3.0, np.float32))
    with_text = Prompt(box=BOX.box, text="liver")
    with_click = Prompt(np.array([[20, 20]]), np.array([0]), BOX.box)
    for prompt in (previous, with_text, with_click):
        assert np.abs(segmenter.predict(embedding, prompt).low_res_mask - logits).max() > 1e-4


def test_predicting_changes_no_state(segmenter, embedding):
    """Breaks if one user's click leaves something behind for the next."""
    first = segmenter.predict(embedding, BOX).low_res_mask
    segmenter.predict(embedding, BOTH)
    assert np.array_equal(segmenter.predict(embedding, BOX).low_res_mask, first)


def test_embedding_of_another_encoder_is_refused(segmenter, embedding):
    """Breaks if a retrained encoder decodes what the old one cached."""
    stale = ImageEmbedding(embedding.features, embedding.original_size, "another")
    with pytest.raises(PromptError, match="another encoder"):
        segmenter.predict(stale, BOX)


def test_digests_tell_encoder_from_decoder(network):
    """Breaks if a retrained decoder throws away every cached embedding, or a retrained encoder keeps them."""
    before = TorchSegmenter(network)
    with torch.no_grad():
        network.mask_decoder.iou_token.weight.add_(1)
    decoder_changed = TorchSegmenter(network)
    with torch.no_grad():
        network.mask_decoder.iou_token.weight.sub_(1)
        network.image_encoder.lateral_8.bias.add_(1)
    encoder_changed = TorchSegmenter(network)
    with torch.no_grad():
        network.image_encoder.lateral_8.bias.sub_(1)
    assert decoder_changed.encoder_digest == before.encoder_digest != encoder_changed.encoder_digest
    assert decoder_changed.weights_digest != before.weights_digest


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (click(150, 20), "outside the image"),
        (Prompt(text="unicorn"), "unknown text.*nearest"),
        (Prompt(low_res_mask=np.zeros((32, 32))), "previous mask: expected"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(segmenter, embedding, prompt, message):
    """Breaks if a prompt that cannot be meant gives a mask all the same."""
    with pytest.raises(PromptError, match=message):
        segmenter.predict(embedding, prompt)


def test_grey_image_is_refused(segmenter):
    """Breaks if an array of another form is encoded."""
    with pytest.raises(ImageError):
        segmenter.encode_image(np.zeros((10, 10), np.uint8))


@torch.no_grad()
def test_forward_knows_an_image_alone(network):
    """Breaks if MONAI's bundle tools, which only know an image, cannot run the network."""
    assert network(torch.rand(2, 3, 256, 256) * 255).shape == (2, 1, 256, 256)


@pytest.mark.parametrize(("name", "message"), [("imis_net_xl", "unknown model"), ("imis_net_vit_b", "no weights")])
def test_missing_model_or_weights_are_named(name, message):
    """Breaks if a typing error builds a network with random weights."""
    with pytest.raises(CheckpointError, match=message):
        load_segmenter(name, weights=None if name == "imis_net_xl" else "missing.safetensors")


def test_the_shipped_weights_load(default_segmenter):
    """Breaks if the committed file no longer fits the committed architecture."""
    assert "liver" in default_segmenter.known_texts
