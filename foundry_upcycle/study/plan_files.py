"""The YAMLs in a study's folder, which stay as they were when runs started."""

import difflib
from pathlib import Path
from typing import Iterable, Mapping, Optional

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.files import write_whole
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import eval_yaml, train_yaml

__all__ = ['require_unchanged', 'write_yamls']

_NAME_ANOTHER = (
    'name another folder and another name (MLflow finds runs by their names).'
)


def write_yamls(grid: Grid) -> None:
    """Writes the YAML of every run whose learning rate is known.

    Those of runs that wait for a sweep follow when that is done. Runs that have
    started keep the YAML that they started with, from which the plan must not
    differ; YAMLs of runs that never started and are planned no more go.

    Args:
        grid: The study's runs. The caller has the lock of the study's folder.

    Raises:
        ConfigError: As ``require_unchanged``.
    """
    texts = _all_texts(grid)
    require_unchanged(grid, texts)
    for path in grid.study.folder.glob('yamls/*.yaml'):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        write_whole(path, text)


def require_unchanged(
    grid: Grid,
    texts: Optional[Mapping[Path, str]] = None,
) -> None:
    """Checks that a study is the one that its folder has results of.

    Further runs are no change, fewer are one. A training has started when it
    has a log or a folder of checkpoints, an evaluation with a log or answers.

    Args:
        grid: The study's runs.
        texts: What ``write_yamls`` would write, if that is known.

    Raises:
        ConfigError: The YAML of a run that has started would be another, and
            the message ends with the difference; or there would be none; or
            there is none, though the run has checkpoints.
    """
    texts = texts or _all_texts(grid)
    _require_yamls(grid.study)
    started = [path for path in _started(grid.study) if path.exists()]
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


def _all_texts(grid: Grid) -> dict[Path, str]:
    texts = {}
    measured = Measured(grid)
    for run in grid.runs:
        files = RunFiles(grid.study, run.name)
        rate = measured.learning_rate(run)
        if rate is not None or not grid.sweep_for(run):
            texts[files.train_yaml] = train_yaml(grid, run, rate)
        if grid.evaluation is not None:
            texts[files.eval_yaml] = eval_yaml(grid, grid.evaluation, run)
    return texts


def _started(study: Study) -> list[Path]:
    """Where the YAMLs lie of all that has left anything."""
    folder = study.folder
    # A log is named as the YAML, be it a training's or an evaluation's.
    started = {
        RunFiles(study, path.stem).train_yaml
        for path in folder.glob('logs/*.log')
    }
    started |= {
        RunFiles(study, path.name).train_yaml
        for path in folder.glob('checkpoints/*')
    }
    started |= {
        RunFiles(study, path.name).eval_yaml
        for path in folder.glob('answers/*')
        if any(path.glob('*'))
    }
    return sorted(started)


def _settings(text: str) -> list[str]:
    """The lines of a YAML without the header, which says where it is from."""
    return [line for line in text.splitlines() if not line.startswith('#')]
