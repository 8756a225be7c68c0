"""The YAMLs in a study's folder, which stay as they were when runs started."""

import difflib
from pathlib import Path
from typing import Mapping, Optional

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import eval_yaml, train_yaml

__all__ = ['require_unchanged', 'write_yamls']


def write_yamls(grid: Grid) -> None:
    """Writes the YAML of every run whose learning rate is known.

    Those of runs that wait for a sweep follow when that is done. Runs that have
    started keep the YAML that they started with, from which the plan must not
    differ; YAMLs of runs that never started and are planned no more go.

    Raises:
        ConfigError: It does.
    """
    texts = _all_texts(grid)
    require_unchanged(grid, texts)
    for path in _yamls(grid.study):
        if path not in texts:
            path.unlink()
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
        for path in _yamls(study)
        if path not in texts and _has_started(study, path)
    ]
    if gone:
        raise ConfigError(
            'folder',
            str(study.folder),
            f"it has results of {', '.join(gone)}, which the study no longer "
            'has, or has only after a sweep that is not done.',
            'undo the change, or name another folder.',
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


def _yamls(study: Study) -> list[Path]:
    return sorted((study.folder / 'yamls').glob('*.yaml'))


def _has_started(study: Study, yaml: Path) -> bool:
    files = RunFiles(study, yaml.stem)
    return files.train_log.exists() or files.checkpoints.exists()


def _settings(text: str) -> list[str]:
    """The lines of a YAML without the header, which says where it is from."""
    return [line for line in text.splitlines() if not line.startswith('#')]
