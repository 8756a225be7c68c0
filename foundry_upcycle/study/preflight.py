"""What Foundry would say of a study's YAMLs, before anything is trained."""

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, Mapping, Optional

from omegaconf import OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.base_yaml import BaseYaml
from foundry_upcycle.study.grid import Grid, Run
from foundry_upcycle.study.run_files import RunFiles

__all__ = ['check_runs']


def check_runs(grid: Grid) -> None:
    """Checks all YAMLs that are there, and the evaluation's tasks.

    A misspelt setting of the last arm would otherwise show after the
    pretrainings. Of each phase's first run, what Foundry would build is built,
    the model on the meta device, where it takes no memory; and each arm must
    compute what its dense start does, experts aside.

    Nothing is downloaded or written, so these are not checked: tokenizers;
    settings of loaders and loggers beyond their names, and whether the data are
    there; FSDP; kernels that need a GPU (another attention and loss stand in
    for ``flash`` and ``fused_crossentropy``). Foundry ignores unknown keys of
    ``model`` itself, and so does this.

    Raises:
        ConfigError: Foundry would refuse a YAML, or a task; or an arm computes
            something else than its dense start, or can't load it.
        CheckpointError: A checkpoint can't be opened.
        TaskDataError: A task's file can't be used.
    """
    # It imports torch and LLM Foundry.
    from foundry_upcycle.gauntlet.preflight import check_tasks

    _check_experiment(grid.study.name)
    checked: set[str] = set()
    for run in grid.runs:
        yaml = RunFiles(grid.study, run.name).train_yaml
        if yaml.exists():
            _check_training(yaml, build=run.base.key not in checked)
            checked.add(run.base.key)
    _check_starts(grid)
    _check_texts(grid)
    if grid.evaluation is not None:
        # They differ in the model alone.
        yaml = RunFiles(grid.study, grid.runs[0].name).eval_yaml
        _check_evaluation(yaml)
        check_tasks(str(yaml), [])


def _check_experiment(name: str) -> None:
    # Composer puts others below /Users/<user>, and what it logs is not found.
    is_path = name.startswith(('/Users/', '/Shared/'))
    if 'DATABRICKS_TOKEN' in os.environ and not is_path:
        raise ConfigError(
            'name',
            name,
            'it names an experiment of Databricks (DATABRICKS_TOKEN is set).',
            'write it as /Users/<you>/<name> or /Shared/<name>, or unset '
            'DATABRICKS_TOKEN.',
        )


def _check_training(path: Path, build: bool) -> None:
    from llmfoundry.utils.builders import (
        build_algorithm,
        build_optimizer,
        build_scheduler,
    )
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS, TrainConfig

    logged, config = _read(
        path,
        TrainConfig,
        TRAIN_CONFIG_KEYS,
        transforms='all',
    )
    if not build:
        return
    _import_code(path, config)
    with _foundry(path, 'its model'):
        model = _build_on_meta(config.model)
    with _foundry(path, 'its optimizer'):
        build_optimizer(model, config.optimizer.pop('name'), config.optimizer)
    with _foundry(path, 'its scheduler'):
        build_scheduler(config.scheduler.pop('name'), config.scheduler)
    for name, settings in (config.algorithms or {}).items():
        with _foundry(path, f'its algorithm {name}'):
            build_algorithm(name, settings)
    _check_callbacks(path, config, logged)
    _check_names(path, config, [config.train_loader])


def _check_evaluation(path: Path) -> None:
    from llmfoundry.utils.config_utils import EVAL_CONFIG_KEYS, EvalConfig

    _, config = _read(
        path,
        EvalConfig,
        EVAL_CONFIG_KEYS,
        icl_tasks_required=True,
    )
    _import_code(path, config)
    _check_callbacks(path, config, None)
    _check_names(path, config, [])


def _read(path: Path, kind: Any, keys: set[str], **options: Any) -> Any:
    """What Foundry logs of a YAML, and its config."""
    from llmfoundry.utils.config_utils import make_dataclass_and_log_config
    with _foundry(path, 'it'):
        return make_dataclass_and_log_config(
            OmegaConf.load(path),
            kind,
            keys,
            **options,
        )


def _import_code(path: Path, config: Any) -> None:
    from llmfoundry.utils.registry_utils import import_file
    for code in config.code_paths or ():
        with _foundry(path, f'its code_paths: {code}'):
            import_file(code)


def _build_on_meta(model: Mapping[str, Any]) -> Any:
    from llmfoundry.utils.builders import build_composer_model

    # Kernels may need a GPU.
    settings = {
        'loss_fn': 'fused_crossentropy',
        **model,
        'init_device': 'meta',
        'attn_config': {
            'attn_impl': 'flash',
            **(model.get('attn_config') or {}),
        },
    }
    if settings['loss_fn'] == 'fused_crossentropy':
        settings['loss_fn'] = 'torch_crossentropy'
    if settings['attn_config']['attn_impl'] == 'flash':
        settings['attn_config']['attn_impl'] = 'torch'
    return build_composer_model(
        settings.pop('name'),
        settings,
        tokenizer=None,
        master_weights_dtype=settings.pop('master_weights_dtype', None),
    )


