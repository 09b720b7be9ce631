"""Names of targets to vectors: CLIP's text tower for IMIS-Net, a table of known categories for the compact model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from open_clip import get_model_config
from open_clip.model import CLIPTextCfg, _build_text_tower
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from imis_net.categories import display_name, nearest_names, normalised
from imis_net.errors import PromptError

TEMPLATE = "A segmentation area of a {}."
"""IMIS-Bench's only template, "a" before vowels too."""
EOT_ID = 49407
CONTEXT_LENGTH = 77


class TextEncoder(nn.Module):
    """What the network needs of a text encoder.

    Attributes:
        names: the only names it can know, or None where it takes any text.
        tokenize: B names -> the argument of ``forward``, on the CPU; a name that cannot be encoded is a PromptError.
    """

    names: tuple[str, ...] | None = None
    tokenize: Callable[[Sequence[str]], Tensor]


class ClipTokenizer:
    """Names in the published sentence -> token ids [B, 77]."""

    def __init__(self) -> None:
        self._encode = SimpleTokenizer(context_length=CONTEXT_LENGTH)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        sentences = [TEMPLATE.format(normalised(display_name(t))) for t in texts]
        for sentence, text in zip(sentences, texts, strict=True):
            num_tokens = len(self._encode.encode(sentence)) + 2
            if num_tokens > CONTEXT_LENGTH:
                raise PromptError(
                    f"text too long: got {num_tokens} tokens ({text[:40]!r}...), at most {CONTEXT_LENGTH}"
                )
        return self._encode(sentences)


class CategoryTokenizer:
    """Known names -> their rows [B]."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._index = {_bag(name): i for i, name in enumerate(names)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self._lookup(text) for text in texts])

    def _lookup(self, text: str) -> int:
        index = self._index.get(_bag(text))
        if index is None:
            raise PromptError(
                f"unknown text: got {text[:80]!r}, this model knows {len(self._names)} names, "
                f"the nearest are {', '.join(nearest_names(text, self._names))}"
            )
        return index


Tokenizer = ClipTokenizer | CategoryTokenizer


def tokenizer(names: Sequence[str] | None) -> Tokenizer:
    """``TextEncoder.tokenize`` of the encoder that knows these names, or any text, without its weights."""
    return ClipTokenizer() if names is None else CategoryTokenizer(names)


class ClipTextEncoder(TextEncoder):
    """The text tower of CLIP ViT-B/32 with QuickGELU, without its projection: token ids [B, 77] -> [B, 512].

    IMIS-Net's own weights of it come with its checkpoint; OpenAI's are another network.
    """

    def __init__(self) -> None:
        super().__init__()
        config = get_model_config("ViT-B-32-quickgelu")
        self.tower = _build_text_tower(config["embed_dim"], CLIPTextCfg(**config["text_cfg"]), quick_gelu=True)
        self.tower.text_projection = None
        self.tokenize = ClipTokenizer()

    def forward(self, token_ids: Tensor) -> Tensor:
        embedded, mask = self.tower._embeds(token_ids)
        hidden = self.tower.ln_final(self.tower.transformer(embedded, attn_mask=mask))
        # The first end-of-text token; what follows it is padding, which the causal mask hides.
        first_eot = (token_ids == EOT_ID).long().argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), first_eot]  # len() would fix a graph's batch


class CategoryTextEncoder(TextEncoder):
    """A learned vector per known name: indices [B] -> [B, dim]."""

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.embedding = nn.Embedding(len(self.names), dim)
        self.tokenize = CategoryTokenizer(self.names)

    def forward(self, indices: Tensor) -> Tensor:
        return self.embedding(indices)


def _bag(name: str) -> frozenset[str]:
    """Words without their order: "kidney right" is "right kidney"."""
    return frozenset(normalised(name).split())
