"""The Foundry YAMLs of a study's runs: one to train, one to evaluate."""

import hashlib
import shlex
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional

from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.base_yaml import BaseYaml
from foundry_upcycle.study.config import number_text
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.grid import Grid, Run, evaluation_run_name
from foundry_upcycle.study.phase_checks import TEACHER_KEY
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.settings import CHECKPOINT_TAG

__all__ = [
    'HEADER',
    'eval_yaml',
    'last_checkpoint_name',
    'saved_checkpoint',
    'shrunk_checkpoint',
    'train_yaml',
]

# How the file of every planned YAML begins.
HEADER = '# Planned from '
# Registered optimizers that decouple weight decay from the learning rate, by
# which they divide its part of the step; and all named decoupled_*.
_DECOUPLED = ('adalr_lion', 'clip_lion')
# A key that is removed.
_GONE = object()


def train_yaml(
    grid: Grid,
    run: Run,
    rate: Optional[float],
    source: Optional[Run] = None,
) -> str:
    """The YAML that trains a run.

    It is the phase's, with these set: the run's name, seeds and length; the
    checkpoint that it starts from, and that of its teacher; where it saves and
    logs. Where the
    study has another learning rate than the YAML, weight decay is scaled with
    it: Foundry's decoupled optimizers take ``weight_decay`` off the weights at
    a step of full learning rate, whatever that is, so that the usual ``lr *
    weight decay`` is kept.

    Args:
        grid: The study's runs.
        run: One of them.
        rate: Its learning rate, if the study or a sweep says one.
        source: The run whose mixture it starts from, shrunk, if it does.
    """
    settings = _train_settings(grid, run, rate, source)
    _refuse_overrides(run.base, settings)
    return _text(run.base.config, settings, run.base.path)


def eval_yaml(grid: Grid, evaluation: EvaluationYaml, run: Run) -> str:
    """The YAML that evaluates a run: the study's, with this one model.

    It is evaluated at the sequence length that it was trained with, and with
    the K of the run where that only evaluates another one's model.
    """
    files = RunFiles(grid.study, run.name)
    settings = {
        'run_name': evaluation_run_name(run.name),
        'models': [_model_entry(grid, run)],
        'max_seq_len': run.base.seq_len,
        'callbacks.icl_results.folder': str(files.answers),
        # An evaluation that died is done again.
        'callbacks.icl_results.overwrite': True,
        'loggers.mlflow': _mlflow(grid, run),
    }
    return _text(evaluation.config, settings, evaluation.path)


def _train_settings(
    grid: Grid,
    run: Run,
    rate: Optional[float],
    source: Optional[Run],
) -> dict[str, Any]:
    """All that a study sets in a run's YAML: full keys, and their values."""
    settings = {
        'run_name': run.name,
        'max_duration': run.base.max_duration(run.n_steps),
        'save_folder': str(RunFiles(grid.study, run.name).checkpoints),
        'autoresume': True,
        # What is done is told by the names of Composer's default.
        'save_filename': _GONE,
        'save_latest_filename': _GONE,
        'loggers.mlflow': _mlflow(grid, run),
    }
    if run.place.seed is not None:
        settings.update(_seeds(run.base, run.place.seed))
    if source is not None:
        settings.update(_shrunk_start(grid, run, source))
    elif run.role != 'dense':
        start = saved_checkpoint(grid, grid.dense_start(run))
        settings.update(_start(run.base, start))
    if rate is not None:
        settings.update(_learning_rate(run.base, rate))
    return settings


def _refuse_overrides(base: BaseYaml, settings: Iterable[str]) -> None:
    """Refuses what would be overwritten."""
    for key in settings:
        value: Any = base.phase.overrides
        for name in key.split('.'):
            value = value.get(name, _GONE) if isinstance(value, dict) else _GONE
        if value is not _GONE:
            raise ConfigError(
                f'{base.key}.overrides.{key}',
                value,
                'the study sets it itself, for each of its runs.',
                'remove it; it follows from durations, seeds, lr, name, folder '
                'and tracking_uri of the study YAML.',
            )


def _learning_rate(base: BaseYaml, rate: float) -> dict[str, Any]:
    optimizer = base.config.optimizer
    name = str(optimizer.name)
    settings: dict[str, Any] = {'optimizer.lr': rate}
    if name.startswith('decoupled') or name in _DECOUPLED:
        settings['optimizer.weight_decay'] = (
            optimizer.weight_decay * (rate / optimizer.lr)
        )
    return settings


