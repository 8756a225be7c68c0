"""What a model measured on in-context tasks: written, and read back.

Read are files that ``write_results`` wrote, JSON files of Foundry's own metric
keys, and MLflow runs.
"""

import json
import math
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np

from foundry_upcycle.config import is_number
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.files import write_whole
from foundry_upcycle.gauntlet.mlflow_run import MLFLOW, mlflow_histories

__all__ = [
    'FORMAT',
    'ModelResults',
    'Part',
    'read_n_examples',
    'read_results',
    'write_results',
]

FORMAT = 'foundry_upcycle/icl_results/1'
_FAMILY = FORMAT.rpartition('/')[0]

# A task, or a category of one: copa/0-shot, jeopardy/3-shot/american_history.
_LABEL = r'([^/]+/\d+-shot)(?:/[^/]+)?'
_ACCURACY = re.compile(rf'metrics/(?P<part>{_LABEL})/(?P<metric>\w*Accuracy)')
_N_EXAMPLES = 'icl/n_examples/'
_OF_A_TASK = re.compile(rf'metrics/{_LABEL}/\w*Accuracy|{_N_EXAMPLES}.*')
# What ends the name of a file whose evaluation goes on, or died.
_PARTIAL = '.partial'
_OF_TRAINING = re.compile(r'(?P<run>.+)-ba(?P<batch>\d+)')
# Beyond it a number is damage; draws of so many are still quick.
_MAX_EXAMPLES = 10**12
# Foundry's metrics are float32.
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Part:
    """A task, or one category of a task that has several.

    Args:
        metric: Class of the metric.
        accuracy: Share of the examples that the model got right.
        n: Number of examples, None where not known.
        correct: (n,) bool, whether each example was right, in the order of the
            data file. None where not kept.
        seconds: What the evaluation took, None where not known.
    """

    metric: str
    accuracy: float
    n: Optional[int] = None
    correct: Optional[np.ndarray] = None
    seconds: Optional[float] = None


@dataclass(frozen=True)
class ModelResults:
    """What one model measured.

    Args:
        label: What tables and figures call the model.
        source: Where the results were read.
        tasks: Label of the task, such as ``copa/0-shot`` -> label of the part,
            the same or such as ``jeopardy/3-shot/american_history`` -> part.
        n_params: Parameters, None where not known.
    """

    label: str
    source: str
    tasks: Mapping[str, Mapping[str, Part]]
    n_params: Optional[int] = None


