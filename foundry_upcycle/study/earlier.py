"""Keeps what evaluations measured that are done anew with other settings."""

import warnings
from pathlib import Path
from typing import Container, Mapping

from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.study.grid import evaluation_run_name
from foundry_upcycle.study.lock import is_held
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.settings import difference, digest

__all__ = ['renew_evaluations']


def renew_evaluations(
    measured: Measured,
    started: Container[Path],
    texts: Mapping[Path, str],
) -> None:
    """Puts aside what was measured with other settings than are planned now.

    Answers and MLflow's runs get a digest of their settings behind their
    names, and lose it when these settings are planned again.

    Args:
        measured: What the study's runs have left.
        started: YAMLs of what has measured something.
        texts: The YAMLs as they are planned.

    Raises:
        ConfigError: One of them goes on.
    """
    folder = measured.grid.study.folder
    renewed = []
    for run in measured.grid.runs:
        files = RunFiles(measured.grid.study, run.name)
        path, is_started = files.eval_yaml, files.eval_yaml in started
        if path not in texts:
            continue
        if is_started and difference(path, texts[path], folder):
            name = evaluation_run_name(run.name)
            if is_held(RunFiles(measured.grid.study, name).lock):
                raise _goes_on(folder, path)
            before = digest(path.read_text(), folder)
            _move(measured, run.name, f'{run.name}.{before}')
            renewed.append(f'{run.name}.{before}')
            path.unlink()  # If it ends here, nothing is taken for another's.
            is_started = False
        if not is_started and any(files.answers.parent.glob(f'{run.name}.*')):
            now = digest(texts[path], folder)
            _move(measured, f'{run.name}.{now}', run.name)
    if renewed:
        warnings.warn(
            f'{len(renewed)} evaluations have other settings now. What they '
            f'measured before is kept, the first as {folder}/answers/'
            f'{renewed[0]}, and counts again with the settings of then.',
            UpcyclingWarning,
            stacklevel=2,
        )


def _move(measured: Measured, name: str, to: str) -> None:
    """Renames what the evaluation of a run has left."""
    measured.tracking.rename(*map(evaluation_run_name, (name, to)))
    answers = RunFiles(measured.grid.study, name).answers
    if answers.exists():
        answers.rename(RunFiles(measured.grid.study, to).answers)


def _goes_on(folder: Path, path: Path) -> ConfigError:
    return ConfigError(
        'folder',
        str(folder),
        f'{path.stem} goes on, with other settings than are planned now.',
        'wait for it, or undo the change.',
    )
