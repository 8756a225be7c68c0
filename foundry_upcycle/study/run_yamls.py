"""The Foundry YAMLs of a study's runs: one to train, one to evaluate."""

from pathlib import Path
from typing import Any, Optional

from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.study.base_yaml import BaseYaml
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.grid import Grid, Run, evaluation_run_name
from foundry_upcycle.study.run_files import RunFiles

__all__ = ['HEADER', 'eval_yaml', 'last_checkpoint_name', 'train_yaml']

# How the file of every planned YAML begins.
HEADER = '# Planned from '
# Registered optimizers that decouple weight decay from the learning rate, by
# which they divide its part of the step; and all named decoupled_*.
_DECOUPLED = ('adalr_lion', 'clip_lion')


def train_yaml(grid: Grid, run: Run, rate: Optional[float]) -> str:
    """The YAML that trains a run.

    It is the phase's, with these set: the run's name, seeds and length; the
    dense checkpoint that it starts from; where it saves and logs. Where the
    study has another learning rate than the YAML, weight decay is scaled with
    it: Foundry's decoupled optimizers take ``weight_decay`` off the weights at
    a step of full learning rate, whatever that is, so that the usual ``lr *
    weight decay`` is kept.

    Args:
        grid: The study's runs.
        run: One of them.
        rate: Its learning rate, if the study or a sweep says one.
    """
    config = run.base.config.copy()
    files = RunFiles(grid.study, run.name)
    config.run_name = run.name
    config.max_duration = run.base.max_duration(run.n_steps)
    config.save_folder = str(files.checkpoints)
    config.autoresume = True
    if run.place.seed is not None:
        _set_seeds(config, run.place.seed)
    if run.role != 'dense':
        _set_start(config, run, _last_checkpoint(grid, grid.dense_start(run)))
    if rate is not None:
        _set_learning_rate(config, rate)
    # What is done is told by the names of Composer's default.
    for key in ('save_filename', 'save_latest_filename'):
        config.pop(key, None)
    _set_mlflow(config, grid.study, run)
    return _text(config, run.base.path)


def eval_yaml(grid: Grid, evaluation: EvaluationYaml, run: Run) -> str:
    """The YAML that evaluates a run: the study's, with this one model.

    It is evaluated at the sequence length that it was trained with.
    """
    config = evaluation.config.copy()
    name = evaluation_run_name(run.name)
    config.run_name = name
    config.models = [_model_entry(grid, run)]
    config.max_seq_len = run.base.seq_len
    _update(
        config,
        'callbacks.icl_results',
        folder=str(RunFiles(grid.study, run.name).answers),
        # An evaluation that died is done again.
        overwrite=True,
    )
    _set_mlflow(config, grid.study, run)
    return _text(config, evaluation.path)


def _set_learning_rate(config: DictConfig, rate: float) -> None:
    optimizer = config.optimizer
    name = str(optimizer.name)
    if name.startswith('decoupled') or name in _DECOUPLED:
        optimizer.weight_decay *= rate / optimizer.lr
    optimizer.lr = rate


def _set_seeds(config: DictConfig, seed: int) -> None:
    config.seed = seed
    if OmegaConf.select(config, 'train_loader.dataset') is not None:
        config.train_loader.dataset.shuffle_seed = seed
    if OmegaConf.select(config, 'callbacks.sparse_upcycling') is not None:
        config.callbacks.sparse_upcycling.seed = seed


def _set_start(config: DictConfig, run: Run, checkpoint: str) -> None:
    if run.base.is_upcycling:
        config.callbacks.sparse_upcycling.source_path = checkpoint
        return
    config.load_path = checkpoint
    # A fresh optimizer, as in the paper.
    config.load_weights_only = True


def last_checkpoint_name(base: BaseYaml) -> str:
    """How the link to a run's newest checkpoint is called, on rank 0.

    It is chosen by Foundry, from what the YAML says alone: sharded folders of
    FSDP2's default have the name of a file, and the file of one GPU, where
    there is no FSDP, may have that of a folder.
    """
    fsdp = OmegaConf.select(base.config, 'fsdp_config') or {}
    if fsdp.get('state_dict_type') == 'sharded':
        return 'latest-sharded-rank0'
    return 'latest-rank0.pt'


def _last_checkpoint(grid: Grid, run: Run) -> str:
    folder = RunFiles(grid.study, run.name).checkpoints
    return str(folder / last_checkpoint_name(run.base))


def _set_mlflow(config: DictConfig, study: Study, run: Run) -> None:
    tags = {
        'model': run.place.model,
        'duration': run.place.duration,
        'arm': run.place.arm or 'dense',
        'fraction': f'{run.place.fraction:g}',
    }
    if config.get('loggers') is None:
        config.loggers = {}
    # Whole: metrics that are renamed or left out would not be found.
    config.loggers['mlflow'] = {
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
    return {
        'model_name': run.name,
        'load_path': _last_checkpoint(grid, run),
        'tokenizer': tokenizer,
        'model': model,
    }


def _update(config: DictConfig, key: str, **settings: Any) -> None:
    """Sets keys of a section, which is made if it is not there."""
    OmegaConf.update(config, key, settings, merge=True, force_add=True)


def _text(config: DictConfig, base: Path) -> str:
    header = (
        f'{HEADER}{base} by `foundry-upcycle study`: change that, or\n'
        '# the study YAML.\n'
    )
    return header + OmegaConf.to_yaml(config)