def write_results(
    path: Path,
    *,
    model: Mapping[str, Any],
    run_name: str,
    batch: int,
    precision: str,
    tasks: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes what a model measured, whole or not at all.

    Args:
        path: File to make, or to replace.
        model: ``name``, ``source`` (where its weights came from; may be None)
            and ``n_params``.
        run_name: The run that measured.
        batch: Training batches before it.
        precision: That of the forward passes.
        tasks: Label of the part -> ``metric``, ``accuracy``, ``n``, and, where
            kept, ``correct`` (a string of n 0 and 1) and ``seconds``: what the
            fields of ``Part`` are.
    """
    content = {
        'format': FORMAT,
        'model': model,
        'run_name': run_name,
        'batch': batch,
        'precision': precision,
        'tasks': tasks,
    }
    write_whole(path, json.dumps(content, indent=1) + '\n')


def read_results(
    source: str,
    label: Optional[str] = None,
    n_examples: Optional[Mapping[str, int]] = None,
) -> ModelResults:
    """Reads what a model measured.

    Args:
        source: A file that ``write_results`` wrote; a folder with one of them
            (of the evaluations ``RUN-ba<N>.json`` during one run the last is
            taken); a JSON of Foundry's metric keys, such as
            ``metrics/copa/0-shot/InContextLearningMultipleChoiceAccuracy``,
            to values; or ``mlflow:<tracking URI>#<run name or id>``, of which
            the latest values of those keys are taken: of an evaluation of
            several models into one run those of the last.
        label: What to call the model; by default the file's, folder's or
            run's name.
        n_examples: Label of the part -> number of examples, where the source
            has none: it is known of keys ``icl/n_examples/copa/0-shot``, which
            Foundry does not log by itself.

    Raises:
        ConfigError: There is nothing to read, what is there contradicts
            itself, or the evaluation did not finish.
    """
    n_params = None
    if source.startswith(MLFLOW):
        name = source.rpartition('#')[2]
        parts = _from_metrics(source, _latest(source))
    else:
        path = Path(source)
        name = path.name if path.is_dir() else path.stem
        file = _file_in(path) if path.is_dir() else path
        content = _load(file)
        _check_finished(file)
        if 'format' in content:
            parts, n_params = _from_own(file, content)
        else:
            parts = _from_metrics(source, content)
        source = str(file)
    tasks: dict[str, dict[str, Part]] = defaultdict(dict)
    for part_label, part in parts.items():
        if part.n is None and n_examples:
            part = replace(part, n=n_examples.get(part_label))
        tasks['/'.join(part_label.split('/')[:2])][part_label] = part
    return ModelResults(label or name, source, dict(tasks), n_params)


def read_n_examples(path: str) -> dict[str, int]:
    """Reads a JSON of parts' labels to numbers of examples.

    Raises:
        ConfigError: It is no such file.
    """
    content = _load(Path(path))
    return {label: _count(path, label, n) for label, n in content.items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DocumentError as error:
        raise ConfigError(
            'results',
            str(path),
            str(error),
            'name a JSON file of results, a folder with one, or '
            'mlflow:<tracking URI>#<run>; if it was cut off, evaluate the '
            'model again.',
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            'results',
            str(path),
            f'it holds a {type(content).__name__}, not an object.',
            "give results of this project, or Foundry's metric keys and "
            'their values.',
        )
    return content


def _check_finished(file: Path) -> None:
    if file.suffix == _PARTIAL:
        raise ConfigError(
            'results',
            str(file),
            'the evaluation did not finish.',
            f'run it again, or rename the file to {file.stem} to score what '
            'it has: tasks may be missing, and of a task of several '
            'categories some of these.',
        )


def _file_in(folder: Path) -> Path:
    files = [
        file for file in sorted(folder.glob('*.json'))
        if str(_load(file).get('format')).startswith(_FAMILY)
    ]
    unfinished = [
        file for file in sorted(folder.glob(f'*.json{_PARTIAL}'))
        if file.with_suffix('') not in files
    ]
    if len(files) == 1 and not unfinished:
        return files[0]
    evaluations = [_OF_TRAINING.fullmatch(file.stem) for file in files]
    of_runs = {match and match['run'] for match in evaluations}
    if len(of_runs) == 1 and not unfinished:
        batches = {
            int(match['batch']): file
            for match, file in zip(evaluations, files, strict=True)
            if match
        }
        if batches:
            return batches[max(batches)]
    found = ', '.join(file.name for file in [*files, *unfinished]) or 'none'
    raise ConfigError(
        'results',
        str(folder),
        'which file to take can be told of one file of results, or of those '
        f'of one training run. In this folder: {found}.',
        'name a file.',
    )


def _from_own(
    path: Path,
    content: Mapping[str, Any],
) -> tuple[dict[str, Part], int]:
    if content['format'] != FORMAT:
        raise ConfigError(
            f'{path}: format',
            content['format'],
            'this version does not know it.',
            f'give a file of format {FORMAT}, or update foundry_upcycle.',
        )
    model = _take(path, content, 'model', dict)
    n_params = _take(path, model, 'n_params', int, 'model.')
    records = _take(path, content, 'tasks', dict)
    return {
        label: _part(path, label, record)
        for label, record in records.items()
    }, n_params


def _part(path: Path, label: str, record: Any) -> Part:
    key = f'tasks.{label}'
    if not re.fullmatch(_LABEL, label) or not isinstance(record, dict):
        raise ConfigError(
            f'{path}: tasks',
            label,
            'it is not a task with its result.',
            'write an object under <task>/<n>-shot, or '
            '<task>/<n>-shot/<category>.',
        )
    accuracy = _probability(
        f'{path}: {key}.accuracy',
        _take(path, record, 'accuracy', (int, float), f'{key}.'),
    )
    n = _count(path, f'{key}.n', _take(path, record, 'n', int, f'{key}.'))
    correct = record.get('correct')
    return Part(
        _take(path, record, 'metric', str, f'{key}.'),
        accuracy,
        n,
        None if correct is None else
        _correct(f'{path}: {key}.correct', correct, accuracy, n),
        _seconds(f'{path}: {key}.seconds', record.get('seconds')),
    )


def _seconds(key: str, value: Any) -> Optional[float]:
    if value is None:
        return None
    if not is_number(value) or not 0 <= value < math.inf:
        raise ConfigError(
            key,
            value,
            'it is not how long the evaluation took.',
            'evaluate the model again, or remove it.',
        )
    return float(value)


def _correct(key: str, digits: Any, accuracy: float, n: int) -> np.ndarray:
    is_bits = isinstance(digits, str) and set(digits) <= {'0', '1'}
    if not is_bits or len(digits) != n:
        raise ConfigError(
            key,
            digits,
            f'it is not a 0 or 1 for each of {n=} examples.',
            'evaluate the model again, or remove it.',
        )
    correct = np.array([digit == '1' for digit in digits])
    if abs(correct.mean() - accuracy) > _TOLERANCE:
        raise ConfigError(
            key,
            digits,
            f'{correct.sum()} of {n} are right, which contradicts '
            f'{accuracy=}.',
            'evaluate the model again.',
        )
    return correct


def _take(
    path: Path,
    record: Mapping[str, Any],
    key: str,
    kind: Any,
    prefix: str = '',
) -> Any:
    value = record.get(key)
    # True is an int to Python.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(
            f'{path}: {prefix}{key}',
            value,
            'it is missing, or of another type than results have there.',
            'evaluate the model again.',
        )
    return value


def _probability(key: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ConfigError(
            key,
            value,
            'an accuracy is between 0 and 1.',
            'evaluate the model again.',
        )
    return float(value)


def _count(path: str | Path, key: str, value: Any) -> int:
    # MLflow makes floats of all metrics.
    if not is_number(value) or not 1 <= value <= _MAX_EXAMPLES or value % 1:
        raise ConfigError(
            f'{path}: {key}',
            value,
            'a number of examples is whole, at least 1 and at most '
            f'{_MAX_EXAMPLES:,}.',
            'write how many examples were evaluated.',
        )
    return int(value)


def _latest(source: str) -> dict[str, float]:
    """The latest accuracies of an MLflow run, and numbers of examples."""
    histories = mlflow_histories('results', source, _OF_A_TASK)
    steps = {
        key: max(values)
        for key, values in histories.items()
        if _ACCURACY.fullmatch(key)
    }
    last = max(steps.values(), default=0)
    earlier = [key for key, step in steps.items() if step < last]
    if earlier:
        warnings.warn(
            f"{source}: {', '.join(earlier)} have their latest values from "
            f'before step {last}, where others have one. Either the logger '
            'left out values that had not changed, or the last evaluation did '
            'not finish and this mixes two.',
            UpcyclingWarning,
            stacklevel=2,
        )
    return {key: values[max(values)] for key, values in histories.items()}


def _from_metrics(
    source: str,
    metrics: Mapping[str, Any],
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for key, value in metrics.items():
        match = _ACCURACY.fullmatch(key)
        if not match:
            continue
        label, metric = match['part'], match['metric']
        if label in parts:
            raise ConfigError(
                'results',
                source,
                f'{label} has two accuracies, {parts[label].metric} and '
                f'{metric}.',
                'keep one of the keys.',
            )
        n_key = f'{_N_EXAMPLES}{label}'
        parts[label] = Part(
            metric,
            _probability(f'{source}: {key}', value),
            _count(source, n_key, metrics[n_key]) if n_key in metrics else None,
        )
    if not parts:
        raise ConfigError(
            'results',
            source,
            'it has no accuracy of an in-context task.',
            'evaluate the model with icl_tasks: keys are named as '
            'metrics/copa/0-shot/InContextLearningMultipleChoiceAccuracy.',
        )
    return parts
