"""The YAMLs in a study's folder, which stay as they were when runs started."""

import difflib
from pathlib import Path
from typing import Container, Iterable, Mapping, Optional

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.files import write_whole
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import HEADER, eval_yaml, train_yaml

__all__ = ['require_unchanged', 'write_yamls']

# What begins a line of a YAML that may differ after a run has started.
_FREE = (
    '#',  # The header, which says where the YAML is from.
    'console_log_interval:',
    'device_eval_batch_size:',
    'device_train_microbatch_size:',
    'dist_timeout:',
    'log_to_console:',
    'progress_bar:',
    'python_log_level:',
    'save_interval:',
    'save_num_checkpoints_to_keep:',
)
_NAME_ANOTHER = (
    'name another folder and another name (MLflow finds runs by their names).'
)


def write_yamls(grid: Grid, measured: Optional[Measured] = None) -> None:
    """Writes the YAML of every run whose learning rate is known.

    Those of runs that wait for a sweep follow when that is done. Runs that have
    started keep the YAML that they started with, from which the plan must not
    differ; YAMLs of runs that never started and are planned no more go. Files
    that no study planned stay.

    Args:
        grid: The study's runs. The caller has the lock of the study's folder.
        measured: What they have left, if that is read.

    Raises:
        ConfigError: As ``require_unchanged``; or a file that no study planned
            is in the way.
    """
    measured = measured or Measured(grid)
    texts = _all_texts(measured)
    _require_unchanged(measured, texts)
    planned = [
        path for path in grid.study.folder.glob('yamls/*.yaml')
        if path.read_bytes().startswith(HEADER.encode())
    ]
    _refuse_others(grid.study, planned, texts)
    for path in planned:
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        write_whole(path, text)


def _refuse_others(
    study: Study,
    planned: Container[Path],
    texts: Iterable[Path],
) -> None:
    for path in texts:
        if path.exists() and path not in planned:
            raise ConfigError(
                'folder',
                str(study.folder),
                f'{path} is there, and no study has planned it.',
                'name another folder, or move this file.',
            )


def require_unchanged(measured: Measured) -> None:
    """Checks that a study is the one that its folder has results of.

    Further runs are no change, fewer are one. A training has started when it
    has a checkpoint or has logged a loss, an evaluation when it has answers or
    has logged anything: what failed before may be mended. Settings that say
    how a run goes and not what it computes may change (``device_...``: how
    much a device takes at a time; what is shown; how often it is saved).

    Args:
        measured: What the study's runs have left.

    Raises:
        ConfigError: The YAML of a run that has started would be another, and
            the message ends with the difference; or there would be none; or
            there is none, though the run has checkpoints.
    """
    _require_unchanged(measured, _all_texts(measured))


def _require_unchanged(measured: Measured, texts: Mapping[Path, str]) -> None:
    grid = measured.grid
    _require_yamls(grid.study)
    started = _started(measured)
    _require_all_planned(grid.study, started, texts)
    for path, text in texts.items():
        if path not in started:
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
            f'undo the change, or {_NAME_ANOTHER} The difference:\n' +
            '\n'.join(difference),
        )


def _require_yamls(study: Study) -> None:
    missing = [
        RunFiles(study, folder.name).train_yaml
        for folder in sorted(study.folder.glob('checkpoints/*'))
        if any(folder.glob('*'))
    ]
    missing = [path for path in missing if not path.exists()]
    if missing:
        names = ', '.join(path.stem for path in missing)
        raise ConfigError(
            'folder',
            str(study.folder),
            f'it has checkpoints of {names}, and not the YAMLs that they were '
            'trained with.',
            f'restore {missing[0].parent}, or {_NAME_ANOTHER}',
        )


def _require_all_planned(
    study: Study,
    started: Iterable[Path],
    texts: Mapping[Path, str],
) -> None:
    gone = [path.stem for path in started if path not in texts]
    if gone:
        raise ConfigError(
            'folder',
            str(study.folder),
            f"it has results of {', '.join(gone)}, which the study no longer "
            'has, or has only after a sweep that is not done.',
            f'undo the change, or {_NAME_ANOTHER}',
        )


def _all_texts(measured: Measured) -> dict[Path, str]:
    texts = {}
    grid = measured.grid
    for run in grid.runs:
        files = RunFiles(grid.study, run.name)
        rate = measured.learning_rate(run)
        if rate is not None or not grid.sweep_for(run):
            texts[files.train_yaml] = train_yaml(grid, run, rate)
        if grid.evaluation is not None:
            texts[files.eval_yaml] = eval_yaml(grid, grid.evaluation, run)
    return texts


def _started(measured: Measured) -> list[Path]:
    """Where the YAMLs lie of all that has measured or saved something."""
    study, tracking = measured.grid.study, measured.tracking
    files = {path.stem: path for path in study.folder.glob('yamls/*.yaml')}
    saved = {
        RunFiles(study, path.name).train_yaml.stem
        for path in study.folder.glob('checkpoints/*')
        if any(path.glob('*'))
    } | {
        RunFiles(study, path.name).eval_yaml.stem
        for path in study.folder.glob('answers/*')
        if any(path.glob('*'))
    }
    return sorted(
        path for name, path in files.items()
        if name in saved or tracking.keys(name)
    )


def _settings(text: str) -> list[str]:
    """The lines of a YAML that must stay: neither the header, nor ``_FREE``."""
    return [line for line in text.splitlines() if not line.startswith(_FREE)]
