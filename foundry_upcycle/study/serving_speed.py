"""How fast a dense model and its mixture are served: the paper's, or measured.

The cost of serving a token is the machine's time for it, at the throughput at
which the machine is full.
"""

from pathlib import Path
from typing import Optional

import numpy as np
import yaml

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.costs import Interval, ServingSpeed
from foundry_upcycle.study.report.serving import read_serving

__all__ = ['measured_speed', 'paper_speed']

_FILE = Path(__file__).with_name('paper_serving.yaml')
_N_EXPERTS = 8  # Of the paper's mixtures.


def paper_speed(n_params: float, n_experts: int, top_k: int) -> ServingSpeed:
    """The paper's, between its sizes linear in logarithms.

    Beyond them the mixture's relative cost is that of the nearest size, and the
    dense model's throughput is as the inverse of its parameters. The ratio's
    interval is its range over the sizes, as the paper has none.

    Args:
        n_params: Of the dense model.
        n_experts: Of the mixture.
        top_k: Experts that a token visits.

    Raises:
        ConfigError: The paper served no such mixture.
    """
    key = f'top_{top_k}'
    records = yaml.safe_load(_FILE.read_text())
    if n_experts != _N_EXPERTS or key not in records[0]:
        raise ConfigError(
            '--experts, --top-k',
            (n_experts, top_k),
            f'the paper served mixtures of {_N_EXPERTS} experts with top-1 '
            'and top-2 only.',
            'give what serving this one was measured to cost: --serving.',
        )
    sizes = np.array([record['params'] for record in records])
    dense = np.array([record['dense'] / record['gpus'] for record in records])
    ratios = np.array([record['dense'] / record[key] for record in records])
    nearest = float(np.clip(n_params, sizes[0], sizes[-1]))
    at = np.log(nearest), np.log(sizes)
    speed = float(np.exp(np.interp(*at, np.log(dense))))
    ratio = float(np.exp(np.interp(*at, np.log(ratios))))
    beyond = '' if nearest == n_params else (
        f', beyond its sizes of {sizes[0]:.3g} to {sizes[-1]:.3g} parameters'
    )
    return ServingSpeed(
        f'the paper (vLLM on an H100, 3,500 tokens in and 300 out){beyond}',
        speed * nearest / n_params,
        Interval(ratio, float(ratios.min()), float(ratios.max())),
    )


def measured_speed(
    path: str,
    size: Optional[str],
    n_experts: int,
    top_k: int,
) -> ServingSpeed:
    """What serving results say.

    Args:
        path: Such as ``read_serving`` reads.
        size: The model's name there; which one is the model's, the results
            can't tell.
        n_experts: Of the mixture.
        top_k: Experts that a token visits.

    Raises:
        ConfigError: They can't be read, or lack the dense model of this size
            or its mixture.
    """
    serving = read_serving(Path(path))
    cost = None if size is None else serving.cost(size, n_experts, top_k)
    if size is None or cost is None:
        there = ', '.join(
            f'{name} with {experts} experts, top-{k}'
            for name, experts, k in serving.models
        )
        raise ConfigError(
            '--serving-size',
            size,
            f'{path} lacks the dense model of this size (1 expert), or its '
            f'mixture of {n_experts} experts, top-{top_k}. There are: '
            f"{there or 'none'}.",
            'name a size that was measured, or measure this one.',
        )
    labels = f" ({', '.join(serving.labels)})" if serving.labels else ''
    return ServingSpeed(
        f'{path}, {size}{labels}',
        serving.models[size, 1, 1].mean,
        Interval(cost.value, cost.low, cost.high),
    )
