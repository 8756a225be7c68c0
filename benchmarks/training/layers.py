"""The MoE layer and others that compute the same function, and their speed.

Each round runs every implementation once, in turn, so that what drifts on a
shared machine cancels in the ratios of a round.
"""

import statistics
import time
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import torch
from llmfoundry.models.layers.dmoe import dMoE
from llmfoundry.models.layers.ffn import build_mptglu
from torch import nn
from torch.nn import functional as F
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.experts import BACKENDS
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = [
    'DENSE',
    'PASSES',
    'Sizes',
    'active_flops',
    'build_layers',
    'median_ratio',
    'paired_ratio',
    'timed_in_turn',
]

# A dense GLU with the same active FLOPs: its hidden size is K * F.
DENSE = 'dense GLU'
PASSES = ('forward', 'forward + backward')


class Sizes:
    """Sizes of a layer.

    Args:
        d_model: D.
        hidden: Hidden size F of an expert.
        n_experts: E.
        top_k: K.
    """

    def __init__(self, d_model: int, hidden: int, n_experts: int, top_k: int):
        self.d_model = d_model
        self.hidden = hidden
        self.n_experts = n_experts
        self.top_k = top_k


def active_flops(sizes: Sizes, n_tokens: int, of_pass: str) -> int:
    """FLOPs of the experts' products that tokens meet.

    Left out: the router, the activation, moving tokens to experts and back.
    """
    forward = 6 * n_tokens * sizes.top_k * sizes.d_model * sizes.hidden
    return forward if of_pass == 'forward' else 3 * forward


