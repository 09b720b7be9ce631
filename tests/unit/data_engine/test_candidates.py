"""A grid of clicks and its filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imis_net.data_engine import candidates as cand
from imis_net.data_engine.provenance import Action, InteractiveMask, Origin, Rule, Step
from imis_net.data_engine.settings import CandidateSettings
from imis_net.errors import CheckpointError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import TorchSegmenter
from imis_net.transforms import Frame

SETTINGS = CandidateSettings(4, 5, 0.85, {}, 0.7, "box", 0.8)


class Quadrants:
    """A segmenter that knows the image's four quarters; sure of three of them."""

    frame = Frame(16)
    encoder_digest = "quadrants"
    known_texts: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        return ImageEmbedding((torch.empty(1, 0),), (image.shape[0], image.shape[1]), self.encoder_digest)

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        height, width = embedding.original_size
        assert prompt.point_coords is not None
        x, y = prompt.point_coords[0]
        mask = np.zeros((height, width), bool)
        right, below = x > width / 2 - 0.5, y > height / 2 - 0.5
        mask[(height // 2 if below else 0) : (height if below else height // 2)] = True
        mask[:, : width // 2] &= not right
        mask[:, width // 2 :] &= right
        return Prediction(mask, 0.5 if right and below else 0.9 + 0.01 * right, np.zeros((4, 4), np.float32))

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        self.batch_sizes.append(len(prompts))
        return [self.predict(embedding, p) for p in prompts]


def generated(mask: np.ndarray, score: float) -> InteractiveMask:
    return InteractiveMask(mask, Origin.GENERATED, score)


def columns(first: int, last: int, width: int = 100, height: int = 3) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[:, first:last] = True
    return mask


def test_a_grid_is_asked_and_filtered() -> None:
    """Breaks if clicks are lost between batches, or survivors are not one per object, best first."""
    segmenter = Quadrants()
    proposals = cand.propose(segmenter, np.zeros((20, 30, 3), np.uint8), SETTINGS)
    assert segmenter.batch_sizes == [5, 5, 5, 1]
    assert [round(c.score, 2) for c in proposals.candidates] == [0.91, 0.9, 0.9]
    assert [c.mask.sum() for c in proposals.candidates] == [150, 150, 150]
    assert proposals.num_removed == {"nms": 9, "predicted_iou": 4}
    assert all(c.origin is Origin.GENERATED and c.name is None for c in proposals.candidates)


def test_clicks_stand_in_the_middle_of_their_cells() -> None:
    """Breaks if the grid is shifted by half a pixel, transposed, or touches the border."""
    clicks = [p.point_coords for p in cand.grid_clicks(2, 8, 2)]
    assert np.array_equal(np.concatenate(clicks), [[1.5, 0], [5.5, 0], [1.5, 1], [5.5, 1]])
    assert all(p.point_labels is not None and p.point_labels.tolist() == [1] for p in cand.grid_clicks(2, 8, 2))


def test_a_click_on_each_pixel_of_a_tiny_image() -> None:
    """Breaks if a grid finer than the image leaves it."""
    for prompt in cand.grid_clicks(3, 5, 32):
        prompt.check_inside(3, 5)


def test_a_predicted_iou_of_the_bound_is_not_above_it() -> None:
    """Breaks if ">" becomes ">=", or the estimate is not told."""
    outcome = cand.filter_masks([generated(columns(0, 9), s) for s in (0.85, 0.8501)], SETTINGS)
    assert [m.score for m in outcome.kept] == [0.8501]
    assert outcome.removed[0].steps == (Step(Action.REMOVED, Rule.PREDICTED_IOU, 0.85, 0.85),)


def test_most_of_the_image_is_background() -> None:
    """Breaks if a mask of exactly the bound goes, or one above stays."""
    outcome = cand.filter_masks([generated(columns(0, n), 0.9) for n in (80, 81)], SETTINGS)
    assert [m.mask.sum() for m in outcome.kept] == [240]
    assert outcome.removed[0].steps == (Step(Action.REMOVED, Rule.BACKGROUND, 0.81, 0.8),)


def test_an_empty_mask_goes() -> None:
    """Breaks if an empty mask reaches code that takes boxes."""
    outcome = cand.filter_masks([generated(columns(0, 0), 0.9), generated(columns(0, 1), 0.9)], SETTINGS)
    assert len(outcome.kept) == 1
    assert outcome.removed[0].steps == (Step(Action.REMOVED, Rule.SPECKS, 0.0, 0.0),)


def test_the_better_of_two_alike_stays() -> None:
    """Breaks if order of clicks instead of the estimate decides, or an overlap of the bound suppresses."""
    outcome = cand.suppress([generated(columns(0, 71), 0.9), generated(columns(0, 100), 0.95)], SETTINGS)
    assert [m.score for m in outcome.kept] == [0.95]
    assert outcome.removed[0].steps == (Step(Action.REMOVED, Rule.NMS, 0.71, 0.7),)
    at_bound = cand.suppress([generated(columns(0, 70), 0.9), generated(columns(0, 100), 0.95)], SETTINGS)
    assert [m.score for m in at_bound.kept] == [0.95, 0.9]


def test_the_earlier_click_of_equals_stays() -> None:
    """Breaks if the sort is not stable: the same image would give other masks on another machine."""
    first, second = generated(columns(0, 99), 0.9), generated(columns(0, 100), 0.9)
    assert cand.suppress([first, second], SETTINGS).kept == (first,)


def test_suppression_compares_boxes_or_masks() -> None:
    """Breaks if the option is ignored: a frame and its filling share a box but few pixels."""
    full = np.ones((12, 12), bool)
    frame = full.copy()
    frame[1:-1, 1:-1] = False
    pair = [generated(full, 0.95), generated(frame, 0.9)]
    assert len(cand.suppress(pair, SETTINGS).kept) == 1
    assert len(cand.suppress(pair, replace(SETTINGS, nms_by="mask")).kept) == 2


def test_nothing_found_is_an_answer() -> None:
    """Breaks if an image without confident masks stops a run."""
    proposals = cand.propose(Quadrants(), np.zeros((8, 8, 3), np.uint8), replace(SETTINGS, min_predicted_iou=0.99))
    assert proposals.candidates == ()
    assert proposals.num_removed == {"predicted_iou": 16}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.floats(0, 1)), max_size=12))
def test_whatever_is_predicted(spans: list[tuple[int, int, float]]) -> None:
    """Breaks if a mask is lost, stays below a bound, or two survivors have nearly one box."""
    masks = [generated(columns(min(a, b), max(a, b)), s) for a, b, s in spans]
    filtered = cand.filter_masks(masks, SETTINGS)
    outcome = cand.suppress(filtered.kept, SETTINGS)
    assert len(filtered.removed) + len(outcome.removed) + len(outcome.kept) == len(masks)
    widths = [(m.mask[0].argmax(), m.mask[0].sum(), m.score) for m in outcome.kept]
    assert all(0 < w <= 80 and s > 0.85 for _, w, s in widths)
    for i, (x, w, _) in enumerate(widths):
        for y, v, _ in widths[:i]:
            shared = max(0, min(x + w, y + v) - max(x, y))
            assert shared / (w + v - shared) <= 0.7 + 1e-9


def test_sam_uses_its_own_generator() -> None:
    """Breaks if SAM's masks lose their bounds on the way; weights are random, so only the wiring is seen."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    from imis_net.data_engine.sam_candidates import SamProposer

    torch.manual_seed(0)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = ImageEncoderViT(64, embed_dim=16, depth=1, num_heads=2, out_chans=32, norm_layer=norm, use_rel_pos=True)
    sam = Sam(
        encoder,
        PromptEncoder(32, (4, 4), (64, 64), 8),
        MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(1, 32, 2, 64)),
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0],
    ).eval()
    proposer = SamProposer(sam, replace(SETTINGS, min_predicted_iou=-10.0, max_area_fraction=1.0))
    proposer.generator.stability_score_thresh = 0.0
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    proposals = proposer(image)
    assert proposals.candidates
    assert all(c.mask.shape == (48, 64) and c.mask.dtype == bool for c in proposals.candidates)
    scores = [c.score for c in proposals.candidates]
    assert scores == sorted(scores, reverse=True)
    assert proposer.generator.box_nms_thresh == 0.7


def test_what_is_rated_low_is_not_drawn(default_segmenter: TorchSegmenter) -> None:
    """Breaks if rating before drawing changes a mask, loses one, or counts another number as removed."""
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    embedding = default_segmenter.encode_image(image)
    clicks = cand.grid_clicks(64, 80, 4)
    answers = default_segmenter.predict_batch(embedding, clicks)
    bound = sorted(a.iou_prediction for a in answers)[8]
    confident = default_segmenter.predict_confident(embedding, clicks, bound)
    assert list(confident) == [i for i, a in enumerate(answers) if a.iou_prediction > bound]
    assert all((m.mask == answers[i].mask).mean() > 0.999 for i, m in confident.items())
    proposals = cand.propose(default_segmenter, image, replace(SETTINGS, batch_size=16, min_predicted_iou=bound))
    assert proposals.num_removed["predicted_iou"] == 16 - len(confident)
    assert default_segmenter.predict_confident(embedding, clicks, 1.0) == {}


def test_sam_weights_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    """Breaks if another size is loaded than was asked for, or a missing file ends in a traceback."""
    from imis_net.data_engine.sam_candidates import load_sam

    torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}, tmp_path / "b.pth")
    for name, weights, told in (
        ("sam_vit_x", None, "unknown SAM"),
        ("sam_vit_b", None, "expected --weights FILE"),
        ("sam_vit_b", tmp_path / "none.pth", "no weights"),
        ("sam_vit_l", tmp_path / "b.pth", "expected sam_vit_l, got sam_vit_b"),
    ):
        with pytest.raises(CheckpointError, match=told):
            load_sam(name, weights)
