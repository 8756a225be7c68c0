"""What a study measures: servers, and their points, each with its id.

A point's id hashes its whole configuration: whatever would change what is
measured changes it, so that a result is never taken for another's.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

from benchmarks.inference.engine import variants
from benchmarks.inference.engine.models import (
    BYTES_PER_WEIGHT,
    config_of,
    count_elements,
    describe_model_folder,
    weight_bytes,
)
from benchmarks.inference.engine.routing import check_recorded
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.config import Routing, Shape, Size, Study

__all__ = [
    'Point',
    'ServerSpec',
    'id_of',
    'list_servers',
    'model_bytes_of',
    'points_of',
    'rounds',
    'routing_of',
    'weight_bytes_of',
]

# Of an unbounded rate, at the least.
_BATCHES = 3


def id_of(config: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON.

    The order of keys doesn't matter.
    """
    canonical = json.dumps(config, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ServerSpec:
    """What one server serves.

    Args:
        size: The model's, with its workload, rates and engine.
        architecture: ``dense`` or ``moe``.
        experts: In a block; 1 of a dense model.
        top_k: Experts a token; 1 of a dense model.
        variant: Name of the overlay.
        config: All that it is started with.
        prompts: SHA-256 of the file of its prompts; None: random tokens.
    """

    size: Size
    architecture: str
    experts: int
    top_k: int
    variant: str
    config: Mapping[str, Any] = field(hash=False)
    prompts: Optional[str] = None

    @cached_property
    def id(self) -> str:
        return id_of(self.config)

    @property
    def is_dense(self) -> bool:
        return self.architecture == 'dense'

    @cached_property
    def engine(self) -> Mapping[str, Any]:
        """The study's engine section, as the variant changes it."""
        return variants.engine_of(self.variant, asdict(self.size.engine))

    @property
    def label(self) -> str:
        """In words, such as ``430m moe E=8 K=2 base``."""
        model = 'dense' if self.is_dense else \
            f'moe E={self.experts} K={self.top_k}'
        return f'{self.size.name} {model} {self.variant}'


@dataclass(frozen=True)
class Point:
    """One rate of one server, in one run.

    Args:
        server: What serves.
        rate: Requests/s; None: all at once.
        run: From 0.
    """

    server: ServerSpec
    rate: Optional[float]
    run: int

    @property
    def n_requests(self) -> int:
        """Requests that are measured.

        The workload's ``requests``, or as many as arrive in its ``seconds``
        where that is more. Unbounded, ``requests`` in whole batches, and three
        of them: requests of one length that come at once start and end
        together, the first batch starts on an empty server, and a last one that
        is not full has another mix of prompts and answers.
        """
        workload = self.server.size.workload
        if self.rate is None:
            batch = self.server.engine['max_num_seqs']
            n_batches = math.ceil(workload.requests / batch)
            return max(n_batches, _BATCHES) * batch
        # Not one more for the sake of 120.00000000000001.
        arriving = math.ceil(self.rate * workload.seconds - 1e-6)
        return max(workload.requests, arriving)

    @property
    def seconds_of_arrivals(self) -> float:
        """For how long requests arrive; 0 where all come at once."""
        return 0.0 if self.rate is None else self.n_requests / self.rate

    @property
    def config(self) -> dict[str, Any]:
        """All that it is measured with."""
        workload = self.server.size.workload
        return {
            **self.server.config,
            'rate': self.rate,
            'run': self.run,
            'workload': {
                'input_tokens': workload.input_tokens,
                'output_tokens': workload.output_tokens,
                'requests': self.n_requests,
                'warmup_requests': workload.warmup_requests,
                'prompts': self.server.prompts,
                # Where it is not set, ids are as before there was such a key.
                **({
                    'greedy': True
                } if workload.greedy else {}),
            },
        }

    @cached_property
    def id(self) -> str:
        return id_of(self.config)

    @property
    def label(self) -> str:
        """In words, such as ``430m dense base 0.4/s run 1``."""
        rate = 'unbounded' if self.rate is None else f'{self.rate:g}/s'
        return f'{self.server.label} {rate} run {self.run + 1}'


def list_servers(study: Study) -> tuple[ServerSpec, ...]:
    """All servers of a study, by size, variant and architecture.

    Raises:
        HarnessError: There is no such variant, a folder of real weights has
            no config.json of a mixture with K experts, or recorded routing is
            not of a model's shape.
    """
    return tuple(
        server for size in study.sizes for variant in study.variants
        for server in _servers(study, size, variant)
    )


def _servers(study: Study, size: Size, variant: str) -> Iterator[ServerSpec]:
    changes = variants.describe_variant(variant)
    prompts = size.workload.prompts and _digest(size.workload.prompts)
    experts_only = variants.VARIANTS[variant].experts_only
    for architecture, experts, top_k in _models(study, size):
        is_dense = architecture == 'dense'
        if is_dense and experts_only:
            continue
        config = {
            'study': study.name,
            'seed': study.seed,
            'size': size.name,
            'architecture': architecture,
            'experts': experts,
            'top_k': top_k,
            'variant': variant,
            'changes': changes,
            'load_format': study.load_format,
            'routing': None if is_dense else _routing(study, size, experts),
            'engine': asdict(size.engine),
            'model': _model(size, experts, top_k),
            'parent': None if is_dense else _parent(size),
        }
        yield ServerSpec(
            size,
            architecture,
            experts,
            top_k,
            variant,
            config,
            prompts,
        )


def _models(study: Study, size: Size) -> Iterator[tuple[str, int, int]]:
    """Architecture, experts, top-k: each K with each E that has as many."""
    yield 'dense', 1, 1
    numbers = size.moe
    if isinstance(numbers, Path):
        numbers = (_experts_in(numbers), )
        if max(study.top_k) > numbers[0]:
            raise HarnessError(
                'top_k',
                max(study.top_k),
                f'{size.moe} has {numbers[0]} experts.',
                'lower it, or name another folder.',
            )
    for experts in numbers:
        for top_k in study.top_k:
            if top_k <= experts:
                yield 'moe', experts, top_k


def _experts_in(folder: Path) -> int:
    path = folder / 'config.json'
    try:
        config = json.loads(path.read_text())
        # Mixtral's key, else Qwen3-MoE's.
        key = 'num_local_experts'
        return int(config[key if key in config else 'num_experts'])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HarnessError(
            'moe.folder',
            str(folder),
            f'it has no config.json of a mixture ({error!r}).',
            'name a folder that foundry-upcycle export-hf wrote.',
        ) from error


def _model(size: Size, experts: int, top_k: int) -> dict[str, Any]:
    """config.json of dummy weights, or what identifies real ones."""
    source = size.dense if experts == 1 else size.moe
    if isinstance(source, Path):
        try:
            return describe_model_folder(source)
        except HarnessError:
            # Starting its server says what is missing.
            return {'folder': str(source), 'weight_bytes': None}
    assert isinstance(size.dense, Shape)  # for pyright: as config.py checks
    return config_of(asdict(size.dense), experts, top_k, size.engine.dtype)


def _parent(size: Size) -> Optional[dict[str, Any]]:
    """Real weights of the dense model, which are the draft of some variants."""
    return _model(size, 1, 1) if isinstance(size.dense, Path) else None


def routing_of(routing: Routing) -> dict[str, Any]:
    """In the words of routing.py."""
    words: dict[str, Any] = {'kind': routing.kind}
    if routing.exponent is not None:
        words['exponent'] = routing.exponent
    if routing.file is not None:
        words['file'] = str(routing.file)
    return words


def _routing(
    study: Study,
    size: Size,
    experts: int,
) -> Optional[dict[str, Any]]:
    """With what identifies recorded shares, which are of the model's shape."""
    if study.routing is None:
        return None
    words = routing_of(study.routing)
    file = study.routing.file
    if file is not None:
        assert isinstance(size.dense, Shape)  # for pyright: see config.py
        check_recorded(file, size.dense.n_layers, experts)
        words['sha256'] = _digest(file)
    return words


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def model_bytes_of(server: ServerSpec) -> Optional[int]:
    """Of the weights in the engine's dtype; None: real ones are missing."""
    size = server.size
    dtype = size.engine.dtype
    if isinstance(size.dense, Shape):
        return weight_bytes(asdict(size.dense), server.experts, dtype)
    source = size.dense if server.is_dense else size.moe
    assert isinstance(source, Path)  # for pyright: as config.py checks
    try:
        return count_elements(source) * BYTES_PER_WEIGHT[dtype]
    except HarnessError:
        return None


def weight_bytes_of(server: ServerSpec) -> Optional[int]:
    """Bytes of weights on one device, as matrices are split over devices.

    Returns:
        None where real ones are missing, or a variant holds others.
    """
    total = model_bytes_of(server)
    if total is None or variants.VARIANTS[server.variant].other_weights:
        return None
    return total // server.engine['tensor_parallel_size']


def points_of(
    server: ServerSpec,
    rates: Sequence[Optional[float]],
    runs: Sequence[int],
) -> tuple[Point, ...]:
    """Points of a server, run by run in the order of rates."""
    return tuple(Point(server, rate, run) for run in runs for rate in rates)


def rounds(
    study: Study,
    servers: Sequence[ServerSpec],
) -> Iterator[tuple[ServerSpec, int]]:
    """Servers and runs in the order of measuring.

    Within a size, run by run and variant by variant, dense and mixtures one
    after another, and backwards in every second run: what changes on the
    machine over time meets all of them alike.
    """
    for size in study.sizes:
        of_size = [
            server for server in servers if server.size.name == size.name
        ]
        for run in range(study.runs):
            for server in of_size if run % 2 == 0 else reversed(of_size):
                yield server, run
