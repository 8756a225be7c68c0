"""How tokens are routed to experts when the weights are dummies.

Dummy weights make all routers alike: every token would go to the same experts.
So the shares of the experts are set, and the plugin in ``plugin/`` draws each
token's experts with these shares:

- ``{"kind": "uniform"}``: all the same.
- ``{"kind": "zipf", "exponent": a}``: the r-th most used expert in proportion
  to ``r ** -a``; which expert that is differs from layer to layer.
- ``{"kind": "recorded", "file": f}``: as ``{"shares": [[of each expert] of
  each mixture layer]}`` in f says, such as a trained model's router measured.

An expert's share is of the token-slots, K of each token. No expert can be in
more than all tokens, so shares above 1 / K are cut to it, and the rest is given
to the others in proportion. Tokens are routed independently: a trained router
sends neighbouring tokens to the same experts more often than that.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.inference.engine.plugin.simulated_routing.tables import (
    UNITS,
    count_experts,
    draw_table,
)
from benchmarks.inference.errors import HarnessError

__all__ = [
    'ObservedRouting',
    'expert_shares',
    'inclusion',
    'read_observed',
    'routing_environment',
    'routing_label',
    'write_routing',
]

_PLUGIN = Path(__file__).resolve().parent / 'plugin'
_SPEC = 'routing.json'
_LOG = 'routing_observed.json'
_KINDS = {'uniform': (), 'zipf': ('exponent', ), 'recorded': ('file', )}


@dataclass(frozen=True)
class ObservedRouting:
    """What the engine said of its mixture layers.

    Attributes:
        top_k: Experts of a token, of each layer that the engine built.
        experts: Of each layer.
        tokens: How many were routed by tables, of each layer; those of warm-ups
            and padding count, those of the last half second may be missing.
        shares: Of the token-slots of each layer, each expert's share of these
            tokens; None where nothing was simulated.
    """
    top_k: tuple[int, ...]
    experts: tuple[int, ...]
    tokens: tuple[int, ...]
    shares: Optional[tuple[tuple[float, ...], ...]]


def routing_label(routing: Mapping[str, Any]) -> str:
    """In words, for labels: ``zipf 1.2``."""
    value = {
        'uniform': '',
        'zipf': f' {routing.get("exponent")}',
        'recorded': '',
    }
    return routing['kind'] + value[routing['kind']]


def expert_shares(
    routing: Mapping[str, Any],
    n_layers: int,
    n_experts: int,
    seed: int,
) -> np.ndarray:
    """Each expert's share of the token-slots, (layers, experts), rows sum to 1.

    Args:
        routing: See the module's docstring; a point also has its file's
            ``sha256``.
        n_layers: Mixture layers.
        n_experts: Of each.
        seed: Of the order of zipf's experts.
    """
    kind = str(routing.get('kind'))
    keys = set(routing) - {'sha256'}
    if kind not in _KINDS or keys != {'kind', *_KINDS[kind]}:
        raise HarnessError(
            'routing', dict(routing), 'not a routing.',
            'write {kind: uniform}, {kind: zipf, exponent: a} or '
            '{kind: recorded, file: f}.'
        )
    if kind == 'uniform':
        return np.full((n_layers, n_experts), 1 / n_experts)
    if kind == 'zipf':
        return _zipf(float(routing['exponent']), n_layers, n_experts, seed)
    return _recorded(Path(routing['file']), n_layers, n_experts)


def _zipf(
    exponent: float,
    n_layers: int,
    n_experts: int,
    seed: int,
) -> np.ndarray:
    if exponent < 0:
        raise HarnessError(
            'routing.exponent', exponent, 'negative.',
            'write 0 for uniform, or more.'
        )
    weights = np.arange(1, n_experts + 1)**-exponent
    weights /= weights.sum()
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(weights) for _ in range(n_layers)])


def _recorded(path: Path, n_layers: int, n_experts: int) -> np.ndarray:
    try:
        shares = np.array(json.loads(path.read_text())['shares'], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            'routing.file', str(path), f'cannot be read: {error!r}.',
            'write {"shares": [[of each expert] of each layer]}.'
        ) from error
    if shares.shape != (n_layers, n_experts):
        raise HarnessError(
            'routing.file', str(path),
            f'shares of shape {shares.shape}, not {(n_layers, n_experts)}.',
            'record them from a model with these layers and experts.'
        )
    if (shares < 0).any() or (shares.sum(axis=1) <= 0).any():
        raise HarnessError(
            'routing.file', str(path),
            'a negative share, or a layer without any.',
            'record the shares of each layer.'
        )
    return shares / shares.sum(axis=1, keepdims=True)


def inclusion(shares_E: Sequence[float], top_k: int) -> list[int]:
    """In how many of ``UNITS`` tokens each expert is, K in each token.

    Args:
        shares_E: Of the token-slots of a layer; they sum to 1.
        top_k: K.

    Returns:
        Whole numbers up to ``UNITS``, together ``K * UNITS``. Those of equal
        shares may differ by 1.
    """
    probability = np.asarray(shares_E, float) * top_k
    if (probability > 0).sum() < top_k:
        raise HarnessError(
            'routing', list(shares_E), f'fewer than {top_k} experts are used.',
            f'give a share to at least {top_k}.'
        )
    certain = probability > 1
    while certain.any() and (probability[certain] > 1).any():
        probability[certain] = 1
        rest = top_k - certain.sum()
        probability[~certain] *= rest / probability[~certain].sum()
        certain |= probability > 1
    units = np.floor(probability * UNITS + 1e-6).astype(int).clip(max=UNITS)
    # Rounding down leaves a few units; the largest fractions get them.
    missing = top_k * UNITS - units.sum()
    fraction = np.where(units < UNITS, probability * UNITS - units, -np.inf)
    units[np.argsort(-fraction, kind='stable')[:missing]] += 1
    return units.tolist()


def write_routing(
    routing: Mapping[str, Any],
    folder: Path,
    n_layers: int,
    n_experts: int,
    top_k: int,
    seed: int,
) -> None:
    """Writes, for the plugin, the routing of a server into its folder."""
    shares = expert_shares(routing, n_layers, n_experts, seed)
    spec = {
        'seed': seed,
        'top_k': top_k,
        'inclusion': [inclusion(shares_E, top_k) for shares_E in shares],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SPEC).write_text(json.dumps(spec))


def routing_environment(folder: Path) -> dict[str, str]:
    """What a server needs to load the plugin, and to route as was written.

    Args:
        folder: The server's. If ``write_routing`` wrote to it, routing is
            simulated; else the plugin only notes what the engine built.
    """
    (folder / _LOG).unlink(missing_ok=True)
    inherited = [
        path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep)
        if path
    ]
    environment = {
        'PYTHONPATH': os.pathsep.join([str(_PLUGIN), *inherited]),
        'SERVING_ROUTING_LOG': str((folder / _LOG).resolve()),
    }
    spec = folder / _SPEC
    if spec.is_file():
        environment['SERVING_ROUTING'] = str(spec.resolve())
        environment['VLLM_MOE_ROUTING_SIMULATION_STRATEGY'] = 'tables'
    return environment


def read_observed(folder: Path) -> Optional[ObservedRouting]:
    """What the plugin wrote; None where no mixture was built."""
    path = folder / _LOG
    if not path.is_file():
        return None
    seen = json.loads(path.read_text())
    spec = folder / _SPEC
    shares = None
    if spec.is_file() and any(seen['tokens']):
        shares = _observed_shares(json.loads(spec.read_text()), seen)
    return ObservedRouting(
        tuple(seen['top_k']),
        tuple(seen['experts']),
        tuple(seen['tokens']),
        shares,
    )


def _observed_shares(
    spec: Mapping[str, Any],
    seen: Mapping[str, Any],
) -> tuple[tuple[float, ...], ...]:
    """Counts the rows of the tables that were used: they are drawn again."""
    shares = []
    for layer, inclusion_E in enumerate(spec['inclusion']):
        table_RK = draw_table(inclusion_E, spec['top_k'], spec['seed'], layer)
        tokens = seen['tokens'][layer]
        counts_E = count_experts(table_RK, len(inclusion_E), tokens)
        slots = max(1, tokens * spec['top_k'])
        shares.append(tuple((counts_E / slots).round(6).tolist()))
    return tuple(shares)
