"""Reads what servers answered: one ``quality.json`` for each."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.point_format import QUALITY_FORMAT
from benchmarks.inference.report.fields import Fields, read_record
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.results import read_arm

__all__ = ['Answers', 'NotAsked', 'read_answers']

_FIX = 'remove its folder, so that `run` asks the server again.'


@dataclass(frozen=True, eq=False)
class Answers:
    """Of a server.

    Args:
        path: The file that it was read from.
        size: Name of the model's size.
        arm: What is served.
        asked: What identifies texts, prompts and tasks.
        reference: With what it is compared.
        baseline: From where gains are counted.
        tokens: Of each document, those that are scored.
        nll: Of each document, nats.
        n_bytes: Of each document, if known.
        likeliest: Of each document, the likeliest token at each place.
        greedy: Of each prompt, the answer's tokens.
        tasks: Task -> of each record, whether it is answered right, 1 or 0.
    """

    path: Path
    size: str
    arm: Arm
    asked: Mapping[str, Any]
    reference: Arm
    baseline: Arm
    tokens: tuple[float, ...]
    nll: tuple[float, ...]
    n_bytes: Optional[tuple[float, ...]]
    likeliest: tuple[tuple[float, ...], ...]
    greedy: tuple[tuple[float, ...], ...]
    tasks: Mapping[str, tuple[float, ...]]

    @property
    def bits(self) -> list[float]:
        """Of each document, ``nll`` in bits."""
        return [nll / math.log(2) for nll in self.nll]


@dataclass(frozen=True)
class NotAsked:
    """A server whose answers are not there.

    Args:
        size: Name of the model's size.
        arm: What was to be served.
        status: ``failed`` or ``skipped``.
        reason: Why.
    """

    size: str
    arm: Arm
    status: str
    reason: str


def read_answers(
    folder: Path,
) -> tuple[dict[str, dict[Arm, Answers]], list[NotAsked]]:
    """Reads all of a study.

    Args:
        folder: Of the study: they are in ``quality/<id>/quality.json``.

    Returns:
        Size -> what is served -> its answers; and what is not there. Both empty
        where the study asks for none.

    Raises:
        HarnessError: One can't be read, is damaged or of another version, or
            two of a size were asked something else.
    """
    found: dict[str, dict[Arm, Answers]] = {}
    missing = []
    for path in sorted((folder / 'quality').glob('*/quality.json')):
        fields = read_record(path, 'quality', QUALITY_FORMAT, _FIX)
        config = fields.inner('config')
        size, arm = config.text('size'), read_arm(config)
        if fields.text('status') != 'done':
            reason = fields.text('reason')
            status = fields.text('status')
            missing.append(NotAsked(size, arm, status, reason))
            continue
        answers = _answers(path, size, arm, fields)
        of_size = found.setdefault(size, {})
        _check_alike(answers, of_size)
        of_size[arm] = answers
    return found, missing


def _answers(path: Path, size: str, arm: Arm, fields: Fields) -> Answers:
    asked = fields.inner('config').inner('quality')
    quality = fields.inner('quality')
    documents = quality.inner('documents')
    tokens, nll = documents.numbers('tokens'), documents.numbers('nll')
    likeliest = _rows(quality, 'likeliest')
    if not tokens or not len(tokens) == len(nll) == len(likeliest):
        documents.refuse('tokens', 'there are other numbers of documents.')
    if any(len(row) != n for row, n in zip(likeliest, tokens)):
        quality.refuse('likeliest', 'documents have other numbers of tokens.')
    return Answers(
        path=path,
        size=size,
        arm=arm,
        asked=asked.content,
        reference=_named(asked, 'reference'),
        baseline=_named(asked, 'baseline'),
        tokens=tokens,
        nll=nll,
        n_bytes=None
        if documents.is_null('bytes') else documents.numbers('bytes'),
        likeliest=likeliest,
        greedy=_rows(quality, 'greedy'),
        tasks={} if quality.is_null('tasks') else {
            name: quality.inner('tasks').numbers(name)
            for name in quality.inner('tasks').content
        },
    )


def _named(asked: Fields, key: str) -> Arm:
    place = asked.array(key)
    if len(place) != 3:
        asked.refuse(key, 'it is not a name, number of experts and top-k.')
    name, experts, top_k = place
    return Arm(experts, top_k, name=name or '')


def _rows(fields: Fields, key: str) -> tuple[tuple[float, ...], ...]:
    rows = dict(enumerate(fields.array(key)))
    inner = Fields(
        fields.source,
        f'{fields.prefix}{key}.',
        {
            str(index): row
            for index, row in rows.items()
        },
    )
    return tuple(inner.numbers(str(index)) for index in rows)


def _check_alike(answers: Answers, of_size: Mapping[Arm, Answers]) -> None:
    """Refuses what was asked something else than others of its size."""
    if answers.arm in of_size:
        raise HarnessError(
            str(answers.path),
            answers.size,
            f'{of_size[answers.arm].path} is of the same size and model: the '
            'study was changed.',
            'remove the folder of the one that is not meant.',
        )
    for other in of_size.values():
        if answers.asked != other.asked:
            raise HarnessError(
                f'{answers.path}: config.quality',
                dict(answers.asked),
                f'{other.path} was asked something else.',
                'compare nothing but alike: keep them in studies of their own.',
            )
        _check_lengths(answers, other)


def _check_lengths(answers: Answers, other: Answers) -> None:
    if answers.tokens != other.tokens:
        raise HarnessError(
            f'{answers.path}: quality.documents.tokens',
            f'{len(answers.tokens)} documents',
            f'{other.path} has other ones.',
            _FIX,
        )
