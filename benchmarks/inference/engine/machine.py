"""What this machine is: recorded with every result, and what decides what runs.

Nothing of vLLM is imported: its Python is asked.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from benchmarks.inference.engine.server import find_vllm
from benchmarks.inference.errors import HarnessError

__all__ = ['Machine', 'this_machine', 'usable_cores']

# Instructions that vLLM's kernels for CPUs choose by.
_CPU_FEATURES = ('amx_tile', 'avx512_bf16', 'avx512_vnni', 'avx512f', 'avx2')

# torch itself takes seconds to import; its CUDA is in a file of its own.
_VERSIONS = """
import importlib.metadata as m, importlib.util, json, os, runpy
found = {name: m.version(name) for name in ('vllm', 'torch')}
folder = os.path.dirname(importlib.util.find_spec('torch').origin)
found['cuda'] = runpy.run_path(os.path.join(folder, 'version.py'))['cuda']
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Machine:
    """Facts of a machine.

    Attributes:
        gpu: Name of the first GPU that this process may use; None: there is
            none.
        n_gpus: How many it may use.
        gpu_memory_gib: Of the first, GiB.
        driver: Version of NVIDIA's driver; None: there is no GPU.
        cpu: The processor's name.
        cpu_features: Which of the instructions that matter it has.
        cores: How many this process may use; see ``usable_cores``.
        memory_gib: Main memory that this process may use, GiB.
        vllm: Version, with its build: ``0.32.0+cpu``; None: not installed.
        torch: Version in vLLM's environment.
        cuda: CUDA's version that torch is built for; None: a build for CPUs.
    """
    gpu: Optional[str]
    n_gpus: int
    gpu_memory_gib: Optional[float]
    driver: Optional[str]
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory_gib: float
    vllm: Optional[str]
    torch: Optional[str]
    cuda: Optional[str]

    @property
    def device(self) -> str:
        """``gpu`` or ``cpu``: what vLLM computes on here."""
        is_cpu_build = self.vllm is not None and self.vllm.endswith('+cpu')
        return 'gpu' if self.n_gpus and not is_cpu_build else 'cpu'


def this_machine(vllm: Optional[Path] = None) -> Machine:
    """Looks around.

    Args:
        vllm: The command; see ``server.find_vllm``.
    """
    gpus = _visible(_gpus(), os.environ.get('CUDA_VISIBLE_DEVICES'))
    first = gpus[0] if gpus else None
    versions = _versions(vllm)
    return Machine(
        gpu=first.name if first else None,
        n_gpus=len(gpus),
        gpu_memory_gib=first.memory_gib if first else None,
        driver=first.driver if first else None,
        cpu=_cpu_name(),
        cpu_features=_cpu_features(),
        cores=len(usable_cores()),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        vllm=versions.get('vllm'),
        torch=versions.get('torch'),
        cuda=versions.get('cuda'),
    )


def usable_cores() -> list[int]:
    """Of each core that this process may use, the first of its threads."""
    if not hasattr(os, 'sched_getaffinity'):
        return list(range(os.cpu_count() or 1))
    first_of: dict[str, int] = {}
    for thread in sorted(os.sched_getaffinity(0)):
        topology = f'/sys/devices/system/cpu/cpu{thread}/topology'
        siblings = _read(f'{topology}/thread_siblings_list')
        first_of.setdefault(siblings or str(thread), thread)
    return list(first_of.values())


def _versions(vllm: Optional[Path]) -> dict[str, Optional[str]]:
    try:
        python = find_vllm(vllm).with_name('python')
    except HarnessError:
        return {}
    found = subprocess.run(
        [str(python), '-c', _VERSIONS],
        capture_output=True,
        text=True,
    )
    return json.loads(found.stdout) if found.returncode == 0 else {}


class _Gpu(NamedTuple):
    """A line of nvidia-smi."""
    name: str
    memory_gib: float
    driver: str
    uuid: str


def _gpus() -> list[_Gpu]:
    """All GPUs, in nvidia-smi's order."""
    try:
        found = subprocess.run(
            [
                'nvidia-smi',
                '--query-gpu=name,memory.total,driver_version,uuid',
                '--format=csv,noheader,nounits',
            ],
            capture_output=True,
            text=True,
        )
    except OSError:
        return []
    if found.returncode:
        return []
    gpus = []
    for line in found.stdout.splitlines():
        name, memory, driver, uuid = line.rsplit(', ', 3)
        gpus.append(_Gpu(name, float(memory) / 1024, driver, uuid))
    return gpus


def _visible(gpus: Sequence[_Gpu], listed: Optional[str]) -> list[_Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order.

    Args:
        gpus: All.
        listed: Numbers, or beginnings of UUIDs; CUDA ends at the first that
            names none. None: all are visible.
    """
    if listed is None:
        return list(gpus)
    visible = []
    for entry in listed.split(','):
        entry = entry.strip()
        if entry.isdecimal():
            named = gpus[int(entry):int(entry) + 1]
        else:
            named = [
                gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)
            ]
        if len(named) != 1:
            break
        visible.append(named[0])
    return visible


def _cpu_name() -> str:
    match = re.search(r'model name\s*: (.+)', _read('/proc/cpuinfo'))
    return match[1] if match else platform.processor() or platform.machine()


def _cpu_features() -> tuple[str, ...]:
    match = re.search(r'flags\s*: (.+)', _read('/proc/cpuinfo'))
    flags = match[1].split() if match else []
    return tuple(name for name in _CPU_FEATURES if name in flags)


def _memory_bytes() -> int:
    """The machine's memory, or less where a container limits it."""
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    limit = _read('/sys/fs/cgroup/memory.max').strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ''
