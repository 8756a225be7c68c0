"""What can be checked of a run before anything is loaded, or said of it."""

import warnings
from pathlib import Path
from typing import Any, Mapping, Sequence

from llmfoundry.utils.registry_utils import import_file
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.checkpoints.exactness import check_same_model
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.documents import DocumentError, read_config
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.gauntlet.gauntlets import (
    announce_left_out,
    parse_gauntlet,
    read_gauntlet,
)
from foundry_upcycle.gauntlet.tasks import check_data, parse_tasks, read_tasks

__all__ = ['check_eval', 'check_tasks']

_MPT = ('mpt_causal_lm', 'upcycled_mpt')


def check_eval(yaml_path: str, overrides: Sequence[str]) -> None:
    """Checks tasks and checkpoints of an eval YAML; see ``check_tasks``.

    Checkpoints at a URI are warned of, and pass.

    Raises:
        ConfigError: A task can't be run, or a checkpoint is not of its model.
        CheckpointError: A checkpoint is missing or damaged.
        TaskDataError: A task's file can't be used.
    """
    config = _load(yaml_path, overrides)
    _check_tasks(config)
    models = config.get('models')
    if models is None:
        models = [config]  # As train YAMLs have it.
    _require_list('models', models, Mapping, 'models with their load_path')
    for index, entry in enumerate(models):
        key = f'models[{index}].model' if 'models' in config else 'model'
        model, load_path = entry.get('model') or {}, entry.get('load_path')
        if not isinstance(model, Mapping):
            problem = 'it is not a mapping of settings.'
            raise ConfigError(key, model, problem, 'write its settings below.')
        if model.get('name') not in _MPT or not isinstance(load_path, str):
            continue
        if '://' in load_path:  # The run downloads it, once.
            warnings.warn(
                f'{load_path} is not compared with {key} beforehand. The run '
                'compares names and shapes only: see that activation, number '
                'of heads, rope and norm settings are those of its training.',
                UpcyclingWarning,
                stacklevel=2,
            )
        else:
            check_same_model(open_checkpoint(load_path), model, key)


def check_tasks(yaml_path: str, overrides: Sequence[str]) -> None:
    """Checks the in-context tasks of a YAML, and their files on disk.

    Prints which tasks a prepared gauntlet lacks.

    Args:
        yaml_path: Of a training or an evaluation.
        overrides: ``key=value``, as on the command line.

    Raises:
        ConfigError: A task can't be run, or the gauntlet scores one that is
            not run.
        TaskDataError: A task's file can't be used.
    """
    _check_tasks(_load(yaml_path, overrides))


def _load(yaml_path: str, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        written = read_config(yaml_path)
        if not isinstance(written, DictConfig):
            raise DocumentError('it is not a mapping of settings.')
    except DocumentError as error:
        raise ConfigError(
            'YAML',
            yaml_path,
            str(error),
            'name a YAML of a training or an evaluation.',
        ) from error
    config = OmegaConf.merge(written, OmegaConf.from_cli(list(overrides)))
    assert isinstance(config, DictConfig)  # Both are.
    # Of these only: others may have values that only Foundry resolves.
    names = (
        'code_paths',
        'icl_tasks',
        'eval_gauntlet',
        'models',
        'model',
        'load_path',
    )
    return {name: _resolved(config, name) for name in names if name in config}


def _resolved(config: DictConfig, name: str) -> Any:
    try:
        value = config[name]
        if OmegaConf.is_config(value):
            return OmegaConf.to_container(value, resolve=True)
        return value
    except OmegaConfBaseException as error:
        raise ConfigError(
            error.full_key or name,
            None,
            f"it can't be resolved ({str(error).splitlines()[0]}).",
            'write its value, in the YAML or behind its name.',
        ) from error


def _require_list(key: str, value: Any, kind: Any, meaning: str) -> None:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(each, kind) for each in value):
        problem = f'it is not a list of {meaning}.'
        raise ConfigError(key, value, problem, 'write a list of them.')


def _check_tasks(config: Mapping[str, Any]) -> None:
    tasks, gauntlet = config.get('icl_tasks'), config.get('eval_gauntlet')
    if tasks is None:
        if gauntlet is not None:
            _check_gauntlet(gauntlet, set())
        return
    code_paths = config.get('code_paths') or ()
    _require_list('code_paths', code_paths, str, 'Python files')
    for path in code_paths:
        import_file(path)  # It may bring types of tasks.
    tasks = read_tasks(tasks) if isinstance(tasks, str) else parse_tasks(tasks)
    for task in tasks:
        if '://' not in task.dataset_uri:
            check_data(task, Path(task.dataset_uri))
    if gauntlet is None:
        return
    _check_gauntlet(gauntlet, {b for task in tasks for b in task.benchmarks})
    if isinstance(gauntlet, str):
        announce_left_out(gauntlet)


def _check_gauntlet(gauntlet: str | Mapping[str, Any], run: set[str]) -> None:
    if isinstance(gauntlet, str):
        parsed = read_gauntlet(gauntlet)
    else:
        parsed = parse_gauntlet('eval_gauntlet', {'eval_gauntlet': gauntlet})
    missing = [b.label for b in parsed.benchmarks if b.label not in run]
    if missing:
        raise ConfigError(
            'eval_gauntlet',
            parsed.name,
            f"it scores {', '.join(missing)}, which icl_tasks does not have; "
            'Foundry would drop their whole categories.',
            'add these to icl_tasks, or take them out of the gauntlet: '
            '`foundry-upcycle gauntlet prepare` writes both for the files '
            'that are there.',
        )
