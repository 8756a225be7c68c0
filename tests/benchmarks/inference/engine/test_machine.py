"""What this machine is."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from benchmarks.inference.engine import machine as machine_module
from benchmarks.inference.engine.machine import this_machine, usable_cores

PAGES = os.sysconf('SC_PHYS_PAGES')
TOTAL_GIB = round(PAGES * os.sysconf('SC_PAGE_SIZE') / 2**30, 1)


def command(folder: Path, name: str, script: str) -> Path:
    """An executable of that name."""
    path = folder / name
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)
    return path


# What `nvidia-smi` says of two.
TWO = """\
echo 'NVIDIA H100 80GB HBM3, 81559, 550.54.15, GPU-11aa'
echo 'NVIDIA A100, PCIe, 40960, 550.54.15, GPU-12bb'
"""


@pytest.fixture(autouse=True)
def no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    command(tmp_path, 'nvidia-smi', 'exit 9')


def test_this_machine(tmp_path: Path):
    machine = this_machine(tmp_path / 'vllm')
    assert machine.vllm is machine.torch is machine.cuda is None
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    assert 0.5 < machine.memory_gib <= TOTAL_GIB + 0.1


def test_what_the_processor_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    said = 'model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f\n'
    monkeypatch.setattr(machine_module, '_read', lambda _: said)
    machine = this_machine(tmp_path / 'vllm')
    assert machine.cpu == 'AMD EPYC'
    assert machine.cpu_features == ('avx512f', 'avx2')


def test_cores_not_threads(monkeypatch: pytest.MonkeyPatch):
    siblings = {1: '1,5', 5: '1,5', 2: '2,6', 7: '3,7'}
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(siblings))
    monkeypatch.setattr(
        machine_module,
        '_read',
        lambda path: siblings[int(re.findall(r'cpu(\d+)/', path)[0])],
    )
    assert usable_cores() == [1, 2, 7]
    # Where Linux does not say.
    monkeypatch.setattr(machine_module, '_read', lambda _: '')
    assert usable_cores() == [1, 2, 5, 7]


def vllm_beside(folder: Path, package: str) -> Path:
    """The command of vLLM, and a Python that has its packages."""
    for name, version in (('vllm', '0.32.0'), ('torch', '2.13.0')):
        info = folder / f'site/{name}-{version}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    torch = folder / 'site/torch'
    torch.mkdir()
    (torch / '__init__.py').write_text('raise SystemExit("imported")')
    (torch / 'version.py').write_text(package)
    command(
        folder,
        'python',
        f'PYTHONPATH={folder}/site exec {sys.executable} -S "$@"',
    )
    return command(folder, 'vllm', '')


@pytest.mark.parametrize('cuda', ['13.0', None])
def test_versions_are_those_of_vllms_python(tmp_path: Path, cuda: str):
    vllm = vllm_beside(tmp_path, f'cuda = {cuda!r}')
    machine = this_machine(vllm)
    assert (machine.vllm, machine.torch) == ('0.32.0', '2.13.0')
    assert machine.cuda == cuda


def test_a_python_without_vllm(tmp_path: Path):
    command(tmp_path, 'python', f'exec {sys.executable} -S "$@"')
    vllm = command(tmp_path, 'vllm', '')
    assert this_machine(vllm).vllm is None


def test_gpus(tmp_path: Path):
    command(tmp_path, 'nvidia-smi', TWO)
    machine = this_machine(tmp_path / 'no vllm')
    assert machine.gpu == 'NVIDIA H100 80GB HBM3'
    assert machine.n_gpus == 2
    assert machine.gpu_memory_gib == 81559 / 1024
    assert machine.driver == '550.54.15'
    assert machine.device == 'gpu'


def test_a_build_for_cpus_uses_no_gpu(tmp_path: Path):
    command(tmp_path, 'nvidia-smi', TWO)
    machine = this_machine(tmp_path / 'no vllm')
    assert replace(machine, vllm='0.32.0+cpu').device == 'cpu'


@pytest.mark.parametrize(
    ('listed', 'gpu', 'n_gpus'),
    [
        ('0', 'NVIDIA H100 80GB HBM3', 1),
        ('1', 'NVIDIA A100, PCIe', 1),
        ('1, 0', 'NVIDIA A100, PCIe', 2),
        ('GPU-12bb,GPU-11aa', 'NVIDIA A100, PCIe', 2),
        ('GPU-11', 'NVIDIA H100 80GB HBM3', 1),
        # It ends at what names none, or more than one.
        ('1,7,0', 'NVIDIA A100, PCIe', 1),
        ('1,-1,0', 'NVIDIA A100, PCIe', 1),
        ('GPU-1', None, 0),
        ('-1', None, 0),
        ('', None, 0),
    ],
)
def test_visible_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
    gpu: str,
    n_gpus: int,
):
    command(tmp_path, 'nvidia-smi', TWO)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', listed)
    machine = this_machine(tmp_path / 'no vllm')
    assert (machine.gpu, machine.n_gpus) == (gpu, n_gpus)


@pytest.mark.parametrize('script', ['echo "no driver"; exit 9', 'true', None])
def test_no_gpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Optional[str],
):
    if script is None:
        monkeypatch.setenv('PATH', str(tmp_path / 'empty'))
    else:
        command(tmp_path, 'nvidia-smi', script)
    machine = this_machine(tmp_path / 'no vllm')
    assert (machine.gpu, machine.n_gpus) == (None, 0)
    assert machine.gpu_memory_gib is machine.driver is None
    assert machine.device == 'cpu'


@pytest.mark.parametrize(
    ('limit', 'gib'),
    [
        ('1073741824\n', 1.0),
        (str(2**60), TOTAL_GIB),
        ('max\n', TOTAL_GIB),
        ('', TOTAL_GIB),
    ],
)
def test_a_containers_memory(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    gib: float,
):
    monkeypatch.setattr(machine_module, '_read', lambda _: limit)
    assert this_machine(Path('there is none')).memory_gib == gib
