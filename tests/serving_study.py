"""Points of a serving study that no engine measured: by hand, or simulated."""

import hashlib
import json
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.inference.analysis.steady import Timings, measure
from benchmarks.inference.point_format import POINT_FORMAT

__all__ = [
    'CPU',
    'GPU',
    'LABELS',
    'one_by_one',
    'simulate_study',
    'write_point',
]

CPU = {
    'gpu': None,
    'n_gpus': 0,
    'driver': None,
    'cuda': None,
    'cpu': 'A CPU',
    'cores': 2,
    'vllm': '0.32.0+cpu',
    'torch': '2.9',
}
GPU = {
    **CPU,
    'gpu': 'NVIDIA H100',
    'n_gpus': 1,
    'driver': '580.65.06',
    'cuda': '12.8',
    'vllm': '0.32.0',
}
LABELS = ['CPU', 'dummy weights', 'simulated routing: uniform']
# On one device.
_WEIGHTS = {'430m': 872_500_000, '1b': 2_835_600_000}


def write_point(
    folder: Path,
    experts: int = 1,
    top_k: int = 1,
    rate: Optional[float] = 1.0,
    run: int = 0,
    *,
    size: str = '430m',
    variant: str = 'base',
    throughput: float = 1000.0,
    latency: float = 2.0,
    saturated: Optional[bool] = None,
    config: Optional[dict[str, Any]] = None,
    counters: Optional[dict[str, Any]] = None,
    engine: Optional[dict[str, Any]] = None,
    requests: Optional[dict[str, Any]] = None,
    **changes: Any,
) -> Path:
    """Writes what a runner would have.

    Unless told, of twelve requests that come one after another: enough for the
    plateau of a server with one at a time.

    Args:
        folder: Of the study.
        experts: 1 is dense.
        top_k: Experts a token.
        rate: Requests/s, None being unbounded.
        run: From 0.
        size: Of the model.
        variant: Of the server.
        throughput: Tokens/s.
        latency: Mean, in seconds, and of each request.
        saturated: Of an unbounded rate True unless told.
        config: Changes of it.
        counters: Likewise.
        engine: Likewise.
        requests: Instead of the twelve.
        changes: Of the record's own keys.

    Returns:
        The file.
    """
    full = _config(size, experts, top_k, variant, rate, run, config or {})
    canonical = json.dumps(full, sort_keys=True).encode()
    point_id = hashlib.sha256(canonical).hexdigest()[:16]
    record = {
        'format': POINT_FORMAT,
        'id': point_id,
        'config': full,
        'status': 'done',
        'reason': None,
        'machine': CPU,
        'labels': LABELS,
        'engine': _engine(size, experts, top_k) | (engine or {}),
        'requests': requests or one_by_one(12, latency),
        'tool': {
            'total_token_throughput': 0.9 * throughput,
        },
        'measured': {
            'offered': rate,
            'achieved': rate,
            'throughput_tokens_per_s': throughput,
            'latency_mean_s': latency,
            'in_flight_slope': 0.0,
            'saturated': rate is None if saturated is None else saturated,
            'steady_from_s': 0.0,
            'window': [0.0, 12 * latency],
        },
        'counters': {
            'prefix_cache_hits': 0,
            'preemptions': 0,
            'spec_accepted': None,
            'spec_drafted': None,
        } | (counters or {}),
        'expert_load': None,
        'seconds': 60.0,
    } | changes
    path = folder / 'points' / point_id / 'point.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def one_by_one(n: int, latency: float = 2.0) -> dict[str, list[float]]:
    """Requests that come and are answered one after another."""
    return {
        'start': [latency * i for i in range(n)],
        'end': [latency * (i + 1) for i in range(n)],
        'ttft': [latency / 4] * n,
        'input_tokens': [90] * n,
        'output_tokens': [10] * n,
    }


def _config(
    size: str,
    experts: int,
    top_k: int,
    variant: str,
    rate: Optional[float],
    run: int,
    changes: dict[str, Any],
) -> dict[str, Any]:
    return {
        'study': 'cpu',
        'size': size,
        'architecture': 'dense' if experts == 1 else 'moe',
        'experts': experts,
        'top_k': top_k,
        'variant': variant,
        'rate': rate,
        'run': run,
        'workload': {
            'input_tokens': 512,
            'output_tokens': 64,
            'requests': 40,
            'warmup_requests': 4,
        },
        'routing': {
            'kind': 'uniform',
        },
        'engine': {
            'dtype': 'bfloat16',
            'max_model_len': 1024,
        },
        'model': {},
        **changes,
    }


