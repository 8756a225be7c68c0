"""Measures points with vLLM: a server, its load, and what both say."""

import json
import math
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Iterator, Mapping, Optional

from benchmarks.inference.analysis.steady import Timings, measure
from benchmarks.inference.engine import variants
from benchmarks.inference.engine.load import BenchResult, run_load
from benchmarks.inference.engine.machine import this_machine
from benchmarks.inference.engine.metrics import (
    Counters,
    count_between,
    facts_of_log,
    kv_cache_tokens,
)
from benchmarks.inference.engine.models import (
    check_model_folder,
    write_model_folder,
)
from benchmarks.inference.engine.prompts import seed_of, write_prompts
from benchmarks.inference.engine.routing import (
    ObservedRouting,
    read_observed,
    routing_environment,
    routing_label,
    write_routing,
)
from benchmarks.inference.engine.server import (
    Server,
    find_vllm,
    free_port,
    serve_command,
    server_environment,
)
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.config import Shape, Study
from benchmarks.inference.study.points import (
    Point,
    ServerSpec,
    routing_of,
    weight_bytes_of,
)

__all__ = ['VllmBackend', 'VllmServing']

# A server whose engine died takes a moment to end.
_DEATH_SECONDS = 5
# Before a load counts as stuck: its start, and each request one by one.
_LOAD_SECONDS, _REQUEST_SECONDS = 600, 30


class VllmBackend:
    """Serves a study's models with vLLM.

    Args:
        study: The study.

    Raises:
        HarnessError: vLLM is not installed beside this Python.
    """

    def __init__(self, study: Study):
        self.study = study
        self.vllm = find_vllm()
        self._machine = this_machine(self.vllm)
        self.machine: Mapping[str, Any] = asdict(self._machine)

    def labels(self, server: ServerSpec) -> list[str]:
        labels = []
        if self._machine.device == 'cpu':
            labels.append('CPU')
        if self.study.load_format == 'dummy':
            labels.append('dummy weights')
        if server.config['routing'] is not None:
            routing = routing_label(server.config['routing'])
            labels.append(f'simulated routing: {routing}')
        return labels

    def unavailable(self, server: ServerSpec) -> Optional[str]:
        return variants.unavailable(
            server.variant,
            self._machine,
            self.study.load_format,
            server.architecture,
            server.size.engine.tensor_parallel_size,
        )

    @contextmanager
    def serve(self, server: ServerSpec, run: int) -> Iterator['VllmServing']:
        folder = self.study.folder / 'servers' / server.id
        model = self._model(server, folder)
        dense = server.size.dense
        changes = variants.changes_of(
            server.variant,
            asdict(server.size.engine),
            self._machine,
            dense if isinstance(dense, Path) else None,
        )
        port = free_port()
        command = serve_command(
            self.vllm,
            model,
            port,
            changes.engine,
            self.study.load_format,
            None if server.is_dense else server.top_k,
            changes.flags,
        )
        environment = server_environment({
            **routing_environment(folder),
            **changes.environment,
        })
        log = folder / f'run_{run + 1}.log'
        with Server(command, port, log, environment) as running:
            yield VllmServing(self.study, server, running, folder, model)

    def _model(self, server: ServerSpec, folder: Path) -> Path:
        """The model's folder, and beside it the routing of dummy weights."""
        size = server.size
        source = size.dense if server.is_dense else size.moe
        if isinstance(source, Path):
            check_model_folder(source)
            return source
        assert isinstance(size.dense, Shape)  # for pyright: as study.py checks
        shape = asdict(size.dense)
        model = folder / 'model'
        write_model_folder(
            shape,
            model,
            server.experts,
            server.top_k,
            size.engine.dtype,
        )
        if self.study.routing is not None and not server.is_dense:
            write_routing(
                routing_of(self.study.routing),
                folder,
                size.dense.n_layers,
                server.experts,
                server.top_k,
                self.study.seed,
            )
        return model


