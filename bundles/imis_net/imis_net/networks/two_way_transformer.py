"""SAM's two-way transformer: prompt tokens and image positions attend to each other.

Source: Segment Anything (arXiv 2304.02643), appendix A; the IMIS-Net decoder uses it unchanged at its own width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens' (``downsample_rate``)."""

    def __init__(self, embed_dim: int, num_heads: int, downsample_rate: int = 1, has_few_keys: bool = False) -> None:
        """``has_few_keys``: that there are far fewer keys than queries, which changes how, not what is computed."""
        super().__init__()
        internal_dim = embed_dim // downsample_rate
        self.num_heads = num_heads
        self.has_few_keys = has_few_keys
        self.q_proj = nn.Linear(embed_dim, internal_dim)
        self.k_proj = nn.Linear(embed_dim, internal_dim)
        self.v_proj = nn.Linear(embed_dim, internal_dim)
        self.out_proj = nn.Linear(internal_dim, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, N, C], k and v [B or 1, M, C] -> [B, N, C]; a batch of 1 on either side is shared, never copied."""
        q, k, v = (self._heads(p(x)) for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        num_prompts = q.shape[0]
        if self.has_few_keys and q.device.type == "cpu":
            out = _attend_few_keys(q, k, v).flatten(1, 2).transpose(1, 2)
        elif k.shape[0] == 1:
            # Rows of attention are independent, so all prompts' queries can share one set of keys.
            q = rearrange(q, "b h n d -> 1 h (b n) d")
            out = F.scaled_dot_product_attention(q, k, v)
            out = rearrange(out, "1 h (b n) d -> b n (h d)", b=num_prompts)
        else:
            out = F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v)
            out = out.transpose(1, 2).flatten(2)
        return self.out_proj(out)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, h * d] -> [B, h, N, d]; in torch's words, since einops' would take 2 % of a click here."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _attend_few_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B or 1, h, N, d], k and v [B or 1, h, M, d] -> [B, h, d, N], with N as the last axis throughout.

    A processor computes along the last axis, which would have ten entries where an image attends to some tokens: this
    takes it a fifth of the time.
    """
    weights = (k * k.shape[-1] ** -0.5 @ q.transpose(-2, -1)).softmax(-2)
    return v.transpose(-2, -1) @ weights


class TransformerMLP(nn.Module):
    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayAttentionBlock(nn.Module):
    """Token self-attention, token-to-image attention, MLP, image-to-token attention; each followed by a norm."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, is_first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.cross_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = TransformerMLP(embed_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.norm4 = nn.LayerNorm(embed_dim)
        self.cross_attn_image_to_token = Attention(embed_dim, num_heads, downsample_rate=2, has_few_keys=True)
        self.is_first = is_first

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_first:  # the tokens are their own position encoding here, and there is no residual
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, placed, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(placed, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    def __init__(self, embed_dim: int, depth: int = 2, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embed_dim, num_heads, mlp_dim, is_first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let tokens and image inform each other.

        Args:
            image: [B or 1, C, h, w]; with a batch of 1 its products with the first layer's weights are made once
                for all prompts.
            image_pe: [1, C, h, w].
            tokens: [B, N, C].

        Returns:
            tokens [B, N, C] and image [B, h * w, C].
        """
        image = rearrange(image, "b c h w -> b (h w) c")
        image_pe = rearrange(image_pe, "b c h w -> b (h w) c")
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image
