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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference.engine.plugin.simulated_routing.record import (
    question_of,
)
from benchmarks.inference.engine.plugin.simulated_routing.tables import (
    UNITS,
    count_experts,
    draw_table,
)
from benchmarks.inference.errors import HarnessError

__all__ = [
    'ObservedRouting',
    'check_recorded',
    'check_routing',
    'drawn_shares',
    'expert_shares',
    'inclusion',
    'observe',
    'routing_environment',
    'routing_label',
    'write_routing',
]

_PLUGIN = Path(__file__).resolve().parent / 'plugin'
_SPEC = 'routing.json'
_LOG = 'routing_observed.json'
_KINDS = {'uniform': (), 'zipf': ('exponent', ), 'recorded': ('file', )}

# For an answer of the plugin, and until the engine is at rest.
_ANSWER_SECONDS, _REST_SECONDS = 10.0, 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ObservedRouting:
    """What the engine said of its mixture layers.

    Attributes:
        top_k: Experts of a token, of each layer that the engine built.
        experts: Of each layer.
        tokens: For how many tokens each layer drew experts from the tables
            since the server started, padding included; empty where nothing is
            simulated.
    """
    top_k: tuple[int, ...]
    experts: tuple[int, ...]
    tokens: tuple[int, ...]


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


def check_recorded(file: Path, n_layers: int, n_experts: int) -> None:
    """Raises HarnessError where recorded shares can't be a model's.

    Args:
        file: See the module's docstring.
        n_layers: Mixture layers of the model.
        n_experts: Of each.
    """
    _recorded(file, n_layers, n_experts)


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
            simulated; else the plugin only records what the engine built.
    """
    log = (folder / _LOG).resolve()
    for earlier in (log, question_of(log)):
        earlier.unlink(missing_ok=True)
    inherited = [
        path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep)
        if path
    ]
    environment = {
        'PYTHONPATH': os.pathsep.join([str(_PLUGIN), *inherited]),
        'SERVING_ROUTING_LOG': str(log),
    }
    spec = folder / _SPEC
    if spec.is_file():
        environment['SERVING_ROUTING'] = str(spec.resolve())
        environment['VLLM_MOE_ROUTING_SIMULATION_STRATEGY'] = 'tables'
    return environment


def observe(folder: Path) -> ObservedRouting:
    """What the engine built and, where routing is simulated, drew by now.

    Waits until the engine is at rest, where two answers are the same.

    Args:
        folder: See ``routing_environment``. The server has answered requests.

    Raises:
        HarnessError: There is no record, the plugin doesn't answer, or the
            engine is not at rest.
    """
    path = folder / _LOG
    if not (folder / _SPEC).is_file():
        return _read(path)[0]
    until = time.monotonic() + _REST_SECONDS
    before, now = _ask(path), _ask(path)
    while now != before:
        if time.monotonic() > until:
            raise _error(
                path,
                f'experts are still drawn after {_REST_SECONDS:g} s, though '
                'all requests are answered.',
                'keep other clients from the server.',
            )
        before, now = now, _ask(path)
    return now


def _ask(path: Path) -> ObservedRouting:
    """Has the plugin say what was drawn by now."""
    question, text = question_of(path), str(time.monotonic_ns())
    # At once: half a text would be another question.
    partial = question.with_name(f'{question.name}.partial')
    partial.write_text(text)
    partial.replace(question)
    until = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < until:
        observed, answers = _read(path)
        if answers == text:
            return observed
        time.sleep(_POLL_SECONDS)
    raise _error(
        path,
        'no experts are drawn from the tables: the plugin does not answer.',
        'read the log of the server; another version of vLLM, or a kernel, may '
        'route past its simulator.',
    )


def _read(path: Path) -> tuple[ObservedRouting, str]:
    """The record, and which question it answers."""
    try:
        seen = json.loads(path.read_text())
        observed = ObservedRouting(
            tuple(seen['top_k']),
            tuple(seen['experts']),
            tuple(seen['tokens']),
        )
        return observed, seen['answers']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _error(
            path,
            f'no record of a mixture that can be read: {error!r}.',
            'read the log of the server, which loads the plugin that writes '
            'it.',
        ) from error


def _error(path: Path, problem: str, fix: str) -> HarnessError:
    return HarnessError('routing', str(path), problem, fix)


def check_routing(
    observed: ObservedRouting,
    n_layers: int,
    n_experts: int,
    top_k: int,
) -> None:
    """Raises HarnessError where the engine built another mixture than asked.

    Args:
        observed: See ``observe``.
        n_layers: Of the model, all of them mixtures.
        n_experts: Of each.
        top_k: Experts of a token.
    """
    fix = 'read the log of the server; the plugin records what it builds.'
    if len(observed.top_k) != n_layers:
        raise HarnessError(
            'n_layers', n_layers,
            f'the engine built {len(observed.top_k)} mixture layers.', fix
        )
    if set(observed.experts) != {n_experts}:
        raise HarnessError(
            'experts', n_experts,
            f'the engine built {sorted(set(observed.experts))} experts.', fix
        )
    if set(observed.top_k) != {top_k}:
        raise HarnessError(
            'top_k', top_k,
            f'the engine routes each token to {sorted(set(observed.top_k))} '
            'experts.', fix
        )


def drawn_shares(
    folder: Path,
    before: ObservedRouting,
    after: ObservedRouting,
    n_tokens: int,
) -> list[list[float]]:
    """Each expert's share of the token-slots drawn in between, of each layer.

    The tables are drawn again, and their rows counted that the tokens had.

    Args:
        folder: See ``routing_environment``; routing is simulated.
        before: See ``observe``.
        after: Likewise, of the same server.
        n_tokens: That the model computed in between, at the least.

    Raises:
        HarnessError: A layer drew experts for fewer tokens.
    """
    spec = json.loads((folder / _SPEC).read_text())
    shares = []
    for layer, inclusion_E in enumerate(spec['inclusion']):
        begin, end = before.tokens[layer], after.tokens[layer]
        if end - begin < n_tokens:
            raise _error(
                folder / _LOG,
                f'layer {layer} drew experts for {end - begin} tokens; the '
                f'model computed {n_tokens}.',
                'read the log of the server; a kernel may route past vLLM\'s '
                'simulator.',
            )
        table_RK = draw_table(inclusion_E, spec['top_k'], spec['seed'], layer)
        counts_E = count_experts(table_RK, len(inclusion_E), end)
        counts_E -= count_experts(table_RK, len(inclusion_E), begin)
        shares.append((counts_E / counts_E.sum()).round(6).tolist())
    return shares