class VllmServing:
    """A server of vLLM that answers.

    Args:
        study: The study.
        server: What it serves.
        running: The server.
        folder: Of the server.
        model: Of the model.
    """

    def __init__(
        self,
        study: Study,
        server: ServerSpec,
        running: Server,
        folder: Path,
        model: Path,
    ):
        self.study = study
        self.server = server
        self.running = running
        self.folder = folder
        self.model = model
        self.start_seconds = running.start_seconds

    def check_alive(self) -> None:
        # A server whose engine died takes a moment to end.
        until = monotonic() + _DEATH_SECONDS
        while monotonic() < until:
            self.running.check_alive()
            sleep(0.5)

    def measure(self, point: Point, folder: Path) -> dict[str, Any]:
        prompts = folder / 'prompts.jsonl'
        seed = seed_of(self.study.seed, point.rate, point.run)
        workload = self.server.size.workload
        write_prompts(
            prompts,
            point.n_requests,
            workload.input_tokens,
            self._vocab_size(),
            seed,
        )
        before = self._metrics(folder / 'metrics_before.txt')
        result = self._load(point, folder, prompts, seed)
        after = self._metrics(folder / 'metrics_after.txt')
        # They can be written again, and are large.
        prompts.unlink()
        counters = count_between(before, after)
        _check_prefix_cache(counters)
        observed = self._observed()
        return {
            'engine': self._engine(after, observed),
            'requests': {
                'start': result.start_s,
                'end': result.end_s,
                'input_tokens': result.input_tokens,
                'output_tokens': result.output_tokens,
                'ttft': result.ttft_s,
            },
            'tool': result.tool,
            'measured': {
                **measure(_timings(result), point.rate).to_json(),
                # A failed request is an error, and no point.
                'n_failed':
                0,
            },
            'counters': {
                'prefix_cache_hits': counters.prefix_cache_hits,
                'preemptions': counters.preemptions,
                'spec_accepted': counters.spec_accepted,
                'spec_drafted': counters.spec_drafted,
            },
            'expert_load': observed and observed.shares and {
                'shares': observed.shares,
            },
        }

    def _load(
        self,
        point: Point,
        folder: Path,
        prompts: Path,
        seed: int,
    ) -> BenchResult:
        workload = self.server.size.workload
        return run_load(
            [str(self.running.command[0]), 'bench', 'serve'],
            self.running.url,
            self.model,
            prompts,
            folder,
            point.n_requests,
            math.inf if point.rate is None else point.rate,
            workload.input_tokens,
            workload.output_tokens,
            seed,
            workload.warmup_requests,
            server_environment({}),
            _LOAD_SECONDS + point.seconds_of_arrivals +
            _REQUEST_SECONDS * point.n_requests,
        )

    def _vocab_size(self) -> int:
        config = json.loads((self.model / 'config.json').read_text())
        return config['vocab_size']

    def _metrics(self, path: Path) -> str:
        text = self.running.metrics()
        path.write_text(text)
        return text

    def _observed(self) -> Optional[ObservedRouting]:
        """What the engine routes, once its K is checked.

        Raises:
            HarnessError: It routes each token to another number of experts.
        """
        observed = read_observed(self.folder)
        if self.server.is_dense:
            return None
        found = set(observed.top_k) if observed else set()
        if found != {self.server.top_k}:
            raise HarnessError(
                'top_k',
                self.server.top_k,
                f'the engine routes each token to {sorted(found)} experts.',
                f'read {self.running.log}; the plugin notes what the engine '
                'builds.',
            )
        return observed

    def _engine(
        self,
        metrics: str,
        observed: Optional[ObservedRouting],
    ) -> dict[str, Any]:
        facts = facts_of_log(self.running.log.read_text(errors='replace'))
        return {
            'version': facts.version,
            'kv_cache_tokens': kv_cache_tokens(metrics)
            or facts.kv_cache_tokens,
            # A CPU's engine doesn't say.
            'weight_bytes': facts.weight_bytes or weight_bytes_of(self.server),
            'moe_backend': facts.moe_backend,
            'moe_kernel': facts.moe_kernel,
            'tuned_config': facts.tuned_config,
            'top_k_checked': observed and observed.top_k[0],
            'start_seconds': self.start_seconds,
        }


def _timings(result: BenchResult) -> Timings:
    return Timings(
        result.start_s,
        result.end_s,
        result.ttft_s,
        result.input_tokens,
        result.output_tokens,
    )


def _check_prefix_cache(counters: Counters) -> None:
    if counters.prefix_cache_hits:
        raise HarnessError(
            'prefix_cache_hits',
            counters.prefix_cache_hits,
            'tokens of prompts were found in the cache, not computed.',
            'start the server with --no-enable-prefix-caching.',
        )
