"""MPT's attention by torch's fused kernel, where that computes the same."""

from typing import Any, Optional

import torch
from llmfoundry.models.layers.attention import (
    scaled_multihead_dot_product_attention,
)
from torch.nn import functional as F

__all__ = ['fused_attention']

# B sequences, S tokens, H heads, G key-value heads, C channels of a head.


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_heads: int,
    kv_n_heads: int,
    **settings: Any,
) -> tuple[torch.Tensor, Optional[torch.Tensor], Any]:
    """What ``attn_impl: torch`` computes, without the (B, H, S, S) scores.

    Foundry's function writes them to memory some eight times a layer (scaled,
    biased, masked, normalised) and keeps several for backward;
    ``scaled_dot_product_attention`` computes them block by block, twice.
    What that can't do (a cache, attention weights, dropout, soft-capping,
    sliding windows) is left to Foundry's.

    Args:
        query: (B, S, H * C).
        key: (B, S, G * C).
        value: (B, S, G * C).
        n_heads: H.
        kv_n_heads: G.
        settings: The other arguments of Foundry's function.

    Returns:
        What attends to each token, (B, S, H * C); then, as Foundry's does,
        attention weights and cache, which are None here.
    """
    if not _is_fusable(query, key, **settings):
        return scaled_multihead_dot_product_attention(
            query,
            key,
            value,
            n_heads=n_heads,
            kv_n_heads=kv_n_heads,
            **settings,
        )
    q_BHSC, k_BGSC, v_BGSC = (
        x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in (
            (query, n_heads),
            (key, kv_n_heads),
            (value, kv_n_heads),
        )
    )
    n_shared = n_heads // kv_n_heads
    mask = _mask(query, key, **settings)
    out_BHSC = F.scaled_dot_product_attention(
        q_BHSC,
        _repeated(k_BGSC, n_shared),
        _repeated(v_BGSC, n_shared),
        attn_mask=mask,
        is_causal=mask is None and settings.get('is_causal', False),
        scale=settings.get('softmax_scale'),
    )
    return out_BHSC.transpose(1, 2).flatten(-2), None, None


def _is_fusable(
    query: torch.Tensor,
    key: torch.Tensor,
    past_key_value: Any = None,
    attn_logit_softcapping: Optional[float] = None,
    dropout_p: float = 0.0,
    needs_weights: bool = False,
    sliding_window_size: int = -1,
    **others: Any,
) -> bool:
    del others
    return (
        past_key_value is None and attn_logit_softcapping is None
        and not dropout_p and not needs_weights and sliding_window_size == -1
        and query.shape[1] == key.shape[1]
    )


def _repeated(x_BGSC: torch.Tensor, n: int) -> torch.Tensor:
    """Each key-value head n times in turn; one head stays in its place."""
    B, G, S, C = x_BGSC.shape
    return x_BGSC[:, :, None].expand(B, G, n, S, C).reshape(B, G * n, S, C)


def _mask(
    query: torch.Tensor,
    key: torch.Tensor,
    attn_bias: Optional[torch.Tensor] = None,
    key_padding_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
    **others: Any,
) -> Optional[torch.Tensor]:
    """What is added to scores; None where causality alone says it.

    Excluded keys get the dtype's lowest value, as Foundry's do: a row without
    any key is then uniform, not NaN.
    """
    del others
    S = query.shape[1]
    has_padding = key_padding_mask is not None and not key_padding_mask.all()
    has_bias = attn_bias is not None and bool(attn_bias.any())
    if not has_padding and not has_bias:
        return None
    lowest = torch.finfo(query.dtype).min
    mask = query.new_zeros(1, 1, S, S)
    if attn_bias is not None:
        mask = mask + attn_bias[..., -S:, -S:].to(query.dtype)
    if key_padding_mask is not None:
        padding = ~key_padding_mask.view(-1, 1, 1, key.shape[1])
        mask = mask.masked_fill(padding, lowest)
    if is_causal:
        future = mask.new_ones(S, S, dtype=torch.bool).triu(1)
        mask = mask.masked_fill(future, lowest)
    return mask
