"""Sparse upcycling of language models as a plugin of LLM Foundry.

Installing the distribution registers everything by entry points; importing
this package registers and loads nothing. What is named here is loaded when it
is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundry_upcycle.checkpoints.open import \
        open_checkpoint as open_checkpoint
    from foundry_upcycle.config import UpcyclingConfig as UpcyclingConfig
    from foundry_upcycle.conversion.convert import convert as convert
    from foundry_upcycle.conversion.export_hf import export_hf as export_hf
    from foundry_upcycle.conversion.import_hf import import_hf as import_hf
    from foundry_upcycle.conversion.in_memory import upcycle as upcycle
    from foundry_upcycle.conversion.verify import verify as verify
    from foundry_upcycle.errors import CheckpointError as CheckpointError
    from foundry_upcycle.errors import ConfigError as ConfigError
    from foundry_upcycle.planning.budget import \
        read_training_budget as read_training_budget
    from foundry_upcycle.study.config import read_study as read_study
    from foundry_upcycle.study.plan_runs import plan_grid as plan_grid

__version__ = '0.1.0'

_MODULES = {
    'CheckpointError': 'errors',
    'ConfigError': 'errors',
    'UpcyclingConfig': 'config',
    'convert': 'conversion.convert',
    'export_hf': 'conversion.export_hf',
    'import_hf': 'conversion.import_hf',
    'open_checkpoint': 'checkpoints.open',
    'plan_grid': 'study.plan_runs',
    'read_study': 'study.config',
    'read_training_budget': 'planning.budget',
    'upcycle': 'conversion.in_memory',
    'verify': 'conversion.verify',
}

__all__ = [
    'CheckpointError',
    'ConfigError',
    'UpcyclingConfig',
    'convert',
    'export_hf',
    'import_hf',
    'open_checkpoint',
    'plan_grid',
    'read_study',
    'read_training_budget',
    'upcycle',
    'verify',
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
