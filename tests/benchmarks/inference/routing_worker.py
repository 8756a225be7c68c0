r"""Routes tokens through vLLM's own simulator, in its environment.

    .venv-vllm/bin/python tests/benchmarks/inference/routing_worker.py \
        LAYERS EXPERTS TOP_K PASSES

With the variables of ``routing_environment``. Prints JSON: of each layer, how
many tokens went to each expert, and whether all ids were int32 and all experts
of each token distinct.
"""

import json
import os
import sys

import torch
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import (  # noqa: E501
    RoutingSimulator,
)
from vllm.plugins import load_general_plugins

__all__ = ['main']

TOKENS = 500


def main(layers: int, experts: int, top_k: int, passes: int) -> None:
    load_general_plugins()
    counts = torch.zeros(layers, experts, dtype=torch.int64)
    fine = True
    for _ in range(passes):
        for layer in range(layers):
            weights, ids = RoutingSimulator.simulate_routing(
                torch.zeros(TOKENS, 4),
                torch.zeros(TOKENS, experts),
                os.environ['VLLM_MOE_ROUTING_SIMULATION_STRATEGY'],
                top_k,
            )
            in_order = ids.sort(dim=1).values
            fine &= bool((in_order[:, 1:] > in_order[:, :-1]).all())
            fine &= ids.dtype == torch.int32
            fine &= torch.allclose(weights.sum(1), torch.ones(TOKENS))
            counts[layer] += ids.flatten().bincount(minlength=experts)
    print(json.dumps({'counts': counts.tolist(), 'fine': fine}))


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
