"""The Foundry YAMLs of a study's runs: one to train, one to evaluate."""

import difflib
from pathlib import Path
from typing import Any, Mapping, Optional

from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.grid import Grid, Run, evaluation_run_name

__all__ = [
    'RunFiles',
    'evaluation_run_name',
    'learning_rate_overrides',
    'require_unchanged',
    'train_yaml',
    'write_yamls',
]


class RunFiles:
    """Where a run's files lie in the folder of its study.

    Args:
        study: The study.
        name: The run.
    """

    def __init__(self, study: Study, name: str):
        folder = study.folder
        self.train_yaml = folder / 'yamls' / f'{name}.yaml'
        self.eval_yaml = folder / 'yamls' / f'{evaluation_run_name(name)}.yaml'
        self.train_log = folder / 'logs' / f'{name}.log'
        self.eval_log = folder / 'logs' / f'{evaluation_run_name(name)}.log'
        self.checkpoints = folder / 'checkpoints' / name
        self.answers = folder / 'answers' / name


def train_yaml(grid: Grid, run: Run) -> str:
    """The YAML that trains a run.

    It is the phase's, with these set: the run's name, seeds and length; the
    dense checkpoint that it starts from; where it saves and logs. Where the
    study has another learning rate than the YAML, weight decay is scaled with
    it: Foundry's decoupled optimizers take ``weight_decay`` off the weights at
    a step of full learning rate, whatever that is, so that the usual ``lr *
    weight decay`` is kept. A learning rate that a sweep will find is ``???``.
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
    if grid.sweep_for(run):
        config.optimizer.lr = '???'
        config.optimizer.weight_decay = '???'
    elif run.learning_rate is not None:
        _merge(config, learning_rate_overrides(run, run.learning_rate))
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


def learning_rate_overrides(run: Run, rate: float) -> dict[str, float]:
    """Settings of another learning rate, of a phase that has several.

    Args:
        run: Whose YAML they are for.
        rate: The learning rate.
    """
    optimizer = run.base.config.optimizer
    scale = rate / optimizer.lr
    decay = optimizer.weight_decay
    if str(optimizer.name).startswith('decoupled'):
        decay = decay * scale
    return {'optimizer.lr': rate, 'optimizer.weight_decay': decay}


def write_yamls(grid: Grid) -> None:
    """Writes the YAMLs of all runs, where the study's folder lacks them.

    Runs that have not started get the new ones. Those that have keep what they
    started with, from which the plan must not differ.

    Raises:
        ConfigError: It does.
    """
    texts = _all_texts(grid)
    require_unchanged(grid, texts)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'{path.name}.unfinished')
        unfinished.write_text(text)
        unfinished.replace(path)


def require_unchanged(
    grid: Grid,
    texts: Optional[Mapping[Path, str]] = None,
) -> None:
    """Checks that a study is the one that its folder has results of.

    Further runs are no change, fewer are one. A run has started when it has a
    log or a checkpoint.

    Args:
        grid: The study's runs.
        texts: What ``write_yamls`` would write, if that is known.

    Raises:
        ConfigError: The YAML of a run that has started would be another, and
            the message ends with the difference; or there would be none.
    """
    texts = texts or _all_texts(grid)
    _require_all_planned(grid.study, texts)
    for path, text in texts.items():
        if not (path.exists() and _has_started(grid.study, path)):
            continue
        before, now = _settings(path.read_text()), _settings(text)
        if before == now:
            continue
        difference = difflib.unified_diff(
            before,
            now,
            f'{path} (has started)',
            'as the study now plans it',
            lineterm='',
            n=1,
        )
        raise ConfigError(
            'folder',
            str(grid.study.folder),
            f'{path.stem} has started with other settings than it would have '
            'now.',
            'undo the change, or name another folder. The difference:\n' +
            '\n'.join(difference),
        )


def _require_all_planned(study: Study, texts: Mapping[Path, str]) -> None:
    gone = [
        path.stem
        for path in sorted((study.folder / 'yamls').glob('*.yaml'))
        if path not in texts and _has_started(study, path)
    ]
    if gone:
        raise ConfigError(
            'folder',
            str(study.folder),
            f"it has results of {', '.join(gone)}, which the study no longer "
            'has.',
            'undo the change, or name another folder.',
        )


def _all_texts(grid: Grid) -> dict[Path, str]:
    texts = {}
    for run in grid.runs:
        files = RunFiles(grid.study, run.name)
        texts[files.train_yaml] = train_yaml(grid, run)
        if grid.evaluation is not None:
            texts[files.eval_yaml] = eval_yaml(grid, grid.evaluation, run)
    return texts


def _has_started(study: Study, yaml: Path) -> bool:
    files = RunFiles(study, yaml.stem)
    return files.train_log.exists() or files.checkpoints.exists()


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


def _last_checkpoint(grid: Grid, run: Run) -> str:
    """The name by which Composer links the newest checkpoint."""
    kind = OmegaConf.select(run.base.config, 'fsdp_config.state_dict_type')
    name = 'latest-sharded-rank0' if kind == 'sharded' else 'latest-rank0.pt'
    return str(RunFiles(grid.study, run.name).checkpoints / name)


def _set_mlflow(config: DictConfig, study: Study, run: Run) -> None:
    tags = {
        'model': run.place.model,
        'duration': run.place.duration,
        'arm': run.place.arm or 'dense',
        'fraction': f'{run.place.fraction:g}',
    }
    _update(
        config,
        'loggers.mlflow',
        experiment_name=study.name,
        tracking_uri=study.tracking_uri,
        tags=tags,
        resume=True,
        # A run that is killed has then logged all its steps.
        synchronous=True,
        log_system_metrics=False,
        log_duplicated_metric_every_n_steps=1,
    )


def _model_entry(grid: Grid, run: Run) -> dict[str, Any]:
    config = run.base.config
    model = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(model, dict)  # For pyright.
    if model.get('init_device') == 'meta':
        # What loads into an evaluation without an optimizer.
        model['init_device'] = 'mixed'
    return {
        'model_name': run.name,
        'load_path': _last_checkpoint(grid, run),
        'tokenizer': OmegaConf.to_container(config.tokenizer, resolve=True),
        'model': model,
    }


def _update(config: DictConfig, key: str, **settings: Any) -> None:
    """Sets keys of a section, which is made if it is not there."""
    OmegaConf.update(config, key, settings, merge=True, force_add=True)


def _merge(config: DictConfig, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        OmegaConf.update(config, key, value)


def _settings(text: str) -> list[str]:
    """The lines of a YAML without the header, which says where it is from."""
    return [line for line in text.splitlines() if not line.startswith('#')]


def _text(config: DictConfig, base: Path) -> str:
    header = (
        f'# Planned from {base} by `foundry-upcycle study`: change that, or\n'
        '# the study YAML.\n'
    )
    return header + OmegaConf.to_yaml(config)
