"""What a study YAML says, checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.quality import read_quality
from benchmarks.inference.study.section import (
    REQUIRED,
    Changed,
    Section,
    check_name,
    load_yaml,
)
from benchmarks.inference.study.settings import (
    Engine,
    Rates,
    Routing,
    Shape,
    Size,
    Study,
    Workload,
)

__all__ = ['read_study']

_DTYPES = ('bfloat16', 'float16', 'float32')
_LOAD_FORMATS = ('dummy', 'real')
_ROUTING_KINDS = ('uniform', 'zipf', 'recorded')


def read_study(path: Union[str, Path]) -> Study:
    """Reads a study YAML; paths in it are relative to the working folder.

    Raises:
        HarnessError: It can't be read, lacks a key, or has one that is unknown
            or can't be used.
    """
    section = Section('', load_yaml(Path(path)))
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


def _routing(section: Section, load_format: str) -> Optional[Routing]:
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
        file = _file(part, 'file', REQUIRED, 'holds {"shares": [[...], ...]}')
        routing = replace(routing, file=file)
    part.refuse_others()
    return routing


def _sizes(section: Section, load_format: str) -> tuple[Size, ...]:
    sizes = section.take('sizes', dict)
    read = []
    for name, content in sizes.items():
        check_name('sizes', name)
        size = Section(f'sizes.{name}', content)
        workload, rates, engine = (
            Changed(section.inside(key), size.inside(key))
            for key in ('workload', 'rates', 'engine')
        )
        dense, moe = size.inside('dense'), size.inside('moe')
        quality = Changed(section.inside('quality'), size.inside('quality'))
        is_real = load_format == 'real'
        read.append(
            Size(
                name=name,
                dense=_folder(dense) if is_real else _shape(dense),
                moe=_folder(moe) if is_real else _experts(moe),
                workload=_workload(workload),
                rates=_rates(rates),
                engine=_engine(engine),
                others=_others(size.inside('others'), is_real),
                quality=read_quality(quality, is_real),
            ),
        )
        size.refuse_others()
        _check_length(read[-1], engine)
        _check_greedy(read[-1], workload)
        _check_unbounded(read[-1], engine)
        _check_greedy_prompts(read[-1], quality)
    return tuple(read)


def _others(section: Section, is_real: bool) -> dict[str, Path]:
    if section.content and not is_real:
        raise HarnessError(
            section.prefix,
            section.content,
            'dummy weights are of the shape of dense.',
            'remove it, or set load_format: real.',
        )
    others = {}
    for name in section.content:
        check_name(section.prefix, name)
        if name in ('dense', 'moe'):
            raise HarnessError(
                section.prefix,
                name,
                'a size has one of that name beside it.',
                'give it another name.',
            )
        others[name] = _folder(section.inside(name))
    section.refuse_others()
    return others


def _check_length(size: Size, engine: Section) -> None:
    length = size.workload.input_tokens + size.workload.output_tokens
    if length > size.engine.max_model_len:
        raise HarnessError(
            engine.key('max_model_len'),
            size.engine.max_model_len,
            f'a request has {length} tokens with its answer.',
            'raise it, or lower workload.input_tokens or output_tokens.',
        )


def _check_greedy(size: Size, workload: Section) -> None:
    if size.workload.greedy and isinstance(size.dense, Shape):
        raise HarnessError(
            workload.key('greedy'),
            True,
            'the likeliest tokens of dummy weights are a few, again and again.',
            'remove it, or set load_format: real.',
        )


def _check_greedy_prompts(size: Size, quality: Section) -> None:
    if size.quality is None:
        return
    greedy = size.quality.greedy
    length = greedy.input_tokens + greedy.output_tokens
    if length > size.engine.max_model_len:
        raise HarnessError(
            quality.key('greedy'),
            length,
            'prompts and answers are longer than '
            f'engine.max_model_len={size.engine.max_model_len}.',
            'lower greedy.input_tokens or greedy.output_tokens.',
        )


def _check_unbounded(size: Size, engine: Section) -> None:
    if size.rates.unbounded and size.engine.max_num_seqs is None:
        raise HarnessError(
            engine.key('max_num_seqs'),
            None,
            'the unbounded rate is measured in whole batches of so many.',
            'set it, or set rates.unbounded: false.',
        )


def _file(
    section: Section,
    key: str,
    default: Any,
    what: str,
) -> Optional[Path]:
    """A file that is there; of what it ``what``."""
    name = section.take(key, str, default)
    if name is None:
        return None
    if not Path(name).is_file():
        raise HarnessError(
            section.key(key),
            name,
            'there is no such file.',
            f'name one that {what}, relative to the working folder.',
        )
    return Path(name)


def _folder(section: Section) -> Path:
    folder = Path(section.take('folder', str))
    section.refuse_others()
    return folder


def _experts(section: Section) -> tuple[int, ...]:
    if isinstance(section.content.get('experts'), int):
        section.content = {
            **section.content,
            'experts': [section.content['experts']],
        }
    experts = section.distinct('experts', int)
    section.refuse_others()
    return experts


def _shape(section: Section) -> Shape:
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


def _workload(section: Section) -> Workload:
    workload = Workload(
        input_tokens=section.number('input_tokens', int, 1),
        output_tokens=section.number('output_tokens', int, 1),
        requests=section.number('requests', int, 2),
        warmup_requests=section.number('warmup_requests', int, 1),
        seconds=section.number('seconds', float, 0, 0.0),
        prompts=_file(section, 'prompts', None, 'tokenize_prompts.py wrote'),
        greedy=section.take('greedy', bool, False),
    )
    section.refuse_others()
    return workload


def _rates(section: Section) -> Rates:
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


def _engine(section: Section) -> Engine:
    engine = Engine(
        dtype=section.choice('dtype', _DTYPES),
        max_model_len=section.number('max_model_len', int, 2),
        enforce_eager=section.take('enforce_eager', bool),
        tensor_parallel_size=section.number('tensor_parallel_size', int, 1, 1),
        kv_cache_gib=section.number('kv_cache_gib', float, 0, None),
        max_num_seqs=section.number('max_num_seqs', int, 1, None),
        max_num_batched_tokens=section.number(
            'max_num_batched_tokens',
            int,
            1,
            None,
        ),
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
