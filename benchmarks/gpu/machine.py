"""What the pack runs on, and whether it can."""

import importlib.metadata
import importlib.util
import platform
import subprocess
import time
from typing import Any, Optional

from benchmarks.processor import processor_name
from foundry_upcycle.errors import ConfigError

__all__ = ['describe_machine', 'require_device', 'version_of']

# The first generation that computes in bfloat16: Ampere.
_LEAST_CAPABILITY = (8, 0)
_PACKAGES = (
    'foundry_upcycle',
    'llm-foundry',
    'mosaicml',
    'mosaicml-streaming',
    'transformers',
    'triton',
    'flash-attn',
    'megablocks',
)


def require_device(device: str) -> None:
    """Refuses a machine on which nothing would run.

    Args:
        device: ``cuda`` or ``cpu``.

    Raises:
        ConfigError: There is no such device, or one that lacks bfloat16.
    """
    import torch

    if device == 'cpu':
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            '--device',
            device,
            f'torch {torch.__version__} (CUDA {torch.version.cuda}) finds no '
            'GPU.',
            'install a torch for the CUDA of your driver (nvidia-smi shows '
            'both), or try the pack at tiny size with --device cpu.',
        )
    capability = torch.cuda.get_device_capability()
    if capability < _LEAST_CAPABILITY:
        name = torch.cuda.get_device_name()
        raise ConfigError(
            '--device',
            device,
            f'{name} has compute capability {capability[0]}.{capability[1]}, '
            'which has no bfloat16.',
            'use a GPU of capability 8.0 (Ampere) or later, or --device cpu.',
        )


def describe_machine(device: str) -> dict[str, Any]:
    """Facts for the head of the report.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    import torch

    facts = {
        'date': time.strftime('%Y-%m-%d'),
        'device': device,
        'card': None,
        'driver': _driver(),
        'processor': processor_name(),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        **{
            name: version_of(name)
            for name in _PACKAGES
        },
    }
    if device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        facts['card'] = (
            f'{card.name}, {card.total_memory / 2**30:.0f} GiB, '
            f'capability {card.major}.{card.minor}'
        )
    return facts


def version_of(package: str) -> Optional[str]:
    """Of an installed package; None: there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> Optional[str]:
    command = ('nvidia-smi', '--query-gpu=driver_version', '--format=csv')
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.splitlines()[-1] if found.returncode == 0 else None
