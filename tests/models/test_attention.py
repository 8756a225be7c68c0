from typing import Any

import pytest
import torch
from llmfoundry.models.layers.attention import (
    scaled_multihead_dot_product_attention,
)
from torch.utils._python_dispatch import TorchDispatchMode

from foundry_upcycle.models.attention import fused_attention

B, S, H, C = 2, 24, 4, 8
LOWEST = torch.finfo(torch.float32).min
aten: Any = torch.ops.aten


class Fused(TorchDispatchMode):
    """Counts calls of a CPU's fused kernel."""

    n_calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
        self.n_calls += func is kernel
        return func(*args, **(kwargs or {}))


def padding(*n_pads: int) -> torch.Tensor:
    """True where there is a token: pads at the end, negative at the start."""
    mask = torch.ones(B, S, dtype=torch.bool)
    for row, n in zip(mask, n_pads):
        row[S - n:] = n <= 0
        row[:max(-n, 0)] = False
    return mask


def as_bias(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(B, 1, 1, S).masked_fill(~mask[:, None, None], LOWEST)


def sequences() -> torch.Tensor:
    """Two packed sequences that do not see each other."""
    ids = torch.arange(S) // 10
    return (ids[:, None] != ids).float().mul(LOWEST)[None, None]


def attend(function: Any, kv_n_heads: int, **settings: Any) -> list:
    """What attends, and the gradients of queries, keys and values."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(B, S, n * C, requires_grad=True)
        for n in (H, kv_n_heads, kv_n_heads)
    ]
    out, weights, _ = function(
        *inputs,
        n_heads=H,
        kv_n_heads=kv_n_heads,
        training=True,
        **settings,
    )
    out.square().sum().backward()
    assert (weights is not None) == settings.get('needs_weights', False)
    return [out.detach(), *(x.grad for x in inputs)]


def assert_equal(n_fused: int, kv_n_heads: int = H, **settings: Any) -> None:
    settings = {'is_causal': True, **settings}
    expected = attend(
        scaled_multihead_dot_product_attention,
        kv_n_heads,
        **settings,
    )
    with Fused() as fused:
        found = attend(fused_attention, kv_n_heads, **settings)
    assert fused.n_calls == n_fused
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kv_n_heads', [1, 2, 4])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        {
            'is_causal': False
        },
        {
            'softmax_scale': 0.5
        },
        {
            'attn_bias': as_bias(padding(0, 0)),
            'key_padding_mask': padding()
        },
        {
            'attn_bias': as_bias(padding(3, 0)),
            'key_padding_mask': padding(3)
        },
        {
            'attn_bias': -torch.rand(1, H, 1, S)
        },
        {
            'attn_bias': -torch.rand(1, H, 1, 2 * S)
        },
        {
            'attn_bias': sequences()
        },
    ],
    ids=[
        'causal',
        'both ways',
        'scale',
        'no padding',
        'right padding',
        'alibi',
        'bias of longer sequences',
        'packed sequences',
    ],
)
def test_equals_foundrys_attention(kv_n_heads, settings):
    assert_equal(1, kv_n_heads, **settings)


def test_tokens_without_any_key_see_all_as_in_foundry():
    # Gradients differ there, but MPT does not train with left padding.
    settings = {'is_causal': True, 'key_padding_mask': padding(0, -5)}
    found, expected = (
        attend(function, H, **settings)[0] for function in (
            fused_attention,
            scaled_multihead_dot_product_attention,
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'settings',
    [
        {
            'attn_logit_softcapping': 2.0
        },
        {
            'sliding_window_size': 4
        },
        {
            'needs_weights': True
        },
        {
            'past_key_value': ()
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_leaves_to_foundry_what_the_kernel_can_not_do(settings):
    assert_equal(0, **settings)


def test_leaves_dropout_to_foundry():
    outputs = []
    for function in (fused_attention, scaled_multihead_dot_product_attention):
        torch.manual_seed(0)
        x = torch.randn(B, S, H * C)
        settings = {'dropout_p': 0.5, 'training': True}
        outputs.append(function(x, x, x, H, H, **settings)[0])
    assert torch.equal(*outputs)
