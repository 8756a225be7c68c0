"""What vLLM loads: routing from tables, and a record of what it routed.

Two environment variables, either of which may be missing:

- ``SERVING_ROUTING``: a JSON file ``{"seed": s, "top_k": K, "inclusion": [[of
  each expert] of each mixture layer]}`` (see ``tables.draw_table``). A strategy
  `tables` is then registered; ``VLLM_MOE_ROUTING_SIMULATION_STRATEGY=tables``
  selects it.
- ``SERVING_ROUTING_LOG``: a JSON file to write, at most twice a second,
  ``{"top_k": [of each layer], "experts": [of each layer], "tokens": [of each
  layer]}``: what the engine built, whatever it was asked for, and how many
  tokens it routed by tables. What it routed last may be missing.

vLLM calls a strategy without saying for which layer, so layers are told by the
order of the calls: each pass through the model calls all of them in order.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from simulated_routing.tables import ROWS, draw_table
from vllm.model_executor.layers.fused_moe.router import \
    routing_simulator_router as simulator
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

__all__ = ['TableRouting', 'register']

# Seconds between two writes of the record.
_PERIOD = 0.5


class _Record:
    """What was built and routed, and the file that says so.

    Args:
        path: None: nothing is written.
    """

    def __init__(self, path: Optional[Path]):
        self.path = path
        self.top_k: list[int] = []
        self.experts: list[int] = []
        self.written = 0.0

    def add_layer(self, top_k: int, experts: int) -> None:
        self.top_k.append(top_k)
        self.experts.append(experts)
        self.write([])

    def write(self, tokens: list[int]) -> None:
        if self.path is None:
            return
        content = {
            'top_k': self.top_k,
            'experts': self.experts,
            'tokens': tokens,
        }
        # Ranks of tensor parallelism write the same.
        partial = self.path.with_name(f'{self.path.name}.{os.getpid()}')
        partial.write_text(json.dumps(content))
        partial.replace(self.path)
        self.written = time.monotonic()


class _Tables:
    """The tables of all layers, and how far each has been used.

    Only tensors change from one token to the next, on the device and without a
    word from Python, so that routing goes on in a CUDA graph that is replayed.

    Args:
        spec: What ``SERVING_ROUTING`` holds.
        record: Where use is recorded.
    """

    def __init__(self, spec: dict[str, Any], record: _Record):
        self.top_k = spec['top_k']
        self.record = record
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
        if layer == 0:
            self._write_if_due()
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

    def _write_if_due(self) -> None:
        due = time.monotonic() - self.record.written >= _PERIOD
        # Reading a tensor would spoil a CUDA graph that is being captured.
        if due and not (torch.cuda.is_available()
                        and torch.cuda.is_current_stream_capturing()):
            self.record.write(self.used_L.tolist())


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


def _watch_layers(record: _Record) -> None:
    """Records each mixture layer's K, simulated or not, as it is built."""
    build = BaseRouter.__init__

    def build_and_record(self: BaseRouter, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        record.add_layer(self.top_k, self.global_num_experts)

    BaseRouter.__init__ = build_and_record


def register() -> None:
    """Called by vLLM in each of its processes."""
    global _build_tables
    log = os.environ.get('SERVING_ROUTING_LOG')
    record = _Record(Path(log) if log else None)
    if log:
        _watch_layers(record)
    if path := os.environ.get('SERVING_ROUTING'):
        spec = json.loads(Path(path).read_text())
        _build_tables = functools.partial(_Tables, spec, record)
        simulator.RoutingSimulator.register_strategy('tables', TableRouting())
        # On a CPU torch.compile looks into vLLM's router, and would fail at
        # the warning that it simulates.
        torch._dynamo.config.ignore_logging_functions.add(
            simulator.logger.warning_once.__func__
        )
