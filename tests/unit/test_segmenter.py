"""What the segmenter hands to the network: prompts grouped, never padded, the image never copied."""

import numpy as np
import pytest
import torch

from imis_net.networks.build import BUILDERS, imis_net_compact
from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import COMPACT_RULE, PUBLISHED_RULE, TorchSegmenter, _expected_iou, _min_area, answer_rule


@pytest.fixture(scope="module")
def segmenter() -> TorchSegmenter:
    torch.manual_seed(0)
    return TorchSegmenter(imis_net_compact(image_size=64))


@pytest.fixture(scope="module")
def embedding(segmenter) -> ImageEmbedding:
    return segmenter.encode_image(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8))


@pytest.fixture
def calls(segmenter):
    """Every call of the network's decoder: (features, prompt tensors)."""
    seen = []
    original = segmenter.network.predict_masks

    def recorded(features, **prompt):
        seen.append((features, prompt))
        return original(features, **prompt)

    segmenter.network.predict_masks = recorded
    yield seen
    del segmenter.network.predict_masks


def clicks(*xy: tuple[float, float]) -> Prompt:
    return Prompt(np.array(xy), np.ones(len(xy)))


def test_clicks_are_grouped_by_number_and_never_padded(segmenter, embedding, calls):
    """Breaks if shorter lists of clicks are filled up with "no point", which changes their masks."""
    segmenter.predict_batch(embedding, [clicks((1, 2)), clicks((3, 4), (5, 6)), clicks((7, 8)), Prompt(text="liver")])
    sent = [None if p["point_coords"] is None else tuple(p["point_coords"].shape) for _, p in calls]
    assert sorted({*sent}, key=str) == [(1, 2, 2), (2, 1, 2), None]
    assert sent.count((2, 1, 2)) == sent.count((1, 2, 2)) == 1
    assert all(p["point_labels"] is None or (p["point_labels"] == 1).all() for _, p in calls)


def test_image_stays_at_batch_1(segmenter, embedding, calls):
    """Breaks if the embedding is copied for every prompt: 30 targets would take 30 times the memory."""
    segmenter.predict_batch(embedding, [clicks((x, 5)) for x in range(7)])
    ((features, prompt),) = calls
    assert prompt["point_coords"].shape[0] == 7
    assert all(f is kept for f, kept in zip(features, embedding.features, strict=True))
    assert {f.shape[0] for f in features} == {1}


def test_prompts_arrive_in_the_model_frame(segmenter, embedding, calls):
    """Breaks if x is scaled by the height, y by the width, or the previous mask is scaled at all."""
    previous = np.full((16, 16), 2.0, np.float32)
    segmenter.predict(embedding, Prompt(np.array([[20, 10]]), np.array([0]), np.array([8, 4, 40, 20]), None, previous))
    ((_, prompt),) = calls
    assert prompt["point_coords"].tolist() == [[[16, 16]]]
    assert prompt["point_labels"].tolist() == [[0]]
    torch.testing.assert_close(prompt["boxes"], torch.tensor([[6.4, 6.4, 32, 32]]))
    assert prompt["low_res_masks"].shape == (1, 1, 16, 16)
    assert (prompt["low_res_masks"] == 2).all()


def test_no_prompts_no_predictions(segmenter, embedding, calls):
    """Breaks if an empty request crashes or runs the network."""
    assert segmenter.predict_batch(embedding, []) == []
    assert not calls


def test_one_bad_prompt_refuses_the_batch_before_any_work(segmenter, embedding, calls):
    """Breaks if the prompts before the bad one are computed and thrown away."""
    with pytest.raises(ValueError, match="outside the image"):
        segmenter.predict_batch(embedding, [clicks((1, 1)), clicks((79, 39)), clicks((80, 5))])
    assert not calls


def test_largest_box_that_is_let_in_gives_finite_masks(segmenter, embedding):
    """Breaks if a hostile box overflows to NaN, which no JSON can carry."""
    prediction = segmenter.predict(embedding, Prompt(box=np.array([-1e6, -1e6, 1e6, 1e6])))
    assert np.isfinite(prediction.low_res_mask).all()
    assert 0 <= prediction.iou_prediction <= 1


@pytest.mark.parametrize("rule", [PUBLISHED_RULE, COMPACT_RULE], ids=["published", "compact"])
def test_a_mask_ends_where_its_networks_rule_says(segmenter, embedding, rule, monkeypatch):
    """Breaks if the published networks' masks end elsewhere than the reference's, or ours where theirs do."""
    monkeypatch.setattr(segmenter, "rule", rule)
    prediction = segmenter.predict(embedding, clicks((20, 10)))
    logits = torch.from_numpy(prediction.low_res_mask)[None, None]
    full = segmenter.frame.to_original(logits, embedding.original_size)[0, 0].numpy()
    assert ((full > PUBLISHED_RULE.mask_threshold) != (full > COMPACT_RULE.mask_threshold)).any()
    np.testing.assert_array_equal(prediction.mask, full > rule.mask_threshold)


