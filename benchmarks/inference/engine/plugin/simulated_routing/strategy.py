"""What vLLM loads: routing from tables, and a record of what it routed.

Two environment variables, either of which may be missing:

- ``SERVING_ROUTING``: a JSON file ``{"seed": s, "top_k": K, "inclusion": [[of
  each expert] of each mixture layer]}`` (see ``tables.draw_table``). A strategy
  `tables` is then registered; ``VLLM_MOE_ROUTING_SIMULATION_STRATEGY=tables``
  selects it.
- ``SERVING_ROUTING_LOG``: a JSON file to write, see ``record``.

vLLM calls a strategy without saying for which layer, so layers are told by the
order of the calls: each pass through the model calls all of them in order.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from simulated_routing.record import Record
from simulated_routing.tables import ROWS, draw_table
from vllm.model_executor.layers.fused_moe.router import \
    routing_simulator_router as simulator
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

__all__ = ['TableRouting', 'register']


class _Tables:
    """The tables of all layers, and how far each has been used.

    Only tensors change from one token to the next, on the device and without a
    word from Python, so that routing goes on in a CUDA graph that is replayed.

    Args:
        spec: What ``SERVING_ROUTING`` holds.
    """

    def __init__(self, spec: dict[str, Any]):
        self.top_k = spec['top_k']
        self.calls = 0
        self.used_L = torch.zeros(len(spec['inclusion']), dtype=torch.int64)
        self.table_LRK = torch.stack([
            torch.from_numpy(
                draw_table(inclusion, self.top_k, spec['seed'], layer)
            ) for layer, inclusion in enumerate(spec['inclusion'])
        ])

    def draw(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Experts of each token, (T, K), int32."""
        self._move(hidden_states.device)
        layer = self.calls % len(self.used_L)
        self.calls += 1
        n_tokens = len(hidden_states)
        used = self.used_L[layer]
        row_T = (torch.arange(n_tokens, device=used.device) + used) % ROWS
        ids_TK = self.table_LRK[layer].index_select(0, row_T)
        used += n_tokens
        return ids_TK

    def _move(self, device: torch.device) -> None:
        if self.used_L.device != device:
            self.used_L = self.used_L.to(device)
            self.table_LRK = self.table_LRK.to(device)

    def count_tokens(self) -> list[int]:
        """How many tokens each layer has routed; waits for the device."""
        return self.used_L.tolist()


# Built in the process that routes, at its first token.
_tables: Optional[_Tables] = None
_build_tables: Optional[Callable[[], _Tables]] = None


# Opaque: torch.compile must neither look into it nor call it once for all.
@torch.library.custom_op('simulated_routing::draw', mutates_args=())
def _draw(hidden_states: torch.Tensor, top_k: int) -> torch.Tensor:
    global _tables
    if _tables is None:
        if _build_tables is None:
            raise RuntimeError('SERVING_ROUTING is not set.')
        _tables = _build_tables()
    if top_k != _tables.top_k:
        raise RuntimeError(
            f'The engine routes to {top_k} experts, SERVING_ROUTING says '
            f'{_tables.top_k}.'
        )
    return _tables.draw(hidden_states)


@_draw.register_fake
def _(hidden_states: torch.Tensor, top_k: int) -> torch.Tensor:
    return hidden_states.new_empty((hidden_states.shape[0], top_k),
                                   dtype=torch.int32)


class TableRouting(simulator.RoutingStrategy):
    """Experts from the tables, all of a token's with the same weight."""

    def route_tokens(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        top_k: int,
        indices_type: Optional[torch.dtype] = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (T, K), float32, and ids (T, K), int32 if not said."""
        ids_TK = torch.ops.simulated_routing.draw(hidden_states, top_k)
        weights_TK = torch.full(
            ids_TK.shape,
            1 / top_k,
            dtype=torch.float32,
            device=ids_TK.device,
        )
        return weights_TK, ids_TK.to(indices_type or torch.int32)


def _watch_layers(record: Record) -> None:
    """Records each mixture layer's K, simulated or not, as it is built."""
    build = BaseRouter.__init__

    def build_and_record(self: BaseRouter, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        record.add_layer(self.top_k, self.global_num_experts)

    BaseRouter.__init__ = build_and_record


def _build(spec: dict[str, Any], record: Optional[Record]) -> _Tables:
    tables = _Tables(spec)
    if record is not None:
        record.answer(tables.count_tokens)
    return tables


def register() -> None:
    """Called by vLLM in each of its processes."""
    global _build_tables
    log = os.environ.get('SERVING_ROUTING_LOG')
    record = Record(Path(log)) if log else None
    if record is not None:
        _watch_layers(record)
    if path := os.environ.get('SERVING_ROUTING'):
        spec = json.loads(Path(path).read_text())
        _build_tables = functools.partial(_build, spec, record)
        simulator.RoutingSimulator.register_strategy('tables', TableRouting())
        # On a CPU torch.compile looks into vLLM's router, and would fail at
        # the warning that it simulates.
        torch._dynamo.config.ignore_logging_functions.add(
            simulator.logger.warning_once.__func__
        )
