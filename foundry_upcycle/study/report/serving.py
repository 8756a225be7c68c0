"""Serving results: how many tokens a second an engine serves of each model.

A JSON file of format ``foundry_upcycle/serving/1``::

    {"format": "foundry_upcycle/serving/1",
     "labels": ["CPU", "dummy weights"],
     "models": [{"size": "430m", "experts": 8, "top_k": 2,
                 "max_throughput_tokens_per_s":
                     {"mean": 900.0, "low": 880.0, "high": 915.0}}]}

``size`` is a model of the study; a dense one has 1 expert and a top-k of 1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.grid import Run
from foundry_upcycle.study.report.summary import Summary

__all__ = [
    'FORMAT',
    'Cost',
    'Serving',
    'Throughput',
    'arm_costs',
    'read_serving',
]

FORMAT = 'foundry_upcycle/serving/1'
_THROUGHPUT = 'max_throughput_tokens_per_s'


@dataclass(frozen=True)
class Throughput:
    """Tokens a second, input and output, at the most.

    Args:
        mean: Over the runs of the benchmark.
        low: Of the interval of 95 %.
        high: Of the same.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Cost:
    """What serving a token costs, relative to the dense model.

    Args:
        value: The dense model's throughput divided by the model's.
        low: The least that the two intervals allow: at least as far out as
            95 %, as both would have to err in opposite directions.
        high: The most.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Serving:
    """What serving was measured to cost.

    Args:
        source: The file.
        labels: What to know of the measurement, such as ``CPU``.
        models: (size, experts, top-k) -> its throughput.
    """

    source: str
    labels: tuple[str, ...]
    models: Mapping[tuple[str, int, int], Throughput]

    def cost(self, size: str, n_experts: int, top_k: int) -> Optional[Cost]:
        """Of a model; None where it, or the dense one, was not measured."""
        dense = self.models.get((size, 1, 1))
        model = self.models.get((size, n_experts, top_k))
        if dense is None or model is None:
            return None
        if model is dense:
            return Cost(1.0, 1.0, 1.0)
        return Cost(
            dense.mean / model.mean,
            dense.low / model.high,
            dense.high / model.low,
        )


def read_serving(path: Path) -> Serving:
    """Reads serving results.

    Raises:
        ConfigError: They can't be read, or a key is missing, unknown, or of no
            use.
    """
    content = _load(path)
    found = _take(path, '', content, 'format', str)
    if found != FORMAT:
        raise ConfigError(
            f'{path}: format',
            found,
            'this version does not know it.',
            f'give a file of format {FORMAT}, or update foundry_upcycle.',
        )
    _refuse_unknown(path, '', content, ('format', 'labels', 'models'))
    labels = _take(path, '', content, 'labels', list)
    for label in labels:
        _check(
            isinstance(label, str) and label.strip(),
            f'{path}: labels',
            label,
            'it is not a text.',
            'write in words what to know, such as "CPU".',
        )
    models = _take(path, '', content, 'models', list)
    return Serving(str(path), tuple(labels), _models(path, models))


def arm_costs(
    summary: Summary,
    model: ModelGrid,
    serving: Serving,
) -> Mapping[str, Optional[Cost]]:
    """Arm -> what serving it costs; None where that was not measured."""
    runs = {arm: summary.any_run(model, arm) for arm in model.arms}
    return {
        arm:
        None if _is_wider(run) else
        serving.cost(model.name, run.shape.n_experts, run.shape.top_k)
        for arm, run in runs.items()
    }


def _is_wider(run: Run) -> bool:
    """Whether it is a dense model, and wider than that of the study."""
    source = run.base.source
    is_dense = run.shape.n_moe_layers == 0
    return source is not None and is_dense and (
        run.shape.n_expert_params > source.shape.n_expert_params
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DocumentError as error:
        raise ConfigError(
            'serving',
            str(path),
            str(error),
            f'name a file of format {FORMAT}.',
        ) from error
    _check(
        isinstance(content, dict),
        'serving',
        str(path),
        f'it holds a {type(content).__name__}, not an object.',
        f'name a file of format {FORMAT}.',
    )
    return content


def _models(
    path: Path,
    records: list[Any],
) -> dict[tuple[str, int, int], Throughput]:
    models = {}
    for index, record in enumerate(records):
        prefix = f'models[{index}]'
        _check(
            isinstance(record, dict),
            f'{path}: {prefix}',
            record,
            'it is not an object.',
            'write size, experts, top_k and the throughput.',
        )
        keys = ('size', 'experts', 'top_k', _THROUGHPUT)
        _refuse_unknown(path, f'{prefix}.', record, keys)
        prefix += '.'
        key = (
            _take(path, prefix, record, 'size', str),
            _count(path, prefix, record, 'experts'),
            _count(path, prefix, record, 'top_k'),
        )
        size, n_experts, top_k = key
        _check(
            top_k <= n_experts,
            f'{path}: {prefix}top_k',
            top_k,
            f'there are {n_experts} experts.',
            'write how many of them a token visits.',
        )
        _check(
            key not in models,
            f'{path}: {prefix}size',
            size,
            f'it stands there twice with {n_experts=} and {top_k=}.',
            'keep one of them.',
        )
        throughput = _take(path, prefix, record, _THROUGHPUT, dict)
        models[key] = _throughput(path, f'{prefix}{_THROUGHPUT}.', throughput)
    return models


def _throughput(
    path: Path,
    prefix: str,
    record: Mapping[str, Any],
) -> Throughput:
    names = ('mean', 'low', 'high')
    _refuse_unknown(path, prefix, record, names)
    for name in names:
        value = _take(path, prefix, record, name, (int, float))
        _check(
            0 < value < math.inf,  # NaN is not.
            f'{path}: {prefix}{name}',
            value,
            'no model serves so many tokens a second.',
            'measure it again.',
        )
    found = Throughput(**{name: float(record[name]) for name in names})
    _check(
        found.low <= found.mean <= found.high,
        f'{path}: {prefix}mean',
        found.mean,
        f'it is not from low ({found.low:g}) to high ({found.high:g}).',
        'measure it again.',
    )
    return found


def _count(path: Path, prefix: str, record: Mapping[str, Any], key: str) -> int:
    value = _take(path, prefix, record, key, int)
    _check(
        value >= 1,
        f'{path}: {prefix}{key}',
        value,
        'it is less than 1.',
        'write 1 of a dense model.',
    )
    return value


def _take(
    path: Path,
    prefix: str,
    record: Mapping[str, Any],
    key: str,
    kind: Any,
) -> Any:
    value = record.get(key)
    # True is an int to Python.
    fits = isinstance(value, kind) and not isinstance(value, bool)
    _check(
        fits,
        f'{path}: {prefix}{key}',
        value,
        'it is missing, or of another type than serving results have there.',
        'measure it again, or write it as format '
        f'{FORMAT} has it.',
    )
    return value


def _refuse_unknown(
    path: Path,
    prefix: str,
    record: Mapping[str, Any],
    known: tuple[str, ...],
) -> None:
    for key, value in record.items():
        _check(
            key in known,
            f'{path}: {prefix}{key}',
            value,
            'there is no such key.',
            f"remove it; there are {', '.join(known)}.",
        )


def _check(fits: Any, key: str, value: Any, problem: str, fix: str) -> None:
    if not fits:
        raise ConfigError(key, value, problem, fix)
