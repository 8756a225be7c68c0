"""What this machine can run of a study, and why not the rest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.engine.variants import changes_of, unavailable

__all__ = ['diagnose']

_HEADER = ('server', 'weights', 'KV cache', 'needs about', 'runs here')

# What vLLM needs beside weights and KV cache, GiB a device: activations,
# libraries, graphs. A rough figure, from servers of 0.4 to 1.6 B parameters.
_OVERHEAD_GIB = 2.0


def diagnose(
    machine: Machine,
    servers: Iterable[Mapping[str, Any]],
) -> Iterator[str]:
    """Lines: the machine, then a table of servers.

    Args:
        machine: This one.
        servers: Of each, ``label``, ``architecture``, ``variant``,
            ``load_format``, ``weight_bytes`` (None: unknown) and ``engine``,
            the study's section; where its model can't be served, ``problem``.
    """
    yield from _facts(machine)
    yield ''
    rows = [_row(machine, server) for server in servers]
    yield from _table([_HEADER, *rows])


def _facts(machine: Machine) -> Iterator[str]:
    if machine.vllm:
        yield f'vLLM {machine.vllm}, torch {machine.torch}'
    else:
        yield 'no vLLM: run `make install-vllm`, use .venv-vllm/bin/python'
    if machine.n_gpus:
        memory = f'{machine.gpu_memory_gib:.0f} GiB'
        yield f'{machine.n_gpus} x {machine.gpu}, {memory} each'
        if machine.device == 'cpu':
            yield 'but vLLM is its CPU build, which does not use them'
    else:
        yield 'no GPU: figures of a CPU say little of a GPU'
    features = ' '.join(machine.cpu_features)
    yield (
        f'{machine.cores} cores of {machine.cpu} ({features}), '
        f'{machine.memory_gib:.0f} GiB'
    )


def _row(machine: Machine, server: Mapping[str, Any]) -> tuple[str, ...]:
    changes = changes_of(server['variant'], server['engine'], machine)
    devices = changes.engine['tensor_parallel_size']
    kv_gib = changes.engine.get('kv_cache_gib')
    weights_gib = needed_gib = None
    if server['weight_bytes'] is not None:
        weights_gib = server['weight_bytes'] / 2**30
        needed_gib = _needed_gib(machine, weights_gib, kv_gib, devices)
    return (
        server['label'],
        'unknown' if weights_gib is None else f'{weights_gib:.1f} GiB',
        "vLLM's choice" if kv_gib is None else f'{kv_gib:g} GiB',
        'unknown' if needed_gib is None else f'{needed_gib:.1f} GiB',
        _verdict(machine, server, devices, needed_gib),
    )


def _needed_gib(
    machine: Machine,
    weights_gib: float,
    kv_gib: Optional[float],
    devices: int,
) -> float:
    """Of one GPU; of a CPU's memory, which all ranks share."""
    if machine.device == 'gpu':
        return weights_gib / devices + (kv_gib or 0) + _OVERHEAD_GIB
    return weights_gib + devices * ((kv_gib or 0) + _OVERHEAD_GIB)


def _verdict(
    machine: Machine,
    server: Mapping[str, Any],
    devices: int,
    needed_gib: Optional[float],
) -> str:
    reason = server.get('problem') or unavailable(
        server['variant'],
        machine,
        server['load_format'],
        server['architecture'],
        devices,
    )
    if machine.vllm is None:
        reason = 'vLLM is not installed'
    on_gpu = machine.device == 'gpu'
    there_is = machine.gpu_memory_gib if on_gpu else machine.memory_gib
    if not reason and (needed_gib or 0) > (there_is or 0):
        reason = f'it has {there_is} GiB'
    return f'no: {reason}' if reason else 'yes'


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        yield '  '.join(cells).rstrip()
