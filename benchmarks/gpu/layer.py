"""Part 2: the layer's speed and memory beside others of the same function."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.layers import (
    DENSE,
    Sizes,
    active_flops,
    build_layers,
    median_ratio,
    timed_in_turn,
)

__all__ = ['cases']

# D and F of the paper's models, by the YAMLs that have them.
_SHAPES = {'430m': (1024, 2560), '1b': (2048, 5120)}
_TOKENS = (8192, 32768, 2048)
_ROUNDS = {'cuda': 10, 'cpu': 2}


def cases(device: str, folder: Path) -> dict[str, Any]:
    """See ``worker.Case``: the most important first."""
    del folder
    if device == 'cpu':
        return {
            'tiny, E 4, K 2, 64 tokens':
            partial(_case, Sizes(32, 64, 4, 2), 64, device),
        }
    # The last varies fastest: both models as they are trained come first.
    return {
        f'{model}, E {experts}, K {top_k}, {n_tokens} tokens':
        partial(_case, Sizes(D, F, experts, top_k), n_tokens, device)
        for experts, top_k, n_tokens, (model, (D, F)) in itertools.product(
            (8, 64),
            (2, 1, 4),
            _TOKENS,
            _SHAPES.items(),
        )
    }


def _case(sizes: Sizes, n_tokens: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    layers, missing = build_layers(sizes, device, torch.bfloat16)
    x = torch.randn(
        *(1, n_tokens, sizes.d_model),
        device=device,
        dtype=torch.bfloat16,
    )
    measured = timed_in_turn(layers, x, _ROUNDS[device])
    for of_pass, samples in measured.items():
        flops = active_flops(sizes, n_tokens, of_pass)
        dense_failed = 'error' in samples[DENSE]
        for name, sample in samples.items():
            if 'error' in sample:
                continue
            sample['flops'] = flops
            if not dense_failed:
                sample['of_dense'] = median_ratio(samples, name)
    return {'passes': measured, 'missing': missing}