def build_layers(
    sizes: Sizes,
    device: str,
    dtype: torch.dtype,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The dense layer first, then the mixtures; and why others are missing.

    The backends of ``upcycled_dmoe`` share one set of parameters.
    """
    layers: dict[str, nn.Module] = {}
    missing: dict[str, str] = {}
    for name, build in _builders(sizes, device, dtype):
        try:
            layer = build()
            if not name.startswith('upcycled_dmoe'):
                layer = _initialised(layer, device, dtype)
        except (ConfigError, ImportError, torch.OutOfMemoryError) as error:
            missing[name] = ' '.join(str(error).split())
        else:
            layers[name] = layer
    return layers, missing


def _builders(
    sizes: Sizes,
    device: str,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield DENSE, lambda: _dense(sizes)
    shared: list[nn.Module] = []
    for backend in BACKENDS:

        def ours(backend: str = backend) -> nn.Module:
            layer = _ours(sizes, backend)
            if not shared:
                shared.append(_initialised(layer, device, dtype))
            layer.router = shared[0].router
            layer.experts.mlp = shared[0].experts.mlp
            return layer

        yield f'upcycled_dmoe {backend}', ours
    yield 'Foundry torch_dmoe', lambda: _torch_dmoe(sizes)
    yield 'Hugging Face Mixtral', lambda: _mixtral(sizes)
    yield 'MegaBlocks dMoE', lambda: _megablocks(sizes, dtype)


def _initialised(
    layer: nn.Module,
    device: str,
    dtype: torch.dtype,
) -> nn.Module:
    layer = layer.to_empty(device=device).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer


def _dense(sizes: Sizes) -> nn.Module:
    return build_mptglu(
        d_model=sizes.d_model,
        expansion_ratio=1,
        ffn_hidden_size=sizes.top_k * sizes.hidden,
        ffn_act_fn={'name': 'silu'},
        fc_type={
            'name': 'torch',
            'bias': False
        },
        device='meta',
    )


def _ours(sizes: Sizes, backend: str) -> nn.Module:
    return build_upcycled_dmoe(
        d_model=sizes.d_model,
        expansion_ratio=1,
        ffn_hidden_size=sizes.hidden,
        ffn_act_fn={'name': 'silu'},
        moe_num_experts=sizes.n_experts,
        moe_top_k=sizes.top_k,
        moe_loss_weight=0,
        backend=backend,
        device='meta',
    )


def _torch_dmoe(sizes: Sizes) -> nn.Module:
    return dMoE(
        device=torch.device('meta'),
        hidden_size=sizes.d_model,
        ffn_hidden_size=sizes.hidden,
        moe_num_experts=sizes.n_experts,
        moe_top_k=sizes.top_k,
        mlp_type='glu',
        activation_fn=F.silu,
        moe_normalize_expert_weights=1,
    )


def _mixtral(sizes: Sizes) -> nn.Module:
    config = MixtralConfig(
        hidden_size=sizes.d_model,
        intermediate_size=sizes.hidden,
        num_local_experts=sizes.n_experts,
        num_experts_per_tok=sizes.top_k,
    )
    # The fastest of transformers 5; 4 has one only.
    config._experts_implementation = 'grouped_mm'
    with torch.device('meta'):
        return MixtralSparseMoeBlock(config)


def _megablocks(sizes: Sizes, dtype: torch.dtype) -> nn.Module:
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE as MegaBlocksDMoE

    return MegaBlocksDMoE(
        Arguments(
            hidden_size=sizes.d_model,
            ffn_hidden_size=sizes.hidden,
            moe_num_experts=sizes.n_experts,
            moe_top_k=sizes.top_k,
            moe_normalize_expert_weights=1,
            moe_loss_weight=0,
            mlp_type='glu',
            activation_fn=F.silu,
            bias=False,
            return_bias=False,
            fp16=False,
            bf16=dtype == torch.bfloat16,
        ),
    )


def timed_in_turn(
    layers: Mapping[str, nn.Module],
    x: torch.Tensor,
    rounds: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Times each layer on ``x``, after a round to warm up.

    An implementation that runs out of memory is left out from then on.

    Args:
        layers: By name.
        x: Tokens, (1, T, D).
        rounds: How many.

    Returns:
        Pass to layer to ``seconds`` (one a round), ``peak_bytes`` (beyond what
        lay there before; None on a CPU) and, where it failed, ``error``.
    """
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    x = x.detach().requires_grad_()
    for of_pass in PASSES:
        found = measured[of_pass] = {
            name: {
                'seconds': [],
                'peak_bytes': None
            }
            for name in layers
        }
        for index in range(rounds + 1):
            for name, layer in layers.items():
                if 'error' not in found[name]:
                    _time_once(layer, x, of_pass, found[name], index > 0)
    return measured


def _time_once(
    layer: nn.Module,
    x: torch.Tensor,
    of_pass: str,
    into: dict[str, Any],
    counts: bool,
) -> None:
    x.grad = None
    try:
        seconds, peak_bytes = _timed(lambda: _run(layer, x, of_pass), x.device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if 'CUDA error' in str(error):
            raise  # Nothing runs in this process after it.
        into['error'] = ' '.join(str(error).split())[:200]
        return
    finally:
        # Else they would stay there for the next.
        layer.zero_grad(set_to_none=True)
    if counts:
        into['seconds'].append(seconds)
        into['peak_bytes'] = peak_bytes


def _run(layer: nn.Module, x: torch.Tensor, of_pass: str) -> None:
    if of_pass == 'forward':
        with torch.no_grad():
            layer(x)
        return
    out = layer(x)
    out = out[0] if isinstance(out, tuple) else out
    out.sum().backward()


def _timed(
    run: Callable[[], None],
    device: torch.device,
) -> tuple[float, Optional[int]]:
    """Seconds, and on a GPU the most bytes that were allocated meanwhile."""
    if device.type != 'cuda':
        start = time.perf_counter()
        run()
        return time.perf_counter() - start, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() - before


def median_ratio(
    samples: Mapping[str, Mapping[str, Any]],
    name: str,
) -> tuple[float, float, float]:
    """Of the dense layer's time to a layer's in the same round.

    Returns:
        Median, lowest and highest.
    """
    return paired_ratio(samples[DENSE]['seconds'], samples[name]['seconds'])


def paired_ratio(
    base: Sequence[float],
    other: Sequence[float],
) -> tuple[float, float, float]:
    """Of times of ``base`` to those of ``other``, round by round.

    Returns:
        Median, lowest and highest.
    """
    ratios = [b / o for b, o in zip(base, other)]
    return statistics.median(ratios), min(ratios), max(ratios)
