"""Measures points with vLLM: a server, its load, and what both say."""

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
    check_counters,
    count_between,
    facts_of_log,
    is_idle,
    kv_cache_tokens,
)
from benchmarks.inference.engine.models import (
    check_model_folder,
    config_number,
    write_model_folder,
)
from benchmarks.inference.engine.prompts import (
    random_prompts,
    seed_of,
    write_prompts,
)
from benchmarks.inference.engine.routing import (
    ObservedRouting,
    check_routing,
    drawn_shares,
    observe,
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
from benchmarks.inference.engine.warmup import warm_up
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.run.quality import ask_quality
from benchmarks.inference.run.store import Item
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.probes import Probe
from benchmarks.inference.study.servers import (
    ServerSpec,
    routing_of,
    weight_bytes_of,
)
from benchmarks.inference.study.settings import Shape, Study

__all__ = ['VllmBackend', 'VllmServing']

# Before a load counts as stuck: its start, and each request one by one.
_LOAD_SECONDS, _REQUEST_SECONDS = 600, 30
# From the last answer until the engine has counted it.
_IDLE_SECONDS = 10


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
        elif server.size.workload.prompts is None:
            labels.append('random-token prompts')
        if server.size.workload.greedy:
            labels.append('greedy decoding')
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
            server.size.workload.greedy,
        )

    @contextmanager
    def serve(self, server: ServerSpec, run: int) -> Iterator['VllmServing']:
        folder = self.study.folder / 'servers' / server.id
        model, config = self._model(server, folder)
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
        log = _new_log(folder, run)
        pid_file = self.study.folder / 'server.pid'
        running = Server(command, port, log, environment, pid_file=pid_file)
        with running:
            yield VllmServing(
                self.study,
                server,
                running,
                folder,
                model,
                config,
                changes.engine['tensor_parallel_size'],
            )

    def _model(
        self,
        server: ServerSpec,
        folder: Path,
    ) -> tuple[Path, Mapping[str, Any]]:
        """The model's folder and its config.json; writes those of dummies.

        Beside dummies it writes how they are routed.
        """
        size = server.size
        if isinstance(server.model, Path):
            return server.model, check_model_folder(server.model)
        assert isinstance(size.dense, Shape)  # for pyright: as config.py checks
        shape = asdict(size.dense)
        model = folder / 'model'
        config = write_model_folder(
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
        return model, config


def _new_log(folder: Path, run: int) -> Path:
    """``run_1.log``, or ``run_1_2.log`` where there is one, and so on."""
    log, number = folder / f'run_{run + 1}.log', 1
    while log.exists():
        number += 1
        log = folder / f'run_{run + 1}_{number}.log'
    return log


class VllmServing:
    """A server of vLLM that answers.

    Args:
        study: The study.
        server: What it serves.
        running: The server.
        folder: Of the server.
        model: Of the model.
        config: The model's config.json.
        devices: Over which the model is spread.

    Attributes:
        death_seconds: How long a server whose engine died may take to end.
    """

    death_seconds = 5.0

    def __init__(
        self,
        study: Study,
        server: ServerSpec,
        running: Server,
        folder: Path,
        model: Path,
        config: Mapping[str, Any],
        devices: int,
    ):
        self.study = study
        self.server = server
        self.running = running
        self.folder = folder
        self.model = model
        self.devices = devices
        self.start_seconds = running.start_seconds
        self.vocab_size = config_number(config, 'vocab_size', model)
        self.n_layers = config_number(config, 'num_hidden_layers', model)

    def check_alive(self) -> None:
        until = monotonic() + self.death_seconds
        while monotonic() < until:
            self.running.check_alive()
            sleep(0.1)

    def measure(self, item: Item, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        begin = self.running.log.stat().st_size
        try:
            if isinstance(item, Probe):
                return self._probe(item, folder)
            return self._measure(item, folder)
        finally:
            with self.running.log.open('rb') as log:
                log.seek(begin)
                (folder / 'server.log').write_bytes(log.read())

    def _measure(self, point: Point, folder: Path) -> dict[str, Any]:
        workload, n = self.server.size.workload, point.n_requests
        self._warm_up(point)
        routed_before = self._routing()
        before = self._metrics(folder / 'metrics_before.txt')
        result = self._load(point, folder)
        after = self._metrics(folder / 'metrics_after.txt')
        counters = count_between(before, after)
        check_counters(
            counters,
            n,
            workload.input_tokens,
            workload.output_tokens,
        )
        timings = Timings(
            result.start_s,
            result.end_s,
            result.ttft_s,
            result.input_tokens,
            result.output_tokens,
        )
        return {
            'engine': self._engine(after),
            'requests': {
                'start': result.start_s,
                'end': result.end_s,
                'input_tokens': result.input_tokens,
                'output_tokens': result.output_tokens,
                'ttft': result.ttft_s,
            },
            'tool': result.tool,
            'measured': measure(timings, point.rate).to_json(),
            'counters': {
                'prefix_cache_hits': counters.prefix_cache_hits,
                'preemptions': counters.preemptions,
                'spec_accepted': counters.spec_accepted,
                'spec_drafted': counters.spec_drafted,
            },
            'expert_load': self._expert_load(routed_before, n),
        }

    def _probe(self, probe: Probe, folder: Path) -> dict[str, Any]:
        quality = ask_quality(
            probe.quality,
            self.running.url,
            self.model,
            self.vocab_size,
            self.server.size.engine.max_model_len,
            folder,
        )
        self._routing()
        metrics = self._metrics(folder / 'metrics_after.txt')
        return {'engine': self._engine(metrics), 'quality': quality}

    def _warm_up(self, point: Point) -> None:
        workload = self.server.size.workload
        n = workload.warmup_requests
        warm_up(
            self.running.url,
            random_prompts(
                n,
                workload.input_tokens,
                self.vocab_size,
                seed_of(self.study.seed, point.rate, point.run, 'warm-up'),
            ),
            workload.output_tokens,
            _LOAD_SECONDS + _REQUEST_SECONDS * n,
            workload.greedy,
        )

    def _load(self, point: Point, folder: Path) -> BenchResult:
        workload = self.server.size.workload
        prompts = folder / 'prompts.jsonl'
        seed = seed_of(self.study.seed, point.rate, point.run)
        write_prompts(
            prompts,
            point.n_requests,
            workload.input_tokens,
            self.vocab_size,
            seed,
            workload.prompts,
        )
        result = run_load(
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
            server_environment({}),
            _LOAD_SECONDS + point.seconds_of_arrivals +
            _REQUEST_SECONDS * point.n_requests,
            workload.greedy,
        )
        # They can be written again, and are large.
        prompts.unlink()
        return result

    def _metrics(self, path: Path) -> str:
        """What the server counts once it has counted all answers."""
        until = monotonic() + _IDLE_SECONDS
        while not is_idle(text := self.running.metrics()):
            if monotonic() > until:
                raise HarnessError(
                    'server',
                    self.running.url,
                    'it works on requests though all are answered.',
                    'keep other clients from the server.',
                )
            sleep(0.1)
        path.write_text(text)
        return text

    def _routing(self) -> Optional[ObservedRouting]:
        """What the engine routes, checked; None: the model is dense."""
        if self.server.is_dense:
            return None
        observed = observe(self.folder)
        check_routing(
            observed,
            self.n_layers,
            self.server.experts,
            self.server.top_k,
        )
        return observed

    def _expert_load(
        self,
        before: Optional[ObservedRouting],
        n: int,
    ) -> Optional[dict[str, Any]]:
        """Shares of experts that were drawn; None: nothing is simulated."""
        if before is None or self.server.config['routing'] is None:
            return None
        workload = self.server.size.workload
        # A request's last token is not read again.
        length = workload.input_tokens + workload.output_tokens - 1
        after = observe(self.folder)
        return {
            'shares': drawn_shares(self.folder, before, after, n * length),
        }

    def _engine(self, metrics: str) -> dict[str, Any]:
        facts = facts_of_log(self.running.log.read_text(errors='replace'))
        is_dense = self.server.is_dense
        return {
            'version': facts.version,
            'kv_cache_tokens': kv_cache_tokens(metrics)
            or facts.kv_cache_tokens,
            # A CPU's engine doesn't say.
            'weight_bytes': facts.weight_bytes or weight_bytes_of(self.server),
            'moe_backend': facts.moe_backend,
            'moe_kernel': facts.moe_kernel,
            'tuned_config': facts.tuned_config,
            # As the plugin recorded, or there would be no point.
            'top_k_checked': None if is_dense else self.server.top_k,
            'start_seconds': self.start_seconds,
            'cpu_cores': facts.cpu_cores,
            'devices': self.devices,
        }
