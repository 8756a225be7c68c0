"""What a study serves: servers, each with its id.

An id hashes a whole configuration: whatever would change what is measured
changes it, so that a result is never taken for another's.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Union

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
from benchmarks.inference.study.settings import Routing, Shape, Size, Study

__all__ = [
    'ServerSpec',
    'digest',
    'id_of',
    'list_servers',
    'model_bytes_of',
    'routing_of',
    'weight_bytes_of',
]


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
        name: Among the size's ``others``; None: its dense model or mixture.
    """

    size: Size
    architecture: str
    experts: int
    top_k: int
    variant: str
    config: Mapping[str, Any] = field(hash=False)
    prompts: Optional[str] = None
    name: Optional[str] = None

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
    def model(self) -> Union[Shape, tuple[int, ...], Path]:
        """What the size says of the model."""
        if self.name is not None:
            return self.size.others[self.name]
        return self.size.dense if self.is_dense else self.size.moe

    @property
    def model_label(self) -> str:
        """In words, such as ``dense`` or ``healed moe E=8 K=2``."""
        model = 'dense' if self.is_dense else \
            f'moe E={self.experts} K={self.top_k}'
        return model if self.name is None else f'{self.name} {model}'

    @property
    def label(self) -> str:
        """In words, such as ``430m moe E=8 K=2 base``."""
        return f'{self.size.name} {self.model_label} {self.variant}'


def list_servers(study: Study) -> tuple[ServerSpec, ...]:
    """All servers of a study, by size, variant and architecture.

    Those of a size's ``others`` come after its own, without variants.

    Raises:
        HarnessError: There is no such variant, a folder of real weights has
            no config.json of a mixture with K experts, or recorded routing is
            not of a model's shape.
    """
    return tuple(
        server for size in study.sizes for server in (
            *(
                server for variant in study.variants
                for server in _servers(study, size, variant)
            ),
            *(
                server for name in size.others
                for server in _servers_of_other(study, size, name)
            ),
        )
    )


def _servers(study: Study, size: Size, variant: str) -> Iterator[ServerSpec]:
    changes = variants.describe_variant(variant)
    experts_only = variants.VARIANTS[variant].experts_only
    for architecture, experts, top_k in _models(study, size):
        is_dense = architecture == 'dense'
        if is_dense and experts_only:
            continue
        yield _server(
            study,
            size,
            (architecture, experts, top_k),
            variant,
            {
                'changes': changes,
                'model': _model(size, experts, top_k),
                'parent': None if is_dense else _parent(size),
            },
        )


def _servers_of_other(
    study: Study,
    size: Size,
    name: str,
) -> Iterator[ServerSpec]:
    folder = size.others[name]
    key = f'sizes.{size.name}.others.{name}.folder'
    experts = _experts_in(folder, key, dense=True)
    models = [('dense', 1, 1)] if experts == 1 else [('moe', experts, top_k)
                                                     for top_k in study.top_k
                                                     if top_k <= experts]
    if not models:
        raise HarnessError(
            'top_k',
            list(study.top_k),
            f'{folder} has {experts} experts.',
            'lower one of it, or name another folder.',
        )
    described = _described(folder)
    for model in models:
        yield _server(
            study,
            size,
            model,
            'base',
            {
                'name': name,
                'changes': variants.describe_variant('base'),
                'model': described,
                'parent': None,
            },
        )


def _server(
    study: Study,
    size: Size,
    model: tuple[str, int, int],
    variant: str,
    config: Mapping[str, Any],
) -> ServerSpec:
    """A server of a model, as architecture, experts and top-k."""
    architecture, experts, top_k = model
    is_dense = architecture == 'dense'
    whole = {
        'study': study.name,
        'seed': study.seed,
        'size': size.name,
        'architecture': architecture,
        'experts': experts,
        'top_k': top_k,
        'variant': variant,
        'load_format': study.load_format,
        'routing': None if is_dense else _routing(study, size, experts),
        'engine': asdict(size.engine),
        **config,
    }
    prompts = size.workload.prompts and digest(size.workload.prompts)
    name = config.get('name')
    return ServerSpec(
        size,
        architecture,
        experts,
        top_k,
        variant,
        whole,
        prompts,
        name,
    )


def _models(study: Study, size: Size) -> Iterator[tuple[str, int, int]]:
    """Architecture, experts, top-k: each K with each E that has as many."""
    yield 'dense', 1, 1
    numbers = size.moe
    if isinstance(numbers, Path):
        numbers = (_experts_in(numbers, 'moe.folder'), )
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


def _experts_in(folder: Path, key: str, dense: bool = False) -> int:
    """Experts that a folder's config.json says.

    Args:
        folder: Of real weights.
        key: Of the study, for errors.
        dense: Whether it may be a dense model, which has 1.
    """
    path = folder / 'config.json'
    try:
        config = json.loads(path.read_text())
        # Mixtral's key, else Qwen3-MoE's.
        names = [n for n in ('num_local_experts', 'num_experts') if n in config]
        if dense and not names:
            return 1
        return int(config[names[0] if names else 'num_experts'])
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = 'a model' if dense else 'a mixture'
        raise HarnessError(
            key,
            str(folder),
            f'it has no config.json of {what} ({error!r}).',
            'name a folder that foundry-upcycle export-hf wrote.',
        ) from error


def _model(size: Size, experts: int, top_k: int) -> dict[str, Any]:
    """config.json of dummy weights, or what identifies real ones."""
    source = size.dense if experts == 1 else size.moe
    if isinstance(source, Path):
        return _described(source)
    assert isinstance(size.dense, Shape)  # for pyright: as config.py checks
    return config_of(asdict(size.dense), experts, top_k, size.engine.dtype)


def _described(folder: Path) -> dict[str, Any]:
    try:
        return describe_model_folder(folder)
    except HarnessError:
        # Starting its server says what is missing.
        return {'folder': str(folder), 'weight_bytes': None}


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
        words['sha256'] = digest(file)
    return words


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def model_bytes_of(server: ServerSpec) -> Optional[int]:
    """Of the weights in the engine's dtype; None: real ones are missing."""
    size = server.size
    dtype = size.engine.dtype
    if isinstance(size.dense, Shape):
        return weight_bytes(asdict(size.dense), server.experts, dtype)
    assert isinstance(server.model, Path)  # for pyright: as config.py checks
    return _folder_bytes(server.model, size)


def _folder_bytes(folder: Path, size: Size) -> Optional[int]:
    try:
        return count_elements(folder) * BYTES_PER_WEIGHT[size.engine.dtype]
    except HarnessError:
        return None


def weight_bytes_of(server: ServerSpec) -> Optional[int]:
    """Bytes of weights on one device, as matrices are split over devices.

    Returns:
        None where real ones are missing, or a variant quantises them.
    """
    variant = variants.VARIANTS[server.variant]
    weights = [model_bytes_of(server)]
    if variant.draft and isinstance(server.size.dense, Path):
        weights.append(_folder_bytes(server.size.dense, server.size))
    if None in weights or variant.quantises:
        return None
    return sum(filter(None, weights)) // server.engine['tensor_parallel_size']
