"""Speed of the MoE layer beside others that compute the same function.

    python benchmarks/training/moe_layer.py [--tokens 4096] [--rounds 9] ...

What is printed is the median over rounds of the time of a dense GLU with the
same active FLOPs (hidden size K * F) over the implementation's: 1 means that
routing costs nothing.

On a CPU, freed memory stays with the process, as the callback cpu_training has
it. Otherwise glibc gives large gradients back to the system, which clears them
again: that costs one big weight (ours) more than eight small ones (Mixtral's).

Excluded: attention and the rest of a block, the auxiliary loss, the
optimizer (which sees E * F, not K * F, hidden channels), communication.
"""

import argparse
import statistics

import torch
from layers import Sizes, build_layers, median_ratio, timed_in_turn

from foundry_upcycle.callbacks.cpu_training import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--d_model', type=int, default=1024)
    parser.add_argument('--hidden', type=int, default=2560)
    parser.add_argument('--experts', type=int, default=8)
    parser.add_argument('--top_k', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()

    if args.device == 'cpu':
        keep_freed_memory(True)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    sizes = Sizes(args.d_model, args.hidden, args.experts, args.top_k)
    layers, missing = build_layers(sizes, args.device, dtype)
    x = torch.randn(
        *(1, args.tokens, args.d_model),
        device=args.device,
        dtype=dtype,
    )
    print(
        f'{args}\ntorch {torch.__version__}, {torch.get_num_threads()} threads',
    )
    for name, reason in missing.items():
        print(f'left out: {name}: {reason}')
    for of_pass, samples in timed_in_turn(layers, x, args.rounds).items():
        print(f'\n{of_pass}: dense time / time, median of {args.rounds} rounds')
        for layer, sample in samples.items():
            if 'error' in sample:
                print(f"  {layer:24s} {sample['error']}")
                continue
            median, low, high = median_ratio(samples, layer)
            milliseconds = statistics.median(sample['seconds']) * 1e3
            print(
                f'  {layer:24s} {median:5.2f}  ({low:.2f} to {high:.2f}; '
                f'{milliseconds:.0f} ms)',
            )


if __name__ == '__main__':
    main()
