"""What this machine can run of a study, and why not the rest."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.engine.variants import engine_of, unavailable
from benchmarks.inference.text_table import text_table

__all__ = ['diagnose']

_HEADER = ('server', 'weights', 'KV cache', 'needs about', 'runs here')

# What vLLM needs beside weights and KV cache, GiB a device: activations,
# libraries, graphs. A rough figure, from servers of 0.4 to 1.6 B parameters.
_OVERHEAD_GIB = 2.0


def diagnose(
    machine: Machine,
    servers: Iterable[Mapping[str, Any]],
) -> tuple[list[str], bool]:
    """Lines: the machine, then a table of servers; and whether none fails.

    A server that is skipped does not fail: a run says why, and goes on.

    Args:
        machine: This one.
        servers: Of each, ``label``, ``architecture``, ``variant``,
            ``load_format``, ``weight_bytes`` (None: unknown), ``greedy`` and
            ``engine``, the study's section; where its model can't be served,
            ``problem``.
    """
    rows: list[tuple[str, ...]] = [_HEADER]
    all_run = True
    for server in servers:
        row, fails = _row(machine, server)
        rows.append(row)
        all_run = all_run and not fails
    return [*_facts(machine), '', *text_table(rows)], all_run


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


def _row(
    machine: Machine,
    server: Mapping[str, Any],
) -> tuple[tuple[str, ...], bool]:
    """Its cells, and whether it fails."""
    engine = engine_of(server['variant'], server['engine'])
    kv_gib = engine.get('kv_cache_gib')
    weights_gib = needed_gib = None
    if server['weight_bytes'] is not None:
        weights_gib = server['weight_bytes'] / 2**30
        devices = engine['tensor_parallel_size']
        needed_gib = _needed_gib(machine, weights_gib, kv_gib, devices)
    failure = _failure(machine, server, needed_gib)
    skipped = unavailable(
        server['variant'],
        machine,
        server['load_format'],
        server['architecture'],
        server['engine'].get('tensor_parallel_size') or 1,
        server['greedy'],
    )
    # Without vLLM nobody knows what would be skipped.
    if skipped and machine.vllm:
        failure, verdict = None, f'skipped: {skipped}'
    else:
        verdict = f'no: {failure}' if failure else 'yes'
    row = (
        server['label'],
        'unknown' if weights_gib is None else f'{weights_gib:.1f} GiB',
        "vLLM's choice" if kv_gib is None else f'{kv_gib:g} GiB',
        'unknown' if needed_gib is None else f'{needed_gib:.1f} GiB',
        verdict,
    )
    return row, failure is not None


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


def _failure(
    machine: Machine,
    server: Mapping[str, Any],
    needed_gib: Optional[float],
) -> Optional[str]:
    """Why a server that is not skipped can't run."""
    if machine.vllm is None:
        return 'vLLM is not installed'
    if server.get('problem'):
        return server['problem']
    on_gpu = machine.device == 'gpu'
    there_is = machine.gpu_memory_gib if on_gpu else machine.memory_gib
    if (needed_gib or 0) > (there_is or 0):
        return f'it has {there_is} GiB'
    return None
