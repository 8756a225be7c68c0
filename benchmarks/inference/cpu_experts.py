r"""What share of a mixture's cost on a CPU is vLLM's kernel, and what is not.

    OMP_NUM_THREADS=N .venv-vllm/bin/python benchmarks/inference/cpu_experts.py \
        [--d_model 1024] [--hidden 2560] [--experts 8] [--top_k 2]

One layer's feed-forward part, against a dense GLU of the same active FLOPs
(hidden size K * F), for batches from a token (decoding) to hundreds (prefill).
Each figure is a time over the dense GLU's in the same round, all in turn in one
process: the median of the rounds, and the least and the most. 1 is as fast.

- router: logits, softmax, the K largest, renormalised.
- kernel: ``cpu_fused_moe``, what vLLM calls for weights that are not quantised.
- GEMMs: the experts one by one on tokens that are in order already, by the same
  matrix products as the dense GLU, those of vLLM's linear layers: what smaller products cost, and reading the
  weights of every expert that has a token.
- order: sorting by expert, gathering tokens, weighing and adding up.

router + kernel is the layer in vLLM; GEMMs + order is the kernel's work done by
PyTorch. Left out: attention, norms, the engine around the layer.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# vLLM reads it when it is imported.
os.environ.setdefault('VLLM_LOGGING_LEVEL', 'ERROR')

import torch  # noqa: E402
from torch.nn.functional import linear, silu  # noqa: E402
from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight  # noqa: E402
from vllm.model_executor.layers.utils import (  # noqa: E402
    dispatch_cpu_unquantized_gemm,
)

__all__ = ['main']

# D d_model, F hidden size of an expert, E experts, K top-k, T tokens.
Part = Callable[[], torch.Tensor]
Product = Callable[[torch.Tensor], torch.Tensor]


class Weights(NamedTuple):
    """Of a layer.

    Attributes:
        router_ED: Of the logits.
        up_EFD: Gate and up of each expert, one below the other.
        down_EDF: Down of each expert.
        dense_FD: As ``up_EFD`` of a GLU of hidden size K * F.
        dense_DF: As ``down_EDF``.
    """
    router_ED: torch.Tensor
    up_EFD: torch.Tensor
    down_EDF: torch.Tensor
    dense_FD: torch.Tensor
    dense_DF: torch.Tensor


def make_weights(args: argparse.Namespace) -> Weights:
    """Random ones."""
    D, F, E, K = args.d_model, args.hidden, args.experts, args.top_k
    dtype = getattr(torch, args.dtype)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * shape[-1]**-0.5).to(dtype)

    return Weights(
        draw(E, D),
        draw(E, 2 * F, D),
        draw(E, D, F),
        draw(2 * K * F, D),
        draw(D, K * F),
    )


def product(weight: torch.Tensor) -> Product:
    """The product with a weight, as a linear layer of vLLM computes it."""
    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


def glu(up: torch.Tensor, down: torch.Tensor) -> Product:
    up_product, down_product = product(up), product(down)

    def compute(x: torch.Tensor) -> torch.Tensor:
        gate, value = up_product(x).chunk(2, -1)
        return down_product(silu(gate) * value)

    return compute


def route(
    x_TD: torch.Tensor,
    router_ED: torch.Tensor,
    K: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine weights and experts of each token, (T, K)."""
    scores_TE = linear(x_TD, router_ED).float().softmax(-1)
    weights_TK, ids_TK = scores_TE.topk(K)
    return weights_TK / weights_TK.sum(-1, keepdim=True), ids_TK.int()


def make_parts(
    args: argparse.Namespace,
    weights: Weights,
    T: int,
) -> dict[str, Part]:
    """What is timed, by name; the kernel's result is checked first."""
    K, isa = args.top_k, kernel_isa(args.dtype)
    x_TD = torch.randn(T, args.d_model).to(weights.up_EFD.dtype)
    combine_TK, ids_TK = route(x_TD, weights.router_ED, K)
    packed_up = cpu_prepack_moe_weight(weights.up_EFD, isa)
    packed_down = cpu_prepack_moe_weight(weights.down_EDF, isa)
    experts = [*map(glu, weights.up_EFD, weights.down_EDF)]
    dense = glu(weights.dense_FD, weights.dense_DF)
    counts = ids_TK.flatten().bincount(minlength=args.experts).tolist()

    def order() -> tuple[torch.Tensor, torch.Tensor]:
        return ids_TK.flatten().sort().indices, combine_TK

    def gathered() -> torch.Tensor:
        return x_TD[order()[0] // K]

    def gemms(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([
            expert(part)
            for expert, part in zip(experts, x.split(counts))
            if len(part)
        ])

    def added(y: torch.Tensor) -> torch.Tensor:
        places, combine = order()[0], combine_TK.flatten()
        y = y * combine[places, None].to(y.dtype)
        return torch.zeros_like(x_TD).index_add_(0, places // K, y)

    def kernel() -> torch.Tensor:
        out = torch.empty_like(x_TD)
        cpu_fused_moe(
            out, x_TD, packed_up, packed_down, None, None, combine_TK, ids_TK,
            'silu', isa
        )
        return out

    in_order = gathered()
    done = gemms(in_order)
    torch.testing.assert_close(kernel(), added(done), rtol=0.05, atol=0.05)
    return {
        'dense': lambda: dense(x_TD),
        'router': lambda: route(x_TD, weights.router_ED, K)[0],
        'kernel': kernel,
        'GEMMs': lambda: gemms(in_order),
        'order': lambda: (gathered(), added(done))[1],
    }


def kernel_isa(dtype: str) -> str:
    """As vLLM chooses on x86: AMX is for bfloat16."""
    amx = dtype == 'bfloat16' and torch.cpu._is_amx_tile_supported()
    return 'amx' if amx else 'vec'


def timed(parts: dict[str, Part], rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round, in turn; the first is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - began)
    return {name: of[1:] for name, of in seconds.items()}


def ratio(part: list[float], dense: list[float]) -> str:
    ratios = [a / b for a, b in zip(part, dense)]
    return (
        f'{statistics.median(ratios):.2f} '
        f'({min(ratios):.2f} to {max(ratios):.2f})'
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--d_model', type=int, default=1024)
    parser.add_argument('--hidden', type=int, default=2560)
    parser.add_argument('--experts', type=int, default=8)
    parser.add_argument('--top_k', type=int, default=2)
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--tokens',
        type=int,
        nargs='+',
        default=[1, 8, 64, 512],
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    weights = make_weights(args)
    print(f'{args}\ntorch {torch.__version__}, {torch.get_num_threads()} '
          f'threads, kernel {kernel_isa(args.dtype)}\n')  # yapf: disable
    columns = ('router', 'kernel', 'GEMMs', 'order', 'router + kernel')
    print(f"| tokens | dense (ms) | {' | '.join(columns)} |")
    print('|' + '---:|' * (2 + len(columns)))
    for T in args.tokens:
        found = timed(make_parts(args, weights, T), args.rounds)
        pairs = zip(found['router'], found['kernel'])
        found['router + kernel'] = [a + b for a, b in pairs]
        cells = [ratio(found[name], found['dense']) for name in columns]
        dense = 1000 * statistics.median(found['dense'])
        print(f"| {T} | {dense:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == '__main__':
    main()
