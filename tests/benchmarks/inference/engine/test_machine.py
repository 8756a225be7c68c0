"""What this machine is."""

import sys
from pathlib import Path

import pytest

from benchmarks.inference.engine import machine as machine_module
from benchmarks.inference.engine.machine import this_machine


def command(folder: Path, name: str, script: str) -> Path:
    """An executable of that name."""
    path = folder / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    return path


def test_this_machine(tmp_path: Path):
    machine = this_machine(tmp_path / 'vllm')
    assert machine.vllm is None and machine.torch is None
    assert machine.cores >= 1
    assert machine.memory_gib > 0.5
    assert machine.cpu


def test_versions_are_those_of_vllms_python(tmp_path: Path):
    versions = '{"vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"}'
    command(tmp_path, 'python', f"echo '{versions}'")
    machine = this_machine(command(tmp_path, 'vllm', ''))
    assert (machine.vllm, machine.torch) == ('0.32.0+cpu', '2.13.0+cpu')
    assert machine.device == 'cpu'


def test_a_python_without_vllm(tmp_path: Path):
    command(tmp_path, 'python', f'exec {sys.executable} "$@"')
    vllm = command(tmp_path, 'vllm', '')
    assert this_machine(vllm).vllm is None


@pytest.mark.parametrize(
    ('script', 'gpu', 'n_gpus', 'memory'),
    [
        (
            'echo "NVIDIA H100 80GB HBM3, 81559"; '
            'echo "NVIDIA H100 80GB HBM3, 81559"',
            'NVIDIA H100 80GB HBM3',
            2,
            81559 / 1024,
        ),
        ('echo "no driver"; exit 9', None, 0, None),
        ('true', None, 0, None),
    ],
)
def test_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    gpu: str,
    n_gpus: int,
    memory: float,
):
    command(tmp_path, 'nvidia-smi', script)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    machine = this_machine(tmp_path / 'vllm')
    assert machine.gpu == gpu
    assert machine.n_gpus == n_gpus
    assert machine.gpu_memory_gib == memory


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert this_machine(tmp_path / 'vllm').n_gpus == 0


@pytest.mark.parametrize(
    ('limit', 'gib'),
    [('1073741824\n', 1.0), ('max\n', None), ('', None)],
)
def test_a_containers_memory(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    gib: float,
):
    monkeypatch.setattr(machine_module, '_read', lambda _: limit)
    found = this_machine(Path('there is none')).memory_gib
    assert found == gib if gib else found > 1.0