def _check_callbacks(
    path: Path,
    config: Any,
    train_config: Optional[Mapping[str, Any]],
) -> None:
    from llmfoundry.utils.builders import build_callback
    for name, settings in (config.callbacks or {}).items():
        with _foundry(path, f'its callback {name}'):
            build_callback(name, settings, train_config)


def _check_names(
    path: Path,
    config: Any,
    loaders: list[Mapping[str, Any]],
) -> None:
    from llmfoundry import registry
    for name in config.loggers or ():
        with _foundry(path, f'its logger {name}'):
            registry.loggers.get(name)
    if config.eval_loader is not None:
        loaders = [*loaders, config.eval_loader]
    for loader in [*loaders, *(config.eval_loaders or ())]:
        with _foundry(path, 'its loader'):
            registry.dataloaders.get(loader['name'])


def _check_starts(grid: Grid) -> None:
    """Checks that each arm goes on with what each of its dense starts is."""
    checked: set[tuple[str, str]] = set()
    for run in grid.runs:
        start, arm = grid.dense_start(run), run.base
        if run.role != 'dense' and (start.name, arm.key) not in checked:
            checked.add((start.name, arm.key))
            if arm.source is not None:
                _require_same_function(_shrunk(arm, arm.source), arm)
                continue
            _require_same_function(_dense(start), arm)
            if start.checkpoint is not None and not arm.is_upcycling:
                _require_loadable(start.checkpoint.path, arm)


def _dense(start: Run) -> Any:
    """What is asked of the checkpoint that an arm will start from."""
    # They import torch and LLM Foundry.
    from foundry_upcycle.checkpoints.base import flatten
    from foundry_upcycle.checkpoints.open import open_checkpoint
    if start.checkpoint is not None:
        return open_checkpoint(start.checkpoint.path)
    return SimpleNamespace(
        path=start.base.path,
        model_config=flatten(_model(start.base)),
    )


def _shrunk(arm: BaseYaml, source: BaseYaml) -> Any:
    """What is asked of the checkpoint that another arm's is shrunk to."""
    from foundry_upcycle.checkpoints.base import flatten
    ffn = _model(arm)['ffn_config']
    return SimpleNamespace(
        path=source.path,
        model_config=flatten({
            **_model(source), 'ffn_config': ffn
        }),
    )


def _check_texts(grid: Grid) -> None:
    """Checks that what mixtures are calibrated on is there."""
    for start in grid.shrunk.values():
        if start.texts is not None and not os.path.exists(start.texts):
            raise ConfigError(
                f'{start.key}.calibrate',
                start.texts,
                'there is no such file or folder.',
                'name a text file, a folder of them, or an MDS folder.',
            )


def _require_loadable(path: str, arm: BaseYaml) -> None:
    """Checks that Composer loads the kind of checkpoint that there is."""
    kinds = {False: 'a file', True: 'a sharded folder'}
    loads, there = arm.saves_sharded, os.path.isdir(path)
    if loads != there:
        state_dict_type = 'sharded' if there else 'full'
        raise ConfigError(
            f'{arm.path}: fsdp_config.state_dict_type',
            'sharded' if loads else None,
            f'with it Composer loads {kinds[loads]}, and {path} is '
            f'{kinds[there]}.',
            f'set it to {state_dict_type}, here or in overrides.',
        )


def _require_same_function(dense: Any, arm: BaseYaml) -> None:
    """Checks what no size shows: heads, rotary positions, norms, activation."""
    # They import torch and LLM Foundry.
    from foundry_upcycle.checkpoints.exactness import (
        check_same_function,
        check_same_model,
    )
    try:
        if arm.is_upcycling:
            check_same_function(dense, _model(arm))
        else:
            check_same_model(dense, _model(arm), 'model')
    except ConfigError as error:
        error.args = (f'{arm.path}: {error}', )
        raise


def _model(base: BaseYaml) -> dict[str, Any]:
    model = OmegaConf.to_container(base.config.model, resolve=True)
    assert isinstance(model, dict)  # For pyright.
    return {str(key): value for key, value in model.items()}


@contextmanager
def _foundry(path: Path, part: str) -> Iterator[None]:
    """Says of an error which YAML and which part of it Foundry refuses."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # The run itself will say it.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:  # Of Foundry, OmegaConf, the registry, ...
        raise ConfigError(
            'study',
            str(path),
            f'LLM Foundry refuses {part}: {type(error).__name__}: {error}',
            'change the YAML that it is planned from, or the overrides.',
        ) from error
    finally:
        logging.disable(disabled)