def _seeds(base: BaseYaml, seed: int) -> dict[str, Any]:
    settings = {'seed': seed}
    for section, key in (
        ('train_loader.dataset', 'shuffle_seed'),
        ('callbacks.sparse_upcycling', 'seed'),
    ):
        if OmegaConf.select(base.config, section) is not None:
            settings[f'{section}.{key}'] = seed
    return settings


def _start(base: BaseYaml, checkpoint: str) -> dict[str, Any]:
    if base.is_upcycling:
        settings: dict[str, Any] = {
            'callbacks.sparse_upcycling.source_path': checkpoint,
        }
        content: Any = OmegaConf.to_container(base.config)
        if content.get('load_path') is not None:
            # The callback refuses to act on a model that was loaded.
            settings['load_path'] = _GONE
        return settings
    # A fresh optimizer, as in the paper.
    return {'load_path': checkpoint, 'load_weights_only': True}


def _shrunk_start(grid: Grid, run: Run, source: Run) -> dict[str, Any]:
    settings = _start(run.base, shrunk_checkpoint(grid, run))
    if run.base.teacher is not None:
        settings[f'{TEACHER_KEY}.teacher'] = saved_checkpoint(grid, source)
    return settings


def last_checkpoint_name(base: BaseYaml) -> str:
    """How the link to a run's newest checkpoint is called, on rank 0.

    It is chosen by Foundry, from what the YAML says alone: sharded folders of
    FSDP2's default have the name of a file, and the file of one GPU, where
    there is no FSDP, may have that of a folder.
    """
    return 'latest-sharded-rank0' if base.saves_sharded else 'latest-rank0.pt'


def shrunk_checkpoint(grid: Grid, run: Run) -> str:
    """What a run starts from, where that has been shrunk.

    Its name says from what, and how: another is none that is done.
    """
    shrunk = run.base.phase.shrunk
    assert run.source is not None and shrunk is not None  # For pyright.
    text = shlex.join([run.source.name, *shrunk.options])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    ending = '' if run.base.saves_sharded else '.pt'
    name = f'{run.weights.place.name}.{digest}{ending}'
    return str(grid.study.folder / 'shrunk' / name)


def saved_checkpoint(grid: Grid, run: Run) -> str:
    """The model of a run that is done."""
    if run.checkpoint is not None:
        return run.checkpoint.path
    if run.source is not None and not run.weights.is_training:
        return shrunk_checkpoint(grid, run)
    folder = RunFiles(grid.study, run.weights.name).checkpoints
    return str(folder / last_checkpoint_name(run.base))


def _mlflow(grid: Grid, run: Run) -> dict[str, Any]:
    """Whole: metrics that are renamed or left out would not be found."""
    study = grid.study
    tags = {
        'model': run.place.model,
        'duration': run.place.duration,
        'arm': run.place.arm or 'dense',
        grid.model(run).unit: number_text(run.place.budget),
    }
    start = grid.dense_start(run).checkpoint
    if start is not None and start.identity is not None:
        # So that a run is not compared with one of another start.
        tags[CHECKPOINT_TAG] = start.identity
    return {
        'experiment_name': study.name,
        'tracking_uri': study.tracking_uri,
        'tags': tags,
        'resume': True,
        # A run that is killed has then logged all its steps.
        'synchronous': True,
        'log_system_metrics': False,
        'log_duplicated_metric_every_n_steps': 1,
    }


def _model_entry(grid: Grid, run: Run) -> dict[str, Any]:
    model, tokenizer = (
        run.base.resolved(key) for key in ('model', 'tokenizer')
    )
    if model.get('init_device') == 'meta':
        # What loads into an evaluation without an optimizer.
        model['init_device'] = 'mixed'
    if run.served_top_k is not None:
        model['ffn_config']['moe_top_k'] = run.served_top_k
    return {
        'model_name': run.name,
        'load_path': saved_checkpoint(grid, run),
        'tokenizer': tokenizer,
        'model': model,
    }


def _text(config: DictConfig, settings: Mapping[str, Any], base: Path) -> str:
    """A YAML with these keys set, or removed."""
    config = config.copy()
    for key, value in settings.items():
        if value is _GONE:
            config.pop(key, None)
        else:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    header = (
        f'{HEADER}{base} by `foundry-upcycle study`: change that, or\n'
        '# the study YAML.\n'
    )
    return header + OmegaConf.to_yaml(config)