def _engine(size: str, experts: int, top_k: int) -> dict[str, Any]:
    is_moe = experts > 1
    weights = _WEIGHTS.get(size, 1_000_000)
    return {
        'kv_cache_tokens': 95_232,
        'devices': 1,
        'cpu_cores': [0, 1],
        'weight_bytes': weights * (4 if is_moe else 1),
        'moe_kernel': 'cpu_fused_moe' if is_moe else None,
        'tuned_config': False if is_moe else None,
        'top_k_checked': top_k if is_moe else None,
        'start_seconds': 38.5,
    }


# Of the simulated queue: requests/s at the most, seconds of a request alone.
_SERVERS = {
    (1, 1, 'base'): (1.00, 2.0),
    (8, 1, 'base'): (0.66, 3.1),
    (8, 2, 'base'): (0.52, 3.6),
    (8, 2, 'compiled'): (0.62, 3.0),
    (8, 2, 'ngram'): (0.47, 2.7),
    (8, 2, 'tensor_parallel_2'): (0.88, 2.4),
}
_DEVICES = {'tensor_parallel_2': 2}
_RATES = (0.1, 0.25, 0.4, 0.55, 0.8, 1.2, None)
_SLOWER = {'430m': 1.0, '1b': 3.0}


def simulate_study(folder: Path, n_runs: int = 3, n: int = 120) -> None:
    """Writes a study whose servers share their speed among requests.

    Two sizes; three models; three variants of the mixture with K = 2, of which
    one drafts and one takes two devices; a point that failed; a variant that
    was skipped.
    """
    for size, slower in _SLOWER.items():
        for run in range(n_runs):
            for server, (capacity, alone) in _SERVERS.items():
                speed = 1 + 0.02 * np.random.default_rng(run).normal()
                for rate in _RATES:
                    _simulate_point(
                        folder,
                        size,
                        server,
                        None if rate is None else round(rate / slower, 3),
                        run,
                        capacity * speed / slower,
                        alone * slower / speed,
                        n,
                    )
        for rate in _RATES:
            write_point(
                folder,
                8,
                2,
                rate,
                size=size,
                variant='fp8_experts',
                status='skipped',
                reason='it needs a GPU.',
            )
    write_point(
        folder,
        8,
        2,
        0.9,
        status='failed',
        reason='server="vllm serve": it died.\nRuntimeError: no <memory> | !',
    )


def _simulate_point(
    folder: Path,
    size: str,
    server: tuple[int, int, str],
    rate: Optional[float],
    run: int,
    capacity: float,
    alone: float,
    n: int,
) -> None:
    experts, top_k, variant = server
    rng = np.random.default_rng([run, round(1000 * (rate or 0))])
    waits = rng.exponential(1 / rate, n) if rate else np.zeros(n)
    start = np.cumsum(waits)
    first, end = _serve(start, capacity, alone)
    tokens = np.full(n, 512), np.full(n, 64)
    steady = measure(Timings(start, end, first - start, *tokens), rate)
    drafts, devices = variant == 'ngram', _DEVICES.get(variant, 1)
    write_point(
        folder,
        experts,
        top_k,
        rate,
        run,
        size=size,
        variant=variant,
        requests={
            'start': start.tolist(),
            'end': end.tolist(),
            'ttft': (first - start).tolist(),
            'input_tokens': tokens[0].tolist(),
            'output_tokens': tokens[1].tolist(),
        },
        measured=steady.to_json(),
        engine={
            'devices':
            devices,
            'weight_bytes':
            _engine(size, experts, top_k)['weight_bytes'] // devices,
        },
        tool={'total_token_throughput': 576 * n / (end.max() - start[0])},
        counters={
            'spec_accepted': 410 + 10 * run if drafts else None,
            'spec_drafted': 1000 if drafts else None,
            'preemptions': 3 if rate is None else 0,
        },
        expert_load={'shares': _shares(experts)} if experts > 1 else None,
    )


def _serve(
    start: np.ndarray,
    capacity: float,
    alone: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Serves up to 6 requests at once, in order, while others wait.

    Each of k is served at min(1 / alone, capacity / k).

    Returns:
        When a quarter of each is done, and when all of it is.
    """
    left, now = np.ones(len(start)), 0.0
    first, end = np.full(len(start), np.nan), np.full(len(start), np.nan)
    while np.isnan(end).any():
        active = np.flatnonzero((start <= now) & np.isnan(end))[:6]
        speed = min(1 / alone, capacity / max(len(active), 1))
        later = start[start > now]
        steps = [*(left[active] / speed), *(later[:1] - now)]
        begun = active[np.isnan(first[active])]
        steps += [*((left[begun] - 0.75) / speed)]
        now += max(min(steps), 0.0)
        left[active] -= max(min(steps), 0.0) * speed
        first[begun[left[begun] <= 0.75 + 1e-9]] = now
        end[active[left[active] <= 1e-9]] = now
    return first, end


def _shares(experts: int) -> list[list[float]]:
    weights = np.random.default_rng(0).dirichlet(np.full(experts, 30.0), 22)
    return weights.tolist()