def test_each_network_has_its_rule():
    """Breaks if a published network answers by our rule, or the compact one by theirs."""
    assert answer_rule("imis_net_compact") == COMPACT_RULE
    assert {answer_rule(name) for name in BUILDERS if name != "imis_net_compact"} == {PUBLISHED_RULE}
    assert PUBLISHED_RULE.mask_threshold == 0


def test_only_names_may_be_answered_with_nothing():
    """Breaks if a box or a click may be answered with an empty mask, or an absent organ may not."""
    boxes, click = torch.tensor([[0.0, 0.0, 40.0, 80.0]]), torch.tensor([[1, 0]])
    assert _min_area({"boxes": boxes, "point_labels": None}, 1).tolist() == [pytest.approx(10 * 20 * 0.05)]
    assert _min_area({"boxes": None, "point_labels": click}, 1).tolist() == [4]
    assert _min_area({"boxes": None, "point_labels": torch.zeros(1, 2)}, 1).tolist() == [0]
    assert _min_area({"boxes": None, "point_labels": None}, 2).tolist() == [0, 0]


def test_a_name_is_rated_by_how_sure_its_pixels_are(segmenter, embedding):
    """Breaks if an empty mask is rated above nothing, doubt as high as certainty, or a click by the same rule."""
    sure = torch.full((1, 8, 8), -20.0)
    sure[:, :4] = 20.0
    doubtful = torch.full((1, 8, 8), -1.0)
    doubtful[:, :4] = 0.0
    assert _expected_iou(sure, -0.5).item() == pytest.approx(1)
    assert 0.3 < _expected_iou(doubtful, -0.5).item() < 0.6
    assert _expected_iou(torch.full((1, 8, 8), -1.0), -0.5).item() == 0
    name, both = Prompt(text="liver"), Prompt(np.array([[20.0, 10.0]]), np.ones(1), text="liver")
    given = segmenter._tensors([name], (40, 80))
    with torch.inference_mode():
        masks = segmenter.network.predict_masks(embedding.features, **given).low_res_masks[0, 1:]
    rated = _expected_iou(masks, -0.5).tolist()
    assert segmenter.predict(embedding, name).iou_prediction in [pytest.approx(r, abs=1e-5) for r in rated]
    by_both = segmenter.predict(embedding, both)
    rated_so = _expected_iou(torch.from_numpy(by_both.low_res_mask), -0.5).item()
    assert by_both.iou_prediction != pytest.approx(rated_so, abs=1e-3)


@pytest.mark.parametrize(("by_mask", "taken"), [(True, 2), (False, 1)])
def test_of_a_names_candidates_the_surest_is_taken(segmenter, by_mask, taken):
    """Breaks if a name's mask is still chosen by the token that does not see where the name was found."""
    masks = torch.full((1, 4, 16, 16), -20.0)
    masks[:, 1, :8], masks[:, 2, :8] = -0.4, 20.0
    ratings, nothing = torch.tensor([[0.0, 0.9, 0.5, 0.0]]), torch.zeros(1, 9, 8)
    output = MaskPrediction(masks, ratings, torch.zeros(1, 4, 512), nothing, nothing)
    (answer,) = segmenter._answers(output, None, (64, 64), by_mask)
    assert np.array_equal(answer.low_res_mask, masks[0, taken])


def test_a_name_that_was_found_is_asked_again_with_its_box(segmenter, embedding, calls):
    """Breaks if the second look is left out, gets another box, is spent on what was not found, or rates the answer."""
    name, click = Prompt(text="liver"), clicks((1, 2))
    answer, _ = segmenter.predict_batch(embedding, [name, click])
    asked = [{k for k, v in prompt.items() if v is not None} for _, prompt in calls]
    assert asked == [{"text"}, {"text", "boxes", "low_res_masks"}, {"point_coords", "point_labels"}]
    first, second = calls[0][1], calls[1][1]
    with torch.inference_mode():
        output = segmenter.network.predict_masks(embedding.features, **first)
        (alone,) = segmenter._answers(output, None, (40, 80), True)
    assert answer.iou_prediction == pytest.approx(alone.iou_prediction)
    rows, columns = np.nonzero(alone.mask)
    corners = torch.tensor([[[columns.min(), rows.min()], [columns.max(), rows.max()]]])
    torch.testing.assert_close(second["boxes"].reshape(1, 2, 2), segmenter.frame.points(corners.float(), (40, 80)))
    calls.clear()
    assert segmenter.predict_confident(embedding, [name], min_iou=1.0) == {}
    assert len(calls) == 1
