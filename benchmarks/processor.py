"""The processor, for the head of a report."""

import platform
from pathlib import Path

__all__ = ['processor_name']


def processor_name() -> str:
    """As Linux calls it; elsewhere, its architecture."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line for line in lines if line.startswith('model name')]
    if names:
        return names[0].partition(':')[2].strip()
    return platform.processor() or platform.machine()
