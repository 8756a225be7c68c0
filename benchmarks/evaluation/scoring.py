"""What lm-eval logged, scored by LLM Foundry's rule, and both compared.

Pure Python: it needs neither of the two.
"""

import json
from dataclasses import dataclass
from typing import Iterable, Optional, Sequence

__all__ = [
    'Comparison',
    'Request',
    'Sample',
    'closest_call',
    'foundry_verdict',
    'read_samples',
    'short_choices',
]

# Token ids of a context and of its continuation.
Request = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Sample:
    """What lm-eval logged of one record.

    Attributes:
        gold: Index of the right request; None where there is one request,
            whose continuation is to be the greedy one.
        log_likelihoods: Of each request's continuation, summed over tokens.
        is_greedy: Whether each continuation is the most likely token by token.
        requests: Their tokens.
        acc: lm-eval's verdict by the sums (or by ``is_greedy``).
        acc_norm: The one by the sums over lengths in characters, None where
            the task has none.
    """
    gold: Optional[int]
    log_likelihoods: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    requests: tuple[Request, ...]
    acc: bool
    acc_norm: Optional[bool]


def read_samples(lines: Iterable[str]) -> list[Sample]:
    """Reads what ask_lm_eval.py wrote, in the order of the data file.

    Raises:
        ValueError: Records are missing, or there twice.
    """
    logged = {}
    ids = []
    for line in lines:
        content = json.loads(line)
        ids.append(content['doc_id'])
        logged[content['doc_id']] = _sample(content)
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(
            f"doc_id: {len(ids)} samples don't have the ids 0 to "
            f'{len(ids) - 1}, each once. Ask lm-eval again, for all records.'
        )
    return [logged[index] for index in range(len(ids))]


def _sample(content: dict) -> Sample:
    log_likelihoods, is_greedy = zip(*content['filtered_resps'])
    acc_norm = content.get('acc_norm')
    return Sample(
        # Of the record, not lm-eval's `target`: for winogrande that is text.
        gold=content['doc'].get('gold'),
        log_likelihoods=log_likelihoods,
        is_greedy=is_greedy,
        requests=tuple((tuple(context), tuple(continuation))
                       for context, continuation in content['tokens']),
        acc=bool(content['acc']),
        acc_norm=None if acc_norm is None else bool(acc_norm),
    )


def foundry_verdict(sample: Sample) -> bool:
    """Whether the record is right by LLM Foundry's rule.

    ``InContextLearningMultipleChoiceAccuracy`` takes the continuation of
    lowest perplexity, which is the lowest mean loss per token, and of equal
    ones the first; ``InContextLearningLMAccuracy`` wants every token to be the
    most likely one. Leaves out that perplexities are rounded to float32, which
    may make equal what is not.
    """
    if sample.gold is None:
        return sample.is_greedy[0]
    return _lowest(_mean_losses(sample)) == sample.gold


def closest_call(samples: Sequence[Sample]) -> Optional[float]:
    """Smallest distance of the two lowest mean losses of a record.

    In nats per token; what rounding changes must be smaller. None where there
    are no choices.
    """
    chosen = [sorted(_mean_losses(s)) for s in samples if s.gold is not None]
    return min((second - first for first, second, *_ in chosen), default=None)


def short_choices(samples: Sequence[Sample]) -> dict[str, int]:
    """How often each rule takes the choice of fewest tokens.

    Returns:
        ``records`` that have one choice shorter than the others, in how many
        of them it is the ``gold`` one, and in how many ``acc`` and ``foundry``
        take it.
    """
    counts = dict.fromkeys(('records', 'gold', 'acc', 'foundry'), 0)
    for sample in samples:
        lengths = _lengths(sample)
        if sample.gold is None or lengths.count(min(lengths)) > 1:
            continue
        shortest = _lowest(lengths)
        sums = [-x for x in sample.log_likelihoods]
        counts['records'] += 1
        counts['gold'] += sample.gold == shortest
        counts['acc'] += _lowest(sums) == shortest
        counts['foundry'] += _lowest(_mean_losses(sample)) == shortest
    return counts


def _mean_losses(sample: Sample) -> list[float]:
    pairs = zip(sample.log_likelihoods, _lengths(sample), strict=True)
    return [-log_likelihood / length for log_likelihood, length in pairs]


def _lengths(sample: Sample) -> list[int]:
    return [len(continuation) for _, continuation in sample.requests]


def _lowest(values: Sequence[float]) -> int:
    return values.index(min(values))


@dataclass(frozen=True)
class Comparison:
    """One task, asked by both.

    Attributes:
        task: Its label.
        samples: lm-eval's, one a record.
        correct: Foundry's verdicts on the same records.
        requests: Foundry's tokens of each record.
    """
    task: str
    samples: Sequence[Sample]
    correct: Sequence[bool]
    requests: Sequence[tuple[Request, ...]]

    def row(self) -> str:
        """Of a Markdown table: accuracies and records that agree."""
        cells = [
            self.task, f'{len(self.samples)}', f'{_mean(self.correct):.4f}'
        ]
        for verdicts in (
            [s.acc for s in self.samples],
            [s.acc_norm for s in self.samples],
            [foundry_verdict(s) for s in self.samples],
        ):
            cells += self._cells(verdicts)
        cells.append(f'{len(self.samples) - len(self.other_tokens())}')
        return f"| {' | '.join(cells)} |"

    def _cells(self, verdicts: Sequence[Optional[bool]]) -> list[str]:
        if None in verdicts:
            return ['', '']
        agree = sum(map(bool.__eq__, self.correct, verdicts))
        return [f'{_mean(verdicts):.4f}', f'{agree}']

    def other_tokens(self) -> list[int]:
        """Records that the two take other tokens for, or split elsewhere."""
        return [
            index for index, (sample, requests) in
            enumerate(zip(self.samples, self.requests, strict=True))
            if sample.requests != requests
        ]

    def other_verdicts(self) -> list[int]:
        """Records that differ even by the same rule."""
        return [
            index for index, (sample, is_correct) in
            enumerate(zip(self.samples, self.correct, strict=True))
            if foundry_verdict(sample) != is_correct
        ]


def _mean(verdicts: Sequence[Optional[bool]]) -> float:
    return sum(map(bool, verdicts)) / len(verdicts)
