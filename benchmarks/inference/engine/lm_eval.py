"""In-context tasks by lm-eval, which asks the server and is not among us.

It runs in an environment of its own, as it needs other versions than vLLM
does, and takes records and task files from this machine.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml

from benchmarks.inference.engine.processes import (
    cause_in_log,
    end_group,
    exit_on_sigterm,
    start_group,
)
from benchmarks.inference.engine.server import MODEL_NAME
from benchmarks.inference.errors import HarnessError

__all__ = ['Tasks', 'ask_tasks', 'check_lm_eval', 'task_files']

_EVALUATION = Path(__file__).resolve().parents[2] / 'evaluation'
_SCRIPT = _EVALUATION / 'ask_lm_eval.py'
_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Tasks:
    """In-context tasks, and what asks them.

    Args:
        names: See ``task_files``.
        data: The folder that the paths of their records are relative to.
        records: The first so many of each task; None: all.
        python: Of the environment that install_lm_eval.sh makes.
    """

    names: tuple[str, ...]
    data: Path
    records: Optional[int]
    python: Path

    @property
    def files(self) -> dict[str, Path]:
        """Name -> the task's records."""
        known = task_files()
        tasks = {
            name: yaml.safe_load(known[name].read_text())
            for name in self.names
        }
        return {
            name: self.data / task['dataset_kwargs']['data_files']['test']
            for name, task in tasks.items()
        }


def task_files() -> dict[str, Path]:
    """Name -> lm-eval's file of a task: no hub is asked for it."""
    paths = sorted((_EVALUATION / 'lm_eval_tasks').rglob('*.yaml'))
    return {path.stem: path for path in paths}


def check_lm_eval(tasks: Tasks, model: Path) -> None:
    """Refuses to start without what is needed.

    Args:
        tasks: Of the study.
        model: The folder of a model that is to be asked.

    Raises:
        HarnessError: lm-eval is not installed, or the model has no tokenizer.
    """
    if not tasks.python.is_file():
        raise HarnessError(
            'quality.tasks.python',
            str(tasks.python),
            'there is no such Python: lm-eval is not installed.',
            'run benchmarks/evaluation/install_lm_eval.sh, name another '
            'environment that has lm-eval[api], or remove quality.tasks.',
        )
    if not (model / 'tokenizer.json').is_file():
        raise HarnessError(
            'quality.tasks',
            str(model),
            'it has no tokenizer.json, without which tasks are no tokens.',
            'export it with a tokenizer (--like, --tokenizer), or remove '
            'quality.tasks.',
        )


def ask_tasks(
    tasks: Tasks,
    url: str,
    model: Path,
    max_model_len: int,
    folder: Path,
    timeout_s: float,
) -> dict[str, list[float]]:
    """Asks a server all tasks.

    Args:
        tasks: Of the study.
        url: The server's.
        model: The folder that it serves, for its tokenizer.
        max_model_len: Of the engine.
        folder: Gets ``lm_eval.log``, and of each task a file of what was asked
            and answered.
        timeout_s: For all of it.

    Returns:
        Task -> whether each record is answered right, 1 or 0, in their order.

    Raises:
        HarnessError: lm-eval failed, or did not end.
    """
    log = folder / 'lm_eval.log'
    command = [
        # Its link, not what it points to: that is the environment.
        str(tasks.python.absolute()),
        str(_SCRIPT),
        str(model.absolute()),
        str(tasks.data.absolute()),
        str(folder.absolute()),
        *tasks.names,
        '--url', f'{url}/v1/completions',
        '--served-name', MODEL_NAME,
        '--max-length', str(max_model_len),
        *(['--records', str(tasks.records)] if tasks.records else []),
    ]  # yapf: disable
    _run(command, log, timeout_s)
    return {name: _right(folder / f'{name}.jsonl') for name in tasks.names}


def _run(command: list[str], log: Path, timeout_s: float) -> None:
    environment = {**os.environ, 'HF_HUB_OFFLINE': '1'}
    status: Optional[int]
    with exit_on_sigterm():
        process = start_group(command, log, environment)
        try:
            status = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process, _GRACE_SECONDS)
    if status:
        cause = cause_in_log(log) or 'its log names no error'
        raise _error(log, f'it ended with exit status {status}: {cause}.')
    if status is None:
        raise _error(log, f'it did not end in {timeout_s:g} s.')


def _right(path: Path) -> list[float]:
    try:
        return [
            float(json.loads(line)['acc'])
            for line in path.read_text(encoding='utf-8').splitlines()
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _error(path, f'it wrote no results: {error!r}.') from error


def _error(value: Any, problem: str) -> HarnessError:
    return HarnessError(
        'lm-eval',
        str(value),
        problem,
        'read the log beside it, and that of the server.',
    )
