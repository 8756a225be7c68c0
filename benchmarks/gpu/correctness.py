"""Part 1: what is computed on the device is what the CPU's tests promise."""

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.checks import check, distance, record_of
from benchmarks.gpu.whole_model import WholeModel
from foundry_upcycle.models.experts import BACKENDS
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['cases']

# The layer's, and whether autocast is on.
_DTYPES = {
    'fp32': (torch.float32, False),
    'bf16': (torch.bfloat16, False),
    'bf16 autocast': (torch.float32, True),
}
# Of the largest value of the reference. In bfloat16 a number is rounded to
# 0.4 %, and a hidden layer, its products and their sums each are.
_TOLERANCES = {'fp32': 2e-5, 'bf16': 3e-2}


def cases(device: str, folder: Path) -> dict[str, Any]:
    """See ``worker.Case``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = WholeModel(device, folder)
    return {
        **{
            f'layer: {backend}, {dtype}': partial(
                _layer, backend, dtype, device
            )
            for backend in BACKENDS
            for dtype in _DTYPES
        },
        'step 0 is the dense model': whole.step_0,
        'resumed from sharded checkpoint': whole.resumed,
        'DDP and FSDP2': whole.ddp_and_fsdp,
        'Hugging Face export': whole.exported,
        'generate with KV cache': whole.generated,
        'in-context evaluation': whole.evaluated,
        'compiled and eager': whole.compiled,
    }


def _layer(backend: str, dtype_name: str, device: str) -> dict[str, Any]:
    """Forward and gradients against ``loop`` in float64 on the CPU."""
    dtype, autocast = _DTYPES[dtype_name]
    generator = torch.Generator().manual_seed(0)
    layer = build_upcycled_dmoe(
        d_model=128,
        expansion_ratio=1,
        ffn_hidden_size=192,
        ffn_act_fn={'name': 'silu'},
        moe_loss_weight=0,
        backend=backend,
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.1, generator=generator)
    # What is compared is the computation: both start from rounded values.
    layer = layer.to(dtype)
    x, grad = torch.randn(2, 512, 128, generator=generator).to(dtype)
    reference = copy.deepcopy(layer).double()
    reference.experts.backend = 'loop'
    expected = _computed(reference, x.double(), grad.double(), 'cpu', False)
    found = _computed(layer.to(device), x, grad, device, autocast)
    tolerance = _TOLERANCES['fp32' if dtype_name == 'fp32' else 'bf16']
    return record_of(
        check(what, distance(value, expected[what]), tolerance)
        for what, value in found.items()
    )


def _computed(
    layer: nn.Module,
    x: torch.Tensor,
    grad: torch.Tensor,
    device: str,
    autocast: bool,
) -> dict[str, torch.Tensor]:
    """Output and gradients, by name."""
    x = x.detach().clone().to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.backward(grad.to(device, out.dtype))
    of_weights = {name: p.grad for name, p in layer.named_parameters()}
    found = {'output': out, 'd input': x.grad}
    for name, value in of_weights.items():
        found[f"d {name.removeprefix('experts.mlp.')}"] = value
    return found
