"""A small gauntlet of in-context tasks, cut from held-out text.

Four tasks, as JSONL files with the fields of Foundry's in-context datasets:

- ``last_word``: the last word of a passage of text (language modeling).
- ``next_line``: which of four indented lines comes next in a header.
- ``brackets``: which of four endings closes the brackets of a line of Python.
- ``arithmetic``: which of four numbers is the sum of two.

Wrong choices are as plausible as the task allows: lines that occur elsewhere,
brackets with one of them changed, sums of other numbers.
"""

import json
import random
import re
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

__all__ = [
    'TASKS',
    'write_tasks',
]

_N_CHOICES = 4
_CLOSERS = ')]}'
_PASSAGE = re.compile(r'(?:[^\n]+\n)*[^\n]+')
_LAST_WORD = re.compile(r'(.+ )([a-z]{4,})[.,;:]?$', re.DOTALL)
_BRACKETS = re.compile(r'(\s*\S.*)( \S*[\w\'"])([)\]}]{2,})[:,]?$')

Example = dict[str, Any]


def write_tasks(
    documents: Mapping[str, Sequence[str]],
    folder: Path,
    n_examples: int,
    seed: int,
) -> None:
    """Writes every task of ``TASKS`` to ``folder/<task>.jsonl``.

    Args:
        documents: Part of the corpus -> its held-out documents.
        folder: Where to write.
        n_examples: Examples of a task.
        seed: Chooses examples and wrong choices.

    Raises:
        ValueError: The documents hold fewer examples than asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (part, make) in TASKS.items():
        sources = documents[part]
        examples = list(make(sources, random.Random(f'{seed}/{name}')))
        if len(examples) < n_examples:
            raise ValueError(
                f'{name}: {n_examples=} but the {len(sources)} held-out ' +
                f'documents of {part} hold {len(examples)}. Collect more ' +
                'text, or lower n_examples.',
            )
        chosen = random.Random(seed).sample(examples, n_examples)
        lines = ''.join(json.dumps(example) + '\n' for example in chosen)
        (folder / f'{name}.jsonl').write_text(lines)


def _last_word(
    documents: Sequence[str],
    rng: random.Random,
) -> Iterator[Example]:
    del rng  # one right answer, nothing to draw
    for document in documents:
        for passage in _PASSAGE.findall(document):
            match = _LAST_WORD.match(' '.join(passage.split()))
            if match and 150 <= len(match[1]) <= 300:
                yield {'context': match[1].strip(), 'continuation': match[2]}


def _next_line(
    documents: Sequence[str],
    rng: random.Random,
) -> Iterator[Example]:
    found = []
    for document in documents:
        lines = [line.rstrip() for line in document.splitlines()]
        for end in range(4, len(lines), 4):
            *context, line = lines[end - 4:end + 1]
            # An indented line starts with the space that Foundry would add.
            if all(map(_is_statement, context)) and _is_statement(line):
                if line.startswith(' ') and line not in context:
                    found.append(('\n'.join(context), line))
    yield from _among_others(found, rng)


def _is_statement(line: str) -> bool:
    return 8 <= len(line.strip()) and len(line) <= 80


def _arithmetic(
    documents: Sequence[str],
    rng: random.Random,
) -> Iterator[Example]:
    del documents  # sums occur in no text as often as they are needed
    numbers = range(10, 50)
    for a in numbers:
        for b in numbers:
            sums = [a + b]
            # Sums as well, or else the right choice could be told (or missed)
            # by its size alone: sums are seldom near the ends of their range.
            while len(sums) < _N_CHOICES:
                other = rng.choice(numbers) + rng.choice(numbers)
                if other not in sums:
                    sums.append(other)
            # The space stands between query and choice.
            answer, *wrong = [f' {n}' for n in sums]
            yield _multiple_choice(f'{a} + {b} =', answer, wrong, rng)


def _among_others(
    found: list[tuple[str, str]],
    rng: random.Random,
) -> Iterator[Example]:
    """Multiple choice between an answer and answers to other queries."""
    answers = sorted({answer for _, answer in found})
    for query, answer in found:
        wrong: set[str] = set()
        while len(wrong) < min(_N_CHOICES, len(answers)) - 1:
            wrong.add(rng.choice(answers))
            wrong.discard(answer)
        if len(wrong) == _N_CHOICES - 1:
            yield _multiple_choice(query, answer, sorted(wrong), rng)


def _brackets(
    documents: Sequence[str],
    rng: random.Random,
) -> Iterator[Example]:
    for document in documents:
        for line in dict.fromkeys(document.splitlines()):
            match = _BRACKETS.match(line) if len(line) <= 80 else None
            if match:
                query, argument, closers = match.groups()
                wrong = [argument + w for w in _other_closers(closers, rng)]
                yield _multiple_choice(query, argument + closers, wrong, rng)


def _other_closers(closers: str, rng: random.Random) -> list[str]:
    """Closers of the same length with one bracket changed."""
    others = sorted({
        closers[:i] + closer + closers[i + 1:]
        for i in range(len(closers))
        for closer in _CLOSERS
        if closer != closers[i]
    })
    return rng.sample(others, _N_CHOICES - 1)


def _multiple_choice(
    query: str,
    answer: str,
    wrong: list[str],
    rng: random.Random,
) -> Example:
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return {'query': query, 'choices': choices, 'gold': choices.index(answer)}


_Maker = Callable[[Sequence[str], random.Random], Iterator[Example]]

# Task -> the part of the corpus it is cut from, and how.
TASKS: dict[str, tuple[str, _Maker]] = {
    'last_word': ('documentation', _last_word),
    'next_line': ('headers', _next_line),
    'brackets': ('python', _brackets),
    'arithmetic': ('documentation', _arithmetic),
}
