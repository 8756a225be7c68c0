"""What a study YAML says, checked."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

import yaml

from benchmarks.inference.errors import HarnessError

__all__ = [
    'Engine',
    'Rates',
    'Routing',
    'Shape',
    'Size',
    'Study',
    'Workload',
    'read_study',
]

# What names sizes, and so tables and folders.
_NAME = re.compile(r'\w[\w.-]*')
_DTYPES = ('bfloat16', 'float16', 'float32')
_LOAD_FORMATS = ('dummy', 'real')
_ROUTING_KINDS = ('uniform', 'zipf', 'recorded')
_REQUIRED = object()


@dataclass(frozen=True)
class Shape:
    """A dense decoder, as Mistral has it: SwiGLU, RMSNorm, untied embeddings.

    Args:
        d_model: Width.
        ffn_hidden_size: Hidden width of the GLU, and of each expert.
        n_layers: Blocks.
        n_heads: Heads of queries.
        kv_n_heads: Heads of keys and values.
        vocab_size: Rows of the embedding.
    """

    d_model: int
    ffn_hidden_size: int
    n_layers: int
    n_heads: int
    kv_n_heads: int
    vocab_size: int


@dataclass(frozen=True)
class Workload:
    """What one point is asked.

    Args:
        input_tokens: Tokens of each prompt, exactly.
        output_tokens: Tokens of each answer, exactly.
        requests: So many at the least.
        warmup_requests: Sent before, and not measured.
        seconds: Requests arrive for so long at the least, so that faster
            arrivals are more requests; 0: all rates have ``requests``.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    warmup_requests: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Arrival rates: ``start``, ``start + step``, ... up to ``stop``.

    Args:
        step: Requests/s between two rates.
        start: The lowest, requests/s.
        stop: None is higher.
        unbounded: Whether there is also a point whose requests all come at
            once.
        fine: How many rates of the grid are measured on each side of the
            knee.
    """

    step: float
    start: float
    stop: float
    unbounded: bool = True
    fine: int = 3

    @property
    def grid(self) -> tuple[float, ...]:
        """All rates, ascending; rounded, as 0.1 + 0.2 isn't 0.3."""
        n = math.floor((self.stop - self.start) / self.step + 1e-9) + 1
        return tuple(round(self.start + k * self.step, 9) for k in range(n))


@dataclass(frozen=True)
class Engine:
    """How vLLM is started; None: as it chooses.

    Args:
        dtype: Of weights and activations.
        max_model_len: Tokens of the longest sequence.
        enforce_eager: Whether nothing is compiled.
        tensor_parallel_size: Devices.
        kv_cache_gib: Memory for keys and values, GiB.
        max_num_seqs: Requests in a batch, at the most.
    """

    dtype: str
    max_model_len: int
    enforce_eager: bool
    tensor_parallel_size: int = 1
    kv_cache_gib: Optional[float] = None
    max_num_seqs: Optional[int] = None


@dataclass(frozen=True)
class Routing:
    """How tokens find their experts where weights are dummies.

    Args:
        kind: ``uniform``, ``zipf`` or ``recorded``.
        exponent: Of zipf: expert e gets a share of (e + 1)^-exponent.
        file: Of recorded: JSON ``{"shares": [[a share an expert] a layer]}``.
    """

    kind: str
    exponent: Optional[float] = None
    file: Optional[Path] = None


@dataclass(frozen=True)
class Size:
    """A dense model and its mixtures of experts.

    Args:
        name: Its name in tables.
        dense: A shape, or the folder of real weights.
        moe: Numbers of experts in the dense model's shape, or the folder of
            real weights.
        workload: The study's, with what this size changes.
        rates: Likewise.
        engine: Likewise.
    """

    name: str
    dense: Union[Shape, Path]
    moe: Union[tuple[int, ...], Path]
    workload: Workload
    rates: Rates
    engine: Engine


@dataclass(frozen=True)
class Study:
    """A comparison of dense models and mixtures of experts as they are served.

    Args:
        name: Its name in the report.
        folder: Where its points and its report go.
        seed: Of prompts, arrivals and simulated routing.
        runs: How often each rate is measured, each time with other prompts.
        load_format: ``dummy`` or ``real`` weights.
        routing: Of dummy weights; None: the model's routers decide.
        top_k: Experts a token, of the mixtures.
        variants: Names of overlays of the engine, see variants.py.
        sizes: The models.
    """

    name: str
    folder: Path
    seed: int
    runs: int
    load_format: str
    routing: Optional[Routing]
    top_k: tuple[int, ...]
    variants: tuple[str, ...]
    sizes: tuple[Size, ...]


