"""The experts' shares that ``router_monitor`` logged, as a file.

The serving harness (``benchmarks/inference``) routes dummy weights by it:
``routing: {kind: recorded, file: shares.json}``.
"""

import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping

from foundry_upcycle.checkpoints.writers.output import absolute, new_output
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.gauntlet.mlflow_run import MLFLOW, mlflow_histories

__all__ = ['ExpertShares', 'read_expert_shares', 'write_expert_shares']

_SHARE = re.compile(r'router/layer_([0-9]{1,9})/expert_([0-9]{1,9})/share')
# How far a layer's shares may be from 1 together.
_TOLERANCE = 1e-3
# Of the values of a JSON, which does not say.
_UNKNOWN_STEP = -1


@dataclass(frozen=True)
class ExpertShares:
    """How many of the token-slots of each layer went to each expert.

    Args:
        shares: Of each layer with a router, of each of its experts; a layer's
            sum to 1.
        layers: Which blocks of the model these layers are, ascending.
        source: Where they were read.
        steps: At which they were logged; none where that is not known.
    """

    shares: list[list[float]]
    layers: list[int]
    source: str
    steps: list[int]


def read_expert_shares(run: str, last: int = 1) -> ExpertShares:
    """Reads the experts' shares of a training.

    Args:
        run: ``mlflow:<tracking URI>#<run name or id>``, the folder of a run in
            an MLflow store, or a JSON of metric keys to values.
        last: Over how many logs, of the last, to take the mean. Each log is
            over all tokens since the one before, and routing changes while a
            model trains, so 1 is nearest to how the checkpoint routes.

    Raises:
        ConfigError: There is no such run, it logged no shares, or fewer logs
            than ``last``, or what it logged are not the shares of layers of
            one number of experts.
    """
    logged = _logged(run)
    if not logged:
        raise ConfigError(
            'run',
            run,
            'it has no metrics router/layer_<i>/expert_<e>/share.',
            'add the callback router_monitor to the training; it logs at its '
            'interval and when the training ends.',
        )
    steps = _last_steps(logged, last)
    means: dict[tuple[int, int], float] = {}
    for name, values in logged.items():
        layer, expert = map(int, re.findall(r'\d+', name))
        shares = [_share(name, values, step) for step in steps]
        means[layer, expert] = math.fsum(shares) / last
    layers = sorted({layer for layer, _ in means})
    n_experts = _n_experts(run, layers, means)
    return ExpertShares(
        [
            _normalised(
                run,
                layer,
                [means[layer, expert] for expert in range(n_experts)],
            ) for layer in layers
        ],
        layers,
        run,
        [step for step in steps if step != _UNKNOWN_STEP],
    )


def write_expert_shares(
    shares: ExpertShares,
    out: str,
    overwrite: bool = False,
) -> None:
    """Writes a JSON of the fields of ``ExpertShares``, whole or not at all.

    Raises:
        CheckpointError: ``out`` exists and may not be replaced, is a folder, or
            can't be written.
    """
    out = absolute(out)
    if os.path.isdir(out):
        raise CheckpointError(out, 'it is a folder.', 'name a file.')
    with new_output(out, overwrite) as path:
        path.write_text(json.dumps(asdict(shares), indent=1) + '\n')


def _logged(run: str) -> Mapping[str, Mapping[int, Any]]:
    """By metric, the shares by step."""
    path = Path(run)
    if run.startswith(MLFLOW):
        return mlflow_histories('run', run, _SHARE)
    if (path / 'metrics').is_dir():
        # MLflow's folders are <store>/<experiment>/<run>/metrics.
        folder = path.resolve()
        source = f'{MLFLOW}{folder.parent.parent}#{folder.name}'
        return mlflow_histories('run', source, _SHARE)
    return {
        name: {
            _UNKNOWN_STEP: value,
        }
        for name, value in _load(path).items()
        if _SHARE.fullmatch(name)
    }


def _last_steps(
    logged: Mapping[str, Mapping[int, Any]],
    last: int,
) -> list[int]:
    # Of a metric that did not change, nothing may be logged. Before the first
    # step that all have, the log is not whole.
    start = max(min(values) for values in logged.values())
    steps = sorted({step for values in logged.values() for step in values})
    steps = [step for step in steps if step >= start]
    if not 0 < last <= len(steps):
        raise ConfigError(
            'last',
            last,
            f'the routers were logged {len(steps)} times.',
            f'ask for 1 to {len(steps)}.',
        )
    return steps[-last:]


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise DocumentError(f'it holds a {type(content).__name__}.')
    except DocumentError as error:
        raise ConfigError(
            'run',
            str(path),
            f'it is neither a run nor a JSON of metrics: {error}',
            'name mlflow:<tracking URI>#<run name or id>, the folder of a run '
            'in an MLflow store, or a JSON of metric keys to values.',
        ) from error
    return content


def _share(name: str, values: Mapping[int, Any], step: int) -> float:
    """The value at a step, or the last one before it."""
    value = values[max(each for each in values if each <= step)]
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(
            name,
            value,
            'it is not a share, between 0 and 1.',
            'look whether the training went wrong, or name another run.',
        )
    return value


def _n_experts(
    run: str,
    layers: list[int],
    means: Mapping[tuple[int, int], float],
) -> int:
    """How many experts each layer has.

    Raises:
        ConfigError: They differ, or experts are missing.
    """
    n_experts = 1 + max(expert for _, expert in means)
    for layer in layers:
        experts = sorted(expert for of, expert in means if of == layer)
        if len(experts) != n_experts:
            raise ConfigError(
                'run',
                run,
                f'of layer {layer} it has the shares of experts {experts}, not '
                f'of all from 0 to {n_experts - 1}.',
                'name a run whose layers have the same number of experts, and '
                'that logged them all.',
            )
    return n_experts


def _normalised(run: str, layer: int, shares_E: list[float]) -> list[float]:
    total = math.fsum(shares_E)
    if abs(total - 1) > _TOLERANCE:
        raise ConfigError(
            'run',
            run,
            f'the shares of layer {layer} sum to {total:.4f}, not to 1.',
            'name a run that logged the shares of all experts.',
        )
    return [share / total for share in shares_E]
