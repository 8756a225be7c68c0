"""A stub of vLLM in its place."""

import sys
from pathlib import Path

import pytest

from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.run import measure

__all__ = ['use_stub']

_STUB = Path(__file__).parent / 'benchmarks/inference/stub_vllm.py'
_MACHINE = Machine(
    gpu=None,
    n_gpus=0,
    gpu_memory_gib=None,
    driver=None,
    cpu='A CPU',
    cpu_features=(),
    cores=2,
    memory_gib=8.0,
    vllm='0.32.0+cpu',
    torch='2.13',
    cuda=None,
)


def use_stub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the harness measure with stub_vllm.py.

    Args:
        folder: For the command.
        monkeypatch: Undoes it.
    """
    vllm = folder / 'vllm'
    vllm.write_text(f'#!/bin/sh\nexec {sys.executable} {_STUB} "$@"\n')
    vllm.chmod(0o755)
    monkeypatch.setattr(measure, 'find_vllm', lambda: vllm)
    monkeypatch.setattr(measure, 'this_machine', lambda _: _MACHINE)
    monkeypatch.setattr(measure.VllmServing, 'death_seconds', 0.3)
    monkeypatch.setattr(measure, '_IDLE_SECONDS', 0.2)