def read_study(path: Union[str, Path]) -> Study:
    """Reads a study YAML; paths in it are relative to the working folder.

    Raises:
        HarnessError: It can't be read, lacks a key, or has one that is unknown
            or can't be used.
    """
    section = _Section('', _load(Path(path)))
    load_format = section.choice('load_format', _LOAD_FORMATS)
    study = Study(
        name=section.name('name'),
        folder=Path(section.take('folder', str)),
        seed=section.number('seed', int, 0),
        runs=section.number('runs', int, 1),
        load_format=load_format,
        routing=_routing(section, load_format),
        top_k=section.distinct('top_k', int),
        variants=section.distinct('variants', str),
        sizes=_sizes(section, load_format),
    )
    section.refuse_others()
    _check_top_k(study)
    return study


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f'{key!r} stands there twice',
                    node.start_mark,
                )
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    fix = 'name a study YAML, such as benchmarks/inference/studies/smoke.yaml.'
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = ' '.join(f"it can't be read ({error}).".split())
        raise HarnessError('study', str(path), problem, fix) from error
    if not isinstance(content, dict):
        problem = 'it holds no mapping of keys to values.'
        raise HarnessError('study', str(path), problem, fix)
    return content


class _Section:
    """A mapping of a YAML; knows which keys were asked for."""

    def __init__(self, prefix: str, content: Any):
        if not isinstance(content, dict):
            raise HarnessError(
                prefix,
                content,
                'it is no mapping of keys to values.',
                'write its keys indented below it.',
            )
        self.prefix = prefix
        self.content = content
        self.known: set[str] = set()

    def key(self, key: str) -> str:
        return f'{self.prefix}.{key}' if self.prefix else key

    def inside(self, key: str) -> '_Section':
        """The mapping under a key; empty where there is none."""
        return _Section(self.key(key), self.take(key, dict, {}))

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """A value of a type; a bool is a number only to Python."""
        self.known.add(key)
        value = self.content.get(key)
        if value is None and default is not _REQUIRED:
            return default
        is_bool = isinstance(value, bool)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or is_bool != (kind is bool) or value in ('', [], {}):
            raise HarnessError(
                self.key(key),
                value,
                'it is missing, empty or of another type.',
                f'set it to a {kind.__name__}.',
            )
        return value

    def number(
        self,
        key: str,
        kind: type,
        minimum: float,
        default: Any = _REQUIRED,
    ) -> Any:
        """A finite number; a float is above its minimum, an int may be it."""
        value = self.take(key, kind, default)
        if value is default:
            return value
        above = value > minimum if kind is float else value >= minimum
        if not above or not math.isfinite(value):
            words = 'above' if kind is float else 'of at least'
            raise HarnessError(
                self.key(key),
                value,
                'it is out of range.',
                f'set it to a number {words} {minimum}.',
            )
        return kind(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.take(key, str)
        if value not in choices:
            raise HarnessError(
                self.key(key),
                value,
                'there is no such choice.',
                f"set it to {' or '.join(choices)}.",
            )
        return value

    def name(self, key: str) -> str:
        value = self.take(key, str)
        _check_name(self.key(key), value)
        return value

    def distinct(self, key: str, kind: type) -> tuple[Any, ...]:
        """A list of whole numbers from 1 on, or of names; each once."""
        values = self.take(key, list)
        for value in values:
            if kind is str:
                _check_name(self.key(key), value)
            elif not isinstance(value, int) or isinstance(value,
                                                          bool) or value < 1:
                raise HarnessError(
                    self.key(key),
                    value,
                    'it is no whole number from 1 on.',
                    'write a list such as [1, 2].',
                )
            if values.count(value) > 1:
                raise HarnessError(
                    self.key(key),
                    value,
                    'it stands there twice.',
                    'write it once.',
                )
        return tuple(values)

    def refuse_others(self) -> None:
        for key, value in self.content.items():
            if key not in self.known:
                raise HarnessError(
                    self.key(str(key)),
                    value,
                    'there is no such setting.',
                    f"remove it; there are {', '.join(sorted(self.known))}.",
                )


class _Changed(_Section):
    """A mapping of the study with what a size sets in it."""

    def __init__(self, base: _Section, changes: _Section):
        super().__init__(base.prefix, {**base.content, **changes.content})
        self.changes = changes

    def key(self, key: str) -> str:
        if key in self.changes.content:
            return self.changes.key(key)
        return super().key(key)


def _check_name(key: str, name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise HarnessError(
            key,
            name,
            'it can not name anything.',
            'use letters, digits, _, - and ., and put a number in quotes.',
        )


def _routing(section: _Section, load_format: str) -> Optional[Routing]:
    part = section.inside('routing')
    if load_format == 'real':
        if part.content:
            raise HarnessError(
                'routing',
                part.content,
                'real weights have routers of their own.',
                'remove it, or set load_format: dummy.',
            )
        return None
    kind = part.choice('kind', _ROUTING_KINDS)
    routing = Routing(kind)
    if kind == 'zipf':
        exponent = part.number('exponent', float, 0)
        routing = replace(routing, exponent=exponent)
    elif kind == 'recorded':
        file = Path(part.take('file', str))
        routing = replace(routing, file=file)
        if not file.is_file():
            raise HarnessError(
                'routing.file',
                str(file),
                'there is no such file.',
                'name a JSON {"shares": [[...], ...]}, relative to the '
                'working folder.',
            )
    part.refuse_others()
    return routing


def _sizes(section: _Section, load_format: str) -> tuple[Size, ...]:
    sizes = section.take('sizes', dict)
    read = []
    for name, content in sizes.items():
        _check_name('sizes', name)
        size = _Section(f'sizes.{name}', content)
        workload, rates, engine = (
            _Changed(section.inside(key), size.inside(key))
            for key in ('workload', 'rates', 'engine')
        )
        dense, moe = size.inside('dense'), size.inside('moe')
        is_real = load_format == 'real'
        read.append(
            Size(
                name=name,
                dense=_folder(dense) if is_real else _shape(dense),
                moe=_folder(moe) if is_real else _experts(moe),
                workload=_workload(workload),
                rates=_rates(rates),
                engine=_engine(engine),
            ),
        )
        size.refuse_others()
        _check_length(read[-1], engine)
    return tuple(read)


def _check_length(size: Size, engine: _Section) -> None:
    length = size.workload.input_tokens + size.workload.output_tokens
    if length > size.engine.max_model_len:
        raise HarnessError(
            engine.key('max_model_len'),
            size.engine.max_model_len,
            f'a request has {length} tokens with its answer.',
            'raise it, or lower workload.input_tokens or output_tokens.',
        )


def _folder(section: _Section) -> Path:
    folder = Path(section.take('folder', str))
    section.refuse_others()
    return folder


def _experts(section: _Section) -> tuple[int, ...]:
    if isinstance(section.content.get('experts'), int):
        section.content = {
            **section.content,
            'experts': [section.content['experts']],
        }
    experts = section.distinct('experts', int)
    section.refuse_others()
    return experts


def _shape(section: _Section) -> Shape:
    keys = Shape.__dataclass_fields__
    shape = Shape(**{key: section.number(key, int, 1) for key in keys})
    section.refuse_others()
    for key, value, of, whole in (
        ('n_heads', shape.n_heads, 'd_model', shape.d_model),
        ('kv_n_heads', shape.kv_n_heads, 'n_heads', shape.n_heads),
    ):
        if whole % value:
            raise HarnessError(
                section.key(key),
                value,
                f'it does not divide {of}={whole}.',
                f'set it to a divisor of {of}.',
            )
    return shape


def _workload(section: _Section) -> Workload:
    workload = Workload(
        input_tokens=section.number('input_tokens', int, 1),
        output_tokens=section.number('output_tokens', int, 1),
        requests=section.number('requests', int, 2),
        warmup_requests=section.number('warmup_requests', int, 1),
        seconds=section.number('seconds', float, 0, 0.0),
    )
    section.refuse_others()
    return workload


def _rates(section: _Section) -> Rates:
    rates = Rates(
        step=section.number('step', float, 0),
        start=section.number('start', float, 0),
        stop=section.number('stop', float, 0),
        unbounded=section.take('unbounded', bool, True),
        fine=section.number('fine', int, 1, 3),
    )
    section.refuse_others()
    if rates.stop < rates.start:
        raise HarnessError(
            section.key('stop'),
            rates.stop,
            f'it is below start={rates.start}.',
            'set it to the highest rate, requests/s.',
        )
    return rates


def _engine(section: _Section) -> Engine:
    engine = Engine(
        dtype=section.choice('dtype', _DTYPES),
        max_model_len=section.number('max_model_len', int, 2),
        enforce_eager=section.take('enforce_eager', bool),
        tensor_parallel_size=section.number('tensor_parallel_size', int, 1, 1),
        kv_cache_gib=section.number('kv_cache_gib', float, 0, None),
        max_num_seqs=section.number('max_num_seqs', int, 1, None),
    )
    section.refuse_others()
    return engine


def _check_top_k(study: Study) -> None:
    for size in study.sizes:
        experts = size.moe if isinstance(size.moe, tuple) else ()
        for k in study.top_k:
            if experts and k > max(experts):
                raise HarnessError(
                    'top_k',
                    k,
                    f'sizes.{size.name} has {max(experts)} experts at the '
                    'most.',
                    'lower it, or add experts.',
                )
