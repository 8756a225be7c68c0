"""Time and memory of one job, reported by the process that does it.

Standard library only: it also runs in mergekit's environment.
"""

import json
import time
from typing import Callable


def memory_mib(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process.

    The peak that ``getrusage`` gives can be that of the parent process, which
    exec hands on; this one can't.
    """
    with open('/proc/self/status', encoding='ascii') as status:
        lines = dict(line.split(':', 1) for line in status)
    return int(lines[field].removesuffix('kB\n')) / 1024


def measure(job: Callable[[], object]) -> None:
    """Runs ``job`` and prints one line of JSON; call it after all imports."""
    imports_mib = memory_mib('VmRSS')
    start, cpu_start = time.perf_counter(), time.process_time()
    job()
    sample = {
        'seconds': time.perf_counter() - start,
        'cpu_seconds': time.process_time() - cpu_start,
        'imports_mib': imports_mib,
        'peak_mib': memory_mib('VmHWM'),
    }
    print(json.dumps(sample))
