"""Speed of the MoE layer beside others that compute the same function.

    python benchmarks/training/moe_layer.py [--tokens 4096] [--rounds 5] ...

Each round runs every implementation once, in turn; what is printed is the
median over rounds of the time of a dense GLU with the same active FLOPs
(hidden size K * F) over the implementation's: 1 means that routing costs
nothing. Shared machines drift, which pairs within a round cancel.

On a CPU, glibc returns large gradients to the system and page-faults them in
again, which costs one big weight (the dense layer's, ours) more than eight
small ones (Mixtral's). To compare the layers, not the allocator, set
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592.

Excluded: attention and the rest of a block, the auxiliary loss, the
optimizer (which sees E * F, not K * F, hidden channels), communication.
"""

import argparse
import statistics
import time
from typing import Callable

import torch
from llmfoundry.models.layers.dmoe import dMoE
from llmfoundry.models.layers.ffn import build_mptglu
from torch import nn
from torch.nn import functional as F
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from foundry_upcycle.models.ffn import build_upcycled_dmoe


def build_layers(
    d_model: int,
    hidden: int,
    n_experts: int,
    top_k: int,
) -> dict[str, nn.Module]:
    """The dense layer first, then the mixtures."""

    def ours(backend: str) -> nn.Module:
        layer = build_upcycled_dmoe(
            d_model=d_model,
            expansion_ratio=1,
            ffn_hidden_size=hidden,
            ffn_act_fn={'name': 'silu'},
            bias=False,
            moe_num_experts=n_experts,
            moe_top_k=top_k,
            moe_loss_weight=0,
            backend=backend,
        )
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return layer

    return {
        'dense GLU':
        build_mptglu(
            d_model=d_model,
            expansion_ratio=1,
            ffn_hidden_size=top_k * hidden,
            ffn_act_fn={'name': 'silu'},
            fc_type={
                'name': 'torch',
                'bias': False,
            },
        ),
        'upcycled_dmoe grouped':
        ours('grouped'),
        'upcycled_dmoe loop':
        ours('loop'),
        'Foundry torch_dmoe':
        dMoE(
            device=None,
            hidden_size=d_model,
            ffn_hidden_size=hidden,
            moe_num_experts=n_experts,
            moe_top_k=top_k,
            mlp_type='glu',
            activation_fn=F.silu,
            moe_normalize_expert_weights=1,
        ),
        'Hugging Face Mixtral':
        MixtralSparseMoeBlock(
            MixtralConfig(
                hidden_size=d_model,
                intermediate_size=hidden,
                num_local_experts=n_experts,
                num_experts_per_tok=top_k,
            ),
        ),
    }


def forward(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def time_forward(layer: nn.Module, x: torch.Tensor) -> float:
    return _time(lambda: forward(layer, x.detach()), x.device)


def time_forward_backward(layer: nn.Module, x: torch.Tensor) -> float:
    layer.zero_grad(set_to_none=True)
    return _time(lambda: forward(layer, x).sum().backward(), x.device)


def _time(run: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--d_model', type=int, default=1024)
    parser.add_argument('--hidden', type=int, default=2560)
    parser.add_argument('--experts', type=int, default=8)
    parser.add_argument('--top_k', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()

    torch.manual_seed(0)
    place = {'device': args.device, 'dtype': getattr(torch, args.dtype)}
    layers = {
        name: layer.to(**place)
        for name, layer in build_layers(
            args.d_model,
            args.hidden,
            args.experts,
            args.top_k,
        ).items()
    }
    x = torch.randn(1, args.tokens, args.d_model, **place).requires_grad_()
    print(
        f'{args}\ntorch {torch.__version__}, {torch.get_num_threads()} threads',
    )
    for name, measure in (
        ('forward', time_forward),
        ('forward + backward', time_forward_backward),
    ):
        times: dict[str, list[float]] = {layer: [] for layer in layers}
        for round_index in range(args.rounds + 1):
            for layer, module in layers.items():
                seconds = measure(module, x)
                if round_index:  # The first round warms up.
                    times[layer].append(seconds)
        print(f'\n{name}: dense time / time, median of {args.rounds} rounds')
        for layer, samples in times.items():
            ratios = [d / s for d, s in zip(times['dense GLU'], samples)]
            print(
                f'  {layer:24s} {statistics.median(ratios):5.2f}  '
                f'({min(ratios):.2f} to {max(ratios):.2f}; '
                f'{statistics.median(samples) * 1e3:.0f} ms)',
            )


if __name__ == '__main__':
    main()
