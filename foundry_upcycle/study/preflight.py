"""What Foundry would say of a study's YAMLs, before anything is trained."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.run_files import RunFiles

__all__ = ['check_runs']


def check_runs(grid: Grid) -> None:
    """Checks all YAMLs that are there, and the evaluation's tasks.

    A misspelt setting of the last arm would otherwise show after the
    pretrainings.

    Raises:
        ConfigError: Foundry would refuse a YAML, or a task.
        TaskDataError: A task's file can't be used.
    """
    # It imports torch and LLM Foundry.
    from llmfoundry.utils.config_utils import (
        EVAL_CONFIG_KEYS,
        TRAIN_CONFIG_KEYS,
        EvalConfig,
        TrainConfig,
    )

    from foundry_upcycle.gauntlet.preflight import check_tasks

    files = [RunFiles(grid.study, run.name) for run in grid.runs]
    for each in files:
        if each.train_yaml.exists():
            _check(
                each.train_yaml,
                TrainConfig,
                TRAIN_CONFIG_KEYS,
                transforms='all',
            )
    if grid.evaluation is not None:
        # They differ in the model alone.
        yaml = files[0].eval_yaml
        _check(yaml, EvalConfig, EVAL_CONFIG_KEYS, icl_tasks_required=True)
        check_tasks(str(yaml), [])


def _check(path: Path, kind: Any, keys: set[str], **options: Any) -> None:
    from llmfoundry.utils.config_utils import make_dataclass_and_log_config
    try:
        make_dataclass_and_log_config(
            OmegaConf.load(path),
            kind,
            keys,
            **options,
        )
    except Exception as error:  # Of Foundry or of OmegaConf.
        raise ConfigError(
            'study',
            str(path),
            f'LLM Foundry refuses it: {error}',
            'change the YAML that it is planned from, or the overrides.',
        ) from error
