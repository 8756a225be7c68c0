"""What asks each server of a study for quality, with its id.

As of a point, the id hashes the whole configuration, the texts included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Mapping

from benchmarks.inference.engine.lm_eval import check_lm_eval
from benchmarks.inference.engine.models import config_number, read_config
from benchmarks.inference.engine.texts import beginnings, read_texts
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.point_format import QUALITY_FORMAT
from benchmarks.inference.study.quality import Named, Quality
from benchmarks.inference.study.servers import ServerSpec, digest, id_of

__all__ = ['Probe', 'list_probes']


@dataclass(frozen=True)
class Probe:
    """The texts, answers and tasks of one server.

    Args:
        server: What answers.
        quality: What it is asked.
        reference: Of which model others are compared with, in a report's
            words: name, experts, top-k.
        baseline: Of which model gains are counted from, likewise.

    Attributes: as of ``Point``.
    """

    format: ClassVar[str] = QUALITY_FORMAT
    folder: ClassVar[str] = 'quality'
    file: ClassVar[str] = 'quality.json'
    seconds_of_arrivals: ClassVar[float] = 0.0

    server: ServerSpec
    quality: Quality
    reference: tuple[Any, ...]
    baseline: tuple[Any, ...]

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that it is asked with."""
        quality, tasks = self.quality, self.quality.tasks
        return {
            **self.server.config,
            'quality': {
                'texts': digest(quality.texts),
                'greedy': vars(quality.greedy),
                'reference': list(self.reference),
                'baseline': list(self.baseline),
                'tasks': None if tasks is None else {
                    name: {
                        'data': digest(path),
                        'records': tasks.records,
                    }
                    for name, path in tasks.files.items()
                },
            },
        }

    @cached_property
    def id(self) -> str:
        return id_of(self.config)

    @property
    def label(self) -> str:
        """In words, such as ``430m dense base quality``."""
        return f'{self.server.label} quality'

    def outcome(self, record: Mapping[str, Any]) -> str:
        """What its record says, in words."""
        documents = record['quality']['documents']
        nll = sum(documents['nll']) / sum(documents['tokens'])
        return f"{nll:.4f} nats/token over {sum(documents['tokens']):,} tokens"


def list_probes(servers: Sequence[ServerSpec]) -> tuple[Probe, ...]:
    """A probe for each server whose size asks for quality.

    Raises:
        HarnessError: The texts can't be read by a model, the reference or the
            baseline is no model of the study, or tasks can't be asked.
    """
    return tuple(
        _probe(server, server.size.quality, servers)
        for server in servers
        if server.size.quality is not None
    )


def _probe(
    server: ServerSpec,
    quality: Quality,
    servers: Sequence[ServerSpec],
) -> Probe:
    of_size = [s for s in servers if s.size.name == server.size.name]
    _check_texts(quality, server)
    return Probe(
        server,
        quality,
        _place(of_size, 'reference', quality.reference),
        _place(of_size, 'baseline', quality.baseline),
    )


def _check_texts(quality: Quality, server: ServerSpec) -> None:
    """Of a model that is not there, starting its server says so."""
    folder = server.model
    assert isinstance(folder, Path)  # for pyright: as config.py checks
    if not (folder / 'config.json').is_file():
        return
    vocab_size = config_number(read_config(folder), 'vocab_size', folder)
    documents = read_texts(quality.texts, folder, vocab_size)
    beginnings(documents, quality.greedy.prompts, quality.greedy.input_tokens)
    if quality.tasks is not None:
        check_lm_eval(quality.tasks, folder)


def _place(
    servers: Sequence[ServerSpec],
    key: str,
    named: Named,
) -> tuple[Any, ...]:
    """Name, experts and top-k of a model that is served without a variant."""
    found = [
        (s.name, s.experts, s.top_k)
        for s in servers
        if s.variant == 'base' and (s.name or s.architecture) == named.model
    ]
    if named.top_k is not None:
        found = [place for place in found if place[2] == named.top_k]
    if not found:
        names = dict.fromkeys(
            f'{s.name or s.architecture}' for s in servers
            if s.variant == 'base'
        )
        raise HarnessError(
            f'quality.{key}',
            vars(named),
            'the study serves no such model without a variant.',
            f"name one of {', '.join(names) or 'none: add base to variants'}, "
            'with a top_k of the study.',
        )
    return max(found, key=lambda place: place[2])
