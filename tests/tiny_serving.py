"""A small serving study, as a YAML that tests change, and what runs it."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np
import yaml

from benchmarks.inference.analysis.steady import Timings, measure
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.servers import ServerSpec

__all__ = [
    'REMOVED',
    'SHAPE',
    'SHIPPED',
    'STUDIES',
    'STUDY',
    'StandIn',
    'write_real_models',
    'write_study',
]

# The studies of the harness.
STUDIES = Path(__file__).parents[1] / 'benchmarks/inference/studies'
SHIPPED = sorted(path.stem for path in STUDIES.glob('*.yaml'))

SHAPE = {
    'd_model': 64,
    'ffn_hidden_size': 128,
    'n_layers': 2,
    'n_heads': 4,
    'kv_n_heads': 2,
    'vocab_size': 512,
}
STUDY: dict[str, Any] = {
    'name': 'tiny',
    'folder': 'runs/tiny',
    'seed': 17,
    'runs': 2,
    'load_format': 'dummy',
    'routing': {
        'kind': 'uniform',
    },
    'workload': {
        'input_tokens': 16,
        'output_tokens': 4,
        'requests': 8,
        'warmup_requests': 1,
    },
    'rates': {
        'step': 0.5,
        'start': 0.5,
        'stop': 2.0,
    },
    'engine': {
        'dtype': 'bfloat16',
        'max_model_len': 32,
        'enforce_eager': True,
        'max_num_seqs': 2,
    },
    'top_k': [1, 2],
    'variants': ['base'],
    'sizes': {
        'tiny': {
            'dense': SHAPE,
            'moe': {
                'experts': 8,
            },
        },
    },
}
REMOVED = object()


def write_study(
    folder: Path,
    changes: Sequence[tuple[str, Any]] = (),
) -> Path:
    """Writes STUDY, with its results in the folder.

    Args:
        folder: For the YAML.
        changes: Keys with spaces between them and their value, or REMOVED.
    """
    content = copy.deepcopy(STUDY)
    for path, value in changes:
        *outer, key = path.split()
        inner = content
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[key] = value
        if value is REMOVED:
            del inner[key]
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_real_models(folder: Path) -> None:
    """What studies of real weights need beside their YAMLs, without weights."""
    for path in STUDIES.glob('*.yaml'):
        study = yaml.safe_load(path.read_text())
        if study['load_format'] == 'real':
            for size in study['sizes'].values():
                _write_configs(folder, size)
            _write_tokens(folder, study)


def _write_configs(folder: Path, size: dict[str, Any]) -> None:
    models = {name: size[name] for name in ('dense', 'moe')}
    for name, model in {**models, **size.get('others', {})}.items():
        experts = 8 if name == 'moe' else 4 if 'experts' in name else 1
        config = {'vocab_size': 9, 'num_local_experts': experts}
        if experts == 1:
            del config['num_local_experts']
        path = folder / model['folder']
        path.mkdir(parents=True, exist_ok=True)
        (path / 'config.json').write_text(json.dumps(config))
        (path / 'tokenizer.json'
        ).write_text('{"model": {"vocab": {}}, "added_tokens": []}')


def _write_tokens(folder: Path, study: dict[str, Any]) -> None:
    line = json.dumps({'prompt': [5] * 64})
    for name in (
            study['workload'].get('prompts'),
            study.get('quality', {}).get('texts'),
    ):
        if name:
            (folder / name).write_text(f'{line}\n' * 64)


class StandIn:
    """Instead of vLLM: notes what is asked, and answers as a server would.

    Each server takes a request after another, dense ones 1.6 a second, mixtures
    1.1 or, of two experts a token, 0.6.

    Args:
        before: Called with each point before it is measured; may raise.

    Attributes:
        events: ``start LABEL run RUN``, ``end ...`` and labels of points.
        reasons: Labels of servers -> why they can't run here.
        broken: Labels of servers that don't start.
    """

    machine = {
        'gpu': None,
        'n_gpus': 0,
        'cpu': 'A CPU',
        'cpu_features': ('avx2', ),
        'cores': 2,
        'memory_gib': 24.0,
    }

    def __init__(self, before: Callable[[Point], None] = lambda _: None):
        self.before = before
        self.events: list[str] = []
        self.reasons: dict[str, str] = {}
        self.broken: set[str] = set()
        self.is_dead = False
        self.start_seconds = 40.0

    @property
    def measured(self) -> list[str]:
        """Labels of points, in order."""
        return [e for e in self.events if not e.startswith(('start', 'end'))]

    def labels(self, server: ServerSpec) -> list[str]:
        return ['CPU', 'dummy weights']

    def unavailable(self, server: ServerSpec) -> Optional[str]:
        return self.reasons.get(server.label)

    @contextmanager
    def serve(self, server: ServerSpec, run: int) -> Iterator['StandIn']:
        self.events.append(f'start {server.label} run {run + 1}')
        self.is_dead = False
        try:
            if server.label in self.broken:
                raise HarnessError('server', 'vllm', 'flag.', 'correct it.')
            yield self
        finally:
            self.events.append(f'end {server.label} run {run + 1}')

    def check_alive(self) -> None:
        if self.is_dead:
            raise HarnessError('server', 'vllm', 'it died.', 'read the log.')

    def measure(self, point: Point, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'bench.log').write_text('half')
        self.before(point)
        self.events.append(point.label)
        seconds = 1 / {
            0: 1.6,
            1: 1.1,
            2: 0.6
        }[0 if point.server.is_dense else point.server.top_k]
        n = point.n_requests
        start = np.arange(n) / point.rate if point.rate else np.zeros(n)
        end, free = [], 0.0
        for time in start:
            free = max(time, free) + seconds
            end.append(free)
        requests = {
            'start': start.tolist(),
            'end': end,
            'ttft': (np.array(end) - start - seconds / 2).tolist(),
            'input_tokens': [16] * n,
            'output_tokens': [4] * n,
        }
        steady = measure(Timings(**requests), point.rate)
        return {
            'engine': {
                'start_seconds': self.start_seconds,
                'devices': 1,
            },
            'requests': requests,
            'tool': {},
            'measured': steady.to_json(),
            'counters': {
                'prefix_cache_hits': 0,
                'preemptions': 0,
            },
            'expert_load': None,
        }
