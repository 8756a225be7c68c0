"""The YAMLs in a study's folder, which stay as they were when runs started."""

from pathlib import Path
from typing import Container, Iterable, Mapping, Optional

from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.files import write_whole
from foundry_upcycle.study.config import Study
from foundry_upcycle.study.earlier import renew_evaluations
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import HEADER, eval_yaml, train_yaml
from foundry_upcycle.study.settings import difference
from foundry_upcycle.study.variables import require_variables_used

__all__ = ['require_unchanged', 'write_yamls']

_NAME_ANOTHER = (
    'name another folder and another name (MLflow finds runs by their names).'
)
_EVALUATE = 'let `foundry-upcycle study run` evaluate anew.'


def write_yamls(grid: Grid, measured: Optional[Measured] = None) -> None:
    """Writes the YAML of every run whose learning rate is known.

    Those of runs that wait for a sweep follow when that is done. A training
    that has started keeps what it started with, from which the plan must not
    differ; an evaluation that has is done anew where the plan differs, and what
    it measured is kept. YAMLs of runs that never started and are planned no
    more go. Files that no study planned stay.

    Args:
        grid: The study's runs. The caller has the lock of the study's folder.
        measured: What they have left, if that is read.

    Raises:
        ConfigError: As ``require_unchanged``, of trainings; or a file that no
            study planned is in the way; or an evaluation that is to be done
            anew still goes on.
        CheckpointError: A checkpoint that runs have started from is not there.
    """
    measured = measured or Measured(grid)
    texts = _all_texts(measured)
    started = _started(measured)
    _require_checkpoints(measured.grid, started)
    _refuse_changes(measured, started, _of_trainings(measured.grid, texts))
    planned = [
        path for path in grid.study.folder.glob('yamls/*.yaml')
        if path.read_bytes().startswith(HEADER.encode())
    ]
    _refuse_others(grid.study, planned, texts)
    for path in planned:
        if path not in texts and path not in started:
            path.unlink()
    renew_evaluations(measured, started, texts)
    for path, text in texts.items():
        write_whole(path, text)


def _require_checkpoints(grid: Grid, started: Container[Path]) -> None:
    """Raises where what tells it from others would be written over."""
    for run in grid.runs:
        checkpoint = grid.dense_start(run).checkpoint
        files = RunFiles(grid.study, run.name)
        is_started = files.train_yaml in started or files.eval_yaml in started
        if checkpoint and checkpoint.identity is None and is_started:
            raise CheckpointError(
                checkpoint.path,
                f'it is not there, and {run.name} has started from it.',
                'put it back, or a link to where it is now.',
            )


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

    Runs that are planned no more, or for the first time, are no change. A
    training has started when it has a checkpoint or has logged a loss, an
    evaluation when it has answers or has logged anything: what failed before
    may be mended. Settings that say how a run goes and not what it computes may
    change (``device_...``: how much a device takes at a time; what is shown;
    how often it is saved).

    Args:
        measured: What the study's runs have left.

    Raises:
        ConfigError: What has started has a YAML that sets something else than
            it would now, and the message ends with the difference; or it would
            have none; or it has none, though there are checkpoints.
    """
    _refuse_changes(measured, _started(measured), _all_texts(measured))


def _refuse_changes(
    measured: Measured,
    started: Container[Path],
    texts: Mapping[Path, str],
) -> None:
    grid = measured.grid
    _require_yamls(grid.study)
    _require_known_rates(grid, started, texts)
    trainings = _of_trainings(grid, texts)
    for path, text in texts.items():
        if path not in started:
            continue
        changed = difference(path, text, grid.study.folder)
        if changed:
            otherwise = _NAME_ANOTHER if path in trainings else _EVALUATE
            raise ConfigError(
                'folder',
                str(grid.study.folder),
                f'{path.stem} has started with other settings than it would '
                'have now.',
                f'undo the change, or {otherwise} The difference:\n{changed}',
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


def _require_known_rates(
    grid: Grid,
    started: Container[Path],
    texts: Container[Path],
) -> None:
    paths = [RunFiles(grid.study, run.name).train_yaml for run in grid.runs]
    waiting = [
        path.stem for path in paths if path in started and path not in texts
    ]
    if waiting:
        raise ConfigError(
            'folder',
            str(grid.study.folder),
            f"it has results of {', '.join(waiting)}, which the study now has "
            'only after a sweep that is not done.',
            f'undo the change, or {_NAME_ANOTHER}',
        )


def _of_trainings(
    grid: Grid,
    texts: Mapping[Path, str],
) -> Mapping[Path, str]:
    paths = [RunFiles(grid.study, run.name).train_yaml for run in grid.runs]
    return {path: texts[path] for path in paths if path in texts}


def _all_texts(measured: Measured) -> dict[Path, str]:
    texts = {}
    grid = measured.grid
    require_variables_used(grid)
    for run in grid.runs:
        files = RunFiles(grid.study, run.name)
        rate, source = measured.learning_rate(run), measured.source(run)
        is_known = rate is not None or not grid.sweep_for(run)
        is_known = is_known and (source is not None or run.source is None)
        if run.is_training and is_known:
            texts[files.train_yaml] = train_yaml(grid, run, rate, source)
        if grid.evaluation is not None and run.role != 'source':
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
