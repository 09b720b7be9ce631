"""Text encoders: CLIP's tower against an independent calculation, the table of known names."""

import math

import pytest
import torch
from torch.nn import functional as F

from imis_net.checkpoint import convert
from imis_net.errors import PromptError
from imis_net.networks.text_encoder import EOT_ID, CategoryTextEncoder, ClipTextEncoder

WIDTH, HEADS, LAYERS = 512, 8, 12


@pytest.fixture(scope="module")
def hugging_face_weights() -> dict[str, torch.Tensor]:
    """Random weights under Hugging Face's CLIPTextModel names, as a checkpoint holds them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.02) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    stem = "text_model.text_model."
    weights = {
        f"{stem}embeddings.token_embedding.weight": draw(49408, WIDTH),
        f"{stem}embeddings.position_embedding.weight": draw(77, WIDTH),
        f"{stem}final_layer_norm.weight": 1 + draw(WIDTH),
        f"{stem}final_layer_norm.bias": draw(WIDTH),
    }
    for i in range(LAYERS):
        layer = f"{stem}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights[f"{layer}self_attn.{name}.weight"] = draw(WIDTH, WIDTH, scale=0.05)
            weights[f"{layer}self_attn.{name}.bias"] = draw(WIDTH)
        for name in ("layer_norm1", "layer_norm2"):
            weights[f"{layer}{name}.weight"] = 1 + draw(WIDTH)
            weights[f"{layer}{name}.bias"] = draw(WIDTH)
        weights[f"{layer}mlp.fc1.weight"] = draw(4 * WIDTH, WIDTH, scale=0.05)
        weights[f"{layer}mlp.fc1.bias"] = draw(4 * WIDTH)
        weights[f"{layer}mlp.fc2.weight"] = draw(WIDTH, 4 * WIDTH, scale=0.03)
        weights[f"{layer}mlp.fc2.bias"] = draw(WIDTH)
    return weights


@pytest.fixture(scope="module")
def clip(hugging_face_weights) -> ClipTextEncoder:
    encoder = ClipTextEncoder().eval()
    state, _ = convert(hugging_face_weights, "imis-bench")
    encoder.load_state_dict({k.removeprefix("text_encoder."): v for k, v in state.items()})
    return encoder


def hugging_face_clip(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """CLIPTextModel's pooled output, written from its definition: pre-norm, causal, QuickGELU, first EOT token."""
    w = {k.removeprefix("text_model.text_model."): v for k, v in weights.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    length = ids.shape[1]
    x = w["embeddings.token_embedding.weight"][ids] + w["embeddings.position_embedding.weight"][:length]
    causal = torch.full((length, length), -math.inf).triu(1)
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}."
        h = norm(x, f"{layer}layer_norm1")
        q, k, v = (linear(h, f"{layer}self_attn.{n}_proj").view(*h.shape[:2], HEADS, -1).transpose(1, 2) for n in "qkv")
        attention = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + causal).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).reshape(x.shape), f"{layer}self_attn.out_proj")
        h = linear(norm(x, f"{layer}layer_norm2"), f"{layer}mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), f"{layer}mlp.fc2")
    x = norm(x, "final_layer_norm")
    first_eot = [row.tolist().index(EOT_ID) for row in ids]
    return x[torch.arange(len(x)), first_eot]


def test_converted_tower_equals_hugging_faces(clip, hugging_face_weights):
    """Breaks if q, k and v are fused in another order, GELU replaces QuickGELU, or pooling takes another token."""
    ids = clip.tokenize(["liver", "inferior_vena_cava"])
    with torch.inference_mode():
        torch.testing.assert_close(clip(ids), hugging_face_clip(hugging_face_weights, ids), atol=2e-5, rtol=1e-4)


def test_padding_with_the_end_token_changes_nothing(clip):
    """Breaks if pooling takes the last end token: Hugging Face pads with it, open_clip with 0."""
    ids = clip.tokenize(["liver"])
    end = ids[0].tolist().index(EOT_ID)
    padded = ids.clone()
    padded[0, end:] = EOT_ID
    with torch.inference_mode():
        torch.testing.assert_close(clip(padded), clip(ids))


def test_template_and_label_keys(clip):
    """Breaks if a data-set label is prompted by its key instead of its name, or the template changes."""
    assert clip.tokenize(["kidney_right"]).equal(clip.tokenize._encode(["A segmentation area of a right kidney."]))


def test_text_too_long_for_the_tower_is_refused(clip):
    """Breaks if a long text is cut in silence."""
    with pytest.raises(PromptError, match="at most 77"):
        clip.tokenize(["liver " * 100])


def test_categories_ignore_case_punctuation_and_word_order():
    """Breaks if "kidney_right" and "Right kidney" become different targets."""
    table = CategoryTextEncoder(["liver", "right kidney", "left kidney"], dim=4)
    assert table.tokenize(["kidney_right", "Right  Kidney", "LIVER"]).tolist() == [1, 1, 0]


def test_unknown_category_names_the_nearest():
    """Breaks if a word the table lacks is answered with some vector instead of a sentence that helps."""
    table = CategoryTextEncoder(["liver", "right kidney", "spleen"], dim=4)
    with pytest.raises(PromptError, match=r"'livr'.*nearest are liver"):
        table.tokenize(["livr"])
