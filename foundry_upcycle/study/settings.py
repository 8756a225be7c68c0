"""What a planned YAML says, in one spelling, so that two can be compared."""

import difflib
import hashlib
import os
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.documents import DocumentError, read_config
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration

__all__ = ['CHECKPOINT_TAG', 'difference', 'digest']

# MLflow's tag of what tells a dense checkpoint from others; there is none
# while the checkpoint is not there.
CHECKPOINT_TAG = 'checkpoint'

_TAGS = 'loggers.mlflow.tags'
# Settings that may differ after a run has started.
_FREE = (
    'console_log_interval',
    'device_eval_batch_size',
    'device_train_microbatch_size',
    'dist_timeout',
    'log_to_console',
    'progress_bar',
    'python_log_level',
    'save_interval',
    'save_num_checkpoints_to_keep',
)


def difference(path: Path, text: str, folder: Path) -> str:
    """Where a YAML and its new text set something else; '' if nowhere.

    Interpolations are resolved. A checkpoint that is not there is the same as
    any. The order of keys, and how a number, a duration
    or a path in the study's folder is written, make no difference.

    Args:
        path: The YAML.
        text: What it would be now.
        folder: The study's.

    Raises:
        ConfigError: The YAML can't be read.
    """
    if path.read_bytes() == text.encode():
        return ''
    started, planned = _read(path), OmegaConf.create(text)
    if OmegaConf.select(planned, f'{_TAGS}.{CHECKPOINT_TAG}') is None:
        # It isn't there any more, and nothing can be told of it.
        tags = OmegaConf.select(started, _TAGS) or {}
        tags.pop(CHECKPOINT_TAG, None)
    before, now = _settings(started, folder), _settings(planned, folder)
    lines = difflib.unified_diff(
        _lines(before),
        _lines(_in_the_order_of(before, now)),
        f'{path} (has started)',
        'as the study now plans it',
        lineterm='',
        n=1,
    )
    return '\n'.join(lines)


def digest(text: str, folder: Path) -> str:
    """Names what a YAML sets: one digest, however it is written."""
    settings = _settings(OmegaConf.create(text), folder)
    one_text = yaml.safe_dump(settings)  # Sorts the keys.
    return hashlib.sha256(one_text.encode()).hexdigest()[:8]


def _read(path: Path) -> DictConfig:
    try:
        config = read_config(path)
        if not isinstance(config, DictConfig):
            raise DocumentError('it holds no mapping of keys to values.')
    except DocumentError as error:
        raise ConfigError(
            'folder',
            str(path),
            f'it is what a run has started with, and {error}',
            'restore it; or name another folder and another name in the study '
            'YAML.',
        ) from error
    return config


def _settings(config: Any, folder: Path) -> Any:
    try:
        content: Any = OmegaConf.to_container(config, resolve=True)
        content.pop('variables', None)  # They are where they are used.
    except OmegaConfBaseException:
        content = OmegaConf.to_container(config)
    kept = {key: content[key] for key in content if key not in _FREE}
    return _in_one_spelling(kept, folder)


def _in_one_spelling(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {k: _in_one_spelling(v, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_in_one_spelling(each, folder) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _text(value, folder) if isinstance(value, str) else value


def _text(value: str, folder: Path) -> str:
    whole = os.path.abspath(value)
    if Path(whole).is_relative_to(os.path.abspath(folder)):
        return whole
    try:
        duration = parse_duration('', value)
    except ConfigError:
        return value
    return f'{_in_one_spelling(duration.value, folder)}{duration.unit}'


def _in_the_order_of(other: Any, value: Any) -> Any:
    """The same, with the keys that both have in the order of the other."""
    if isinstance(value, list) and isinstance(other, list):
        pairs = zip(other + [None] * len(value), value)
        return [_in_the_order_of(*pair) for pair in pairs]
    if not (isinstance(value, dict) and isinstance(other, dict)):
        return value
    keys = [key for key in other if key in value]
    keys += [key for key in value if key not in other]
    return {key: _in_the_order_of(other.get(key), value[key]) for key in keys}


def _lines(settings: Any) -> list[str]:
    return yaml.safe_dump(settings, sort_keys=False).splitlines()
