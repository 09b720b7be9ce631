"""Rivals behind the contract, against their own packages with random weights in the published layout."""

import numpy as np
import pytest
import torch
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from torch.nn import functional as F

from imis_net.adapters.medsam import MedSamSegmenter
from imis_net.adapters.sam import SamSegmenter, load_sam
from imis_net.adapters.sam2 import load_sam2
from imis_net.adapters.sam_med2d import Adapter, SamMed2dSegmenter, build_sam_med2d, load_sam_med2d
from imis_net.errors import CheckpointError, PromptError
from imis_net.prompts import Prompt

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
BOX = np.array([20, 10, 80, 70], np.float32)
CLICK = {"point_coords": np.array([[50, 40]]), "point_labels": np.array([1])}


@pytest.fixture(scope="module")
def network() -> Sam:
    """SAM's package at a small frame and depth: its code, random weights."""
    torch.manual_seed(0)
    sam = build_sam_med2d()
    encoder = ImageEncoderViT(img_size=256, depth=2, use_rel_pos=True, window_size=14, global_attn_indexes=(1,))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return Sam(encoder, sam.prompt_encoder, sam.mask_decoder).eval()


@pytest.mark.parametrize(
    ("prompt", "multimask"),
    [(Prompt(**CLICK), True), (Prompt(box=BOX), False), (Prompt(**CLICK, box=BOX), False)],
)
def test_sam_equals_its_own_predictor(network, prompt, multimask):
    """Breaks if the adapter scales, pads or chooses otherwise than SamPredictor."""
    predictor = SamPredictor(network)
    predictor.set_image(IMAGE)
    masks, iou, low_res = predictor.predict(
        prompt.point_coords, prompt.point_labels, prompt.box, multimask_output=multimask
    )
    segmenter = SamSegmenter(network)
    ours = segmenter.predict(segmenter.encode_image(IMAGE), prompt)
    best = int(iou.argmax())
    np.testing.assert_allclose(ours.low_res_mask, low_res[best], atol=1e-4)
    assert np.array_equal(ours.mask, masks[best])
    again = Prompt(**CLICK, low_res_mask=ours.low_res_mask)
    _, _, theirs = predictor.predict(*CLICK.values(), mask_input=low_res[best : best + 1], multimask_output=False)
    np.testing.assert_allclose(
        segmenter.predict(segmenter.encode_image(IMAGE), again).low_res_mask, theirs[0], atol=1e-4
    )


def test_medsam_sees_a_stretched_image_in_0_to_1_and_only_a_box(network):
    """Breaks if MedSAM is fed SAM's normalisation or padding, or accepts prompts it was never trained with."""
    segmenter = MedSamSegmenter(network)
    frame = segmenter._to_frame(IMAGE)
    assert frame.shape == (1, 3, 256, 256)
    assert (frame.min(), frame.max()) == (0, 1)
    with torch.inference_mode():
        embedding = network.image_encoder(frame)
        box = torch.tensor(BOX / [120, 90, 120, 90] * 256)[None].float()
        sparse, dense = network.prompt_encoder(points=None, boxes=box, masks=None)
        low_res, _ = network.mask_decoder(embedding, network.prompt_encoder.get_dense_pe(), sparse, dense, False)
        expected = torch.sigmoid(F.interpolate(low_res, (90, 120), mode="bilinear", align_corners=False)) > 0.5
    ours = segmenter.predict(segmenter.encode_image(IMAGE), Prompt(box=BOX))
    np.testing.assert_allclose(ours.low_res_mask, low_res[0, 0], atol=1e-4)
    assert np.array_equal(ours.mask, expected[0, 0])
    with pytest.raises(PromptError, match="takes a box"):
        segmenter.predict(segmenter.encode_image(IMAGE), Prompt(**CLICK))


def test_med2d_adapter_equals_its_formula():
    """Breaks if the adapter weighs channels after its convolutions, loses its skip or its norm."""
    torch.manual_seed(0)
    adapter, tokens = Adapter(8), torch.randn(2, 4, 4, 8)
    state = adapter.state_dict()
    maps = tokens.movedim(-1, 1)
    gate = torch.sigmoid(torch.relu(tokens.mean((1, 2)) @ state["channel.0.weight"].T) @ state["channel.2.weight"].T)
    x = torch.relu(F.conv2d(maps * gate[:, :, None, None], state["spatial.0.weight"], stride=2, padding=1))
    x = maps + torch.relu(F.conv_transpose2d(x, state["spatial.2.weight"], stride=2, padding=1))
    expected = F.layer_norm(x.movedim(1, -1), (8,), state["norm.weight"], state["norm.bias"])
    torch.testing.assert_close(adapter(tokens), expected, atol=1e-4, rtol=0)


def test_med2d_file_loads_strictly_and_its_adapters_matter(tmp_path):
    """Breaks if the published names change, or the adapters are loaded but never run."""
    torch.manual_seed(0)
    network = build_sam_med2d()
    torch.save(network.state_dict(), tmp_path / "med2d.pth")
    assert "image_encoder.blocks.11.Adapter.spatial.2.weight" in network.state_dict()
    segmenter = load_sam_med2d(tmp_path / "med2d.pth")
    before = segmenter.encode_image(IMAGE).features[0]
    torch.testing.assert_close(before, SamMed2dSegmenter(network).encode_image(IMAGE).features[0])
    for block in segmenter.network.image_encoder.blocks:
        torch.nn.init.zeros_(block.Adapter.norm.weight)
    assert not torch.allclose(before, segmenter.encode_image(IMAGE).features[0])
    assert segmenter.predict(segmenter.encode_image(IMAGE), Prompt(**CLICK)).mask.shape == (90, 120)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_sam(tmp_path / "med2d.pth")


def test_sam2_file_loads_strictly_and_equals_its_own_predictor(tmp_path):
    """Breaks if the published names change, the wrong size or version is built, or features are kept between users."""
    torch.manual_seed(0)
    network = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    torch.save({"model": network.state_dict()}, tmp_path / "sam2.pt")
    segmenter = load_sam2(tmp_path / "sam2.pt")
    predictor = SAM2ImagePredictor(network)
    predictor.set_image(IMAGE)
    embedding, _ = segmenter.encode_image(IMAGE), segmenter.encode_image(IMAGE[::-1].copy())
    for prompt, multimask in ((Prompt(**CLICK), True), (Prompt(box=BOX), False), (Prompt(**CLICK, box=BOX), False)):
        masks, iou, low_res = predictor.predict(
            prompt.point_coords, prompt.point_labels, prompt.box, multimask_output=multimask
        )
        ours = segmenter.predict(embedding, prompt)
        np.testing.assert_allclose(ours.low_res_mask, low_res[iou.argmax()], atol=1e-4)
        assert np.array_equal(ours.mask, masks[iou.argmax()] > 0)
    again = segmenter.predict(embedding, Prompt(**CLICK, low_res_mask=ours.low_res_mask))
    _, _, theirs = predictor.predict(*CLICK.values(), mask_input=low_res[:1], multimask_output=False)
    np.testing.assert_allclose(again.low_res_mask, theirs[0], atol=1e-4)
    with pytest.raises(PromptError, match="knows no text"):
        segmenter.predict(embedding, Prompt(text="liver"))
    with pytest.raises(CheckpointError, match="does not hold"):
        load_sam(tmp_path / "sam2.pt")
