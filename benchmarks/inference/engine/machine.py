"""What this machine is: recorded with every result, and what decides what runs.

Nothing of vLLM is imported: its Python is asked.
"""

import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from benchmarks.inference.engine.server import find_vllm
from benchmarks.inference.errors import HarnessError

__all__ = ['Machine', 'this_machine']

# Instructions that vLLM's kernels for CPUs choose by.
_CPU_FEATURES = ('amx_tile', 'avx512_bf16', 'avx512_vnni', 'avx512f', 'avx2')

_VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({name: m.version(name) for name in ('vllm', 'torch')}))
"""


@dataclass(frozen=True)
class Machine:
    """Facts of a machine.

    Attributes:
        gpu: Name of the first GPU; None: there is none.
        n_gpus: How many.
        gpu_memory_gib: Of one, GiB.
        cpu: The processor's name.
        cpu_features: Which of the instructions that matter it has.
        cores: That this process may use.
        memory_gib: Main memory that this process may use, GiB.
        vllm: Version, with its build: ``0.32.0+cpu``; None: not installed.
        torch: Version in vLLM's environment.
    """
    gpu: Optional[str]
    n_gpus: int
    gpu_memory_gib: Optional[float]
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    memory_gib: float
    vllm: Optional[str]
    torch: Optional[str]

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
    names, memory = _gpus()
    versions = _versions(vllm)
    return Machine(
        gpu=names[0] if names else None,
        n_gpus=len(names),
        gpu_memory_gib=memory,
        cpu=_cpu_name(),
        cpu_features=_cpu_features(),
        cores=_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        vllm=versions.get('vllm'),
        torch=versions.get('torch'),
    )


def _versions(vllm: Optional[Path]) -> dict[str, str]:
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


def _gpus() -> tuple[list[str], Optional[float]]:
    """Names of all GPUs, and the memory of the first in GiB."""
    try:
        found = subprocess.run(
            [
                'nvidia-smi',
                '--query-gpu=name,memory.total',
                '--format=csv,noheader,nounits',
            ],
            capture_output=True,
            text=True,
        )
    except OSError:
        return [], None
    rows = [line.rsplit(',', 1) for line in found.stdout.splitlines() if line]
    if found.returncode or not rows:
        return [], None
    return [row[0].strip() for row in rows], float(rows[0][1]) / 1024


def _cpu_name() -> str:
    match = re.search(r'model name\s*: (.+)', _read('/proc/cpuinfo'))
    return match[1] if match else platform.processor() or platform.machine()


def _cpu_features() -> tuple[str, ...]:
    match = re.search(r'flags\s*: (.+)', _read('/proc/cpuinfo'))
    flags = match[1].split() if match else []
    return tuple(name for name in _CPU_FEATURES if name in flags)


def _cores() -> int:
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
