"""What a study asks of the train YAML of a phase."""

from pathlib import Path
from typing import Any, Mapping

from omegaconf import DictConfig

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.study.config import Phase
from foundry_upcycle.study.foundry_yaml import select, select_any

__all__ = ['TEACHER_KEY', 'check_phase']

# What distils a run from the mixture that it is shrunk from.
TEACHER_KEY = 'algorithms.upcycle_distill'


def check_phase(
    key: str,
    phase: Phase,
    config: DictConfig,
    seq_len: int,
) -> None:
    """Checks what decides whether its runs can be planned, and gone on with.

    Args:
        key: Of the phase in the study YAML.
        phase: Where the YAML lies, and the changes.
        config: Its content, changed.
        seq_len: Its ``max_seq_len``.

    Raises:
        ConfigError: A setting can't be used.
    """
    _check_optimizer(key, phase, config)
    _check_data(phase.yaml, config, seq_len)
    _check_schedule(phase.yaml, config)
    _check_saving(phase.yaml, config)
    _check_upcycling(phase, config)
    _check_teacher(phase, config)
    _check_metrics(phase.yaml, config)


def _check_optimizer(key: str, phase: Phase, config: Any) -> None:
    select(phase.yaml, config, 'optimizer.lr', (float, int))
    if not phase.learning_rates:
        return
    select(phase.yaml, config, 'optimizer.name', str)
    select(phase.yaml, config, 'optimizer.weight_decay', (float, int))
    if not config.optimizer.lr > 0:
        raise ConfigError(
            f'{phase.yaml}: optimizer.lr',
            config.optimizer.lr,
            f'weight decay is scaled from it to {key}.lr.',
            'set it above 0.',
        )


def _check_data(path: Path, config: Any, seq_len: int) -> None:
    key = 'train_loader.dataset.max_seq_len'
    length = select_any(path, config, key)
    if length not in (None, seq_len):
        raise ConfigError(
            f'{path}: {key}',
            length,
            f'the model trains on sequences of this length, and FLOPs are '
            f'counted of max_seq_len: {seq_len}.',
            'write ${max_seq_len}.',
        )


def _check_schedule(path: Path, config: Any) -> None:
    key = 'scheduler.t_max'
    text = select_any(path, config, key)
    if text is None:
        return
    if parse_duration(f'{path}: {key}', text).unit != 'dur':
        raise ConfigError(
            f'{path}: {key}',
            text,
            'runs of a study have lengths of their own.',
            'write it in dur, such as 1dur, or remove it.',
        )


# Keys that leave a run without what it is to go on from -> the values.
_NOTHING_SAVED: Mapping[str, Any] = {
    'only_hf_checkpoint': True,
    'save_num_checkpoints_to_keep': 0,
    'save_overwrite': True,
    'save_weights_only': True,
}


def _check_saving(path: Path, config: Any) -> None:
    for key, refused in _NOTHING_SAVED.items():
        value = select_any(path, config, key)
        if type(value) is type(refused) and value == refused:
            raise ConfigError(
                f'{path}: {key}',
                value,
                'runs go on from their last checkpoint, which this would not '
                'leave to them.',
                'remove it, here or in overrides.',
            )


def _check_teacher(phase: Phase, config: Any) -> None:
    if phase.shrunk is None and select_any(phase.yaml, config,
                                           TEACHER_KEY) is not None:
        raise ConfigError(
            f'{phase.yaml}: {TEACHER_KEY}',
            'a section',
            'of a study, what is distilled has been shrunk, and learns from '
            'the mixture that it was.',
            'remove it, or add shrink to the arm.',
        )


def _check_upcycling(phase: Phase, config: Any) -> None:
    key, path, model = 'callbacks.sparse_upcycling', phase.yaml, config.model
    upcycling = select_any(path, config, key)
    is_upcycling = (
        model.get('name') == 'upcycled_mpt' and phase.shrunk is None
    )
    if is_upcycling != (upcycling is not None):
        raise ConfigError(
            f'{path}: model.name',
            model.get('name'),
            'the callback sparse_upcycling goes with upcycled_mpt, and with '
            'nothing else; what has been shrunk is upcycled already.',
            'add the callback, or remove it, or change the model.',
        )
    if upcycling is not None and 'recipe' in upcycling:
        select(path, config, f'{key}.recipe.name', str)
        # It imports torch.
        from foundry_upcycle.recipes import get_recipe
        get_recipe(upcycling.recipe)


def _check_metrics(path: Path, config: Any) -> None:
    key, model = 'model.use_train_metrics', config.model
    value = select_any(path, config, key)
    if 'use_train_metrics' in model and not value:
        raise ConfigError(
            f'{path}: {key}',
            value,
            'a study reads the training loss.',
            'remove it, or set it to true.',
        )
