"""What a study says, in words that its numbers choose."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Iterator, Optional

from foundry_upcycle.markdown import bold, plain
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.metrics import Mean, Metric
from foundry_upcycle.study.report.summary import Summary

__all__ = ['write_verdict']

# What seeds tell apart, and other examples may not.
_THESE_ONLY = 'on these examples only'
_AHEAD = 'ahead (one seed, no interval)'
_BEHIND = 'behind (one seed, no interval)'
_ORDER = (
    'better',
    f'better {_THESE_ONLY}',
    'worse',
    f'worse {_THESE_ONLY}',
    'not told apart',
    _AHEAD,
    _BEHIND,
)


@dataclass(frozen=True)
class _Finding:
    """One metric of one comparison.

    Args:
        metric: What was measured.
        difference: Between arms.
        examples: Of quality over seeds, the same with its interval over
            examples.
    """

    metric: Metric
    difference: Mean
    examples: Optional[Mean]

    @property
    def verdict(self) -> str:
        """One of ``_ORDER``."""
        verdict = self.difference.verdict(self.metric)
        if verdict == 'no interval':
            if self.difference.value == 0:
                return 'not told apart'
            is_higher = self.difference.value > 0
            is_ahead = is_higher == self.metric.higher_is_better
            return _AHEAD if is_ahead else _BEHIND
        if verdict != 'not told apart' and self.examples:
            if self.examples.verdict(self.metric) != verdict:
                return f'{verdict} {_THESE_ONLY}'
        return verdict

    def __str__(self) -> str:
        unit = f' {self.metric.unit}' if self.metric.unit else ''
        value = self.difference.value
        size = f'{abs(value):.4f}{unit} {"higher" if value > 0 else "lower"}'
        text = f'{self.metric.title}: {self.verdict}, {size}'
        if self.difference.interval is None:
            return f'{text}.'
        return f'{text} (95 %: {self._intervals()}).'

    def _intervals(self) -> str:
        n_seeds = self.difference.n_seeds
        over = f"{n_seeds} seed{'' if n_seeds == 1 else 's'}"
        if self.difference.over == 'examples':
            over = f'examples, {over}'
        text = f'{_ends(self.difference)} over {over}'
        if self.examples:
            text += f'; {_ends(self.examples)} over examples'
        return text


def _ends(mean: Mean) -> str:
    assert mean.interval is not None  # Who asks has looked.
    low, high = mean.interval
    return f'{low:+.4f} to {high:+.4f}'


def write_verdict(summary: Summary) -> str:
    """By how much arms differ at the largest budget, as Markdown.

    For each model and duration the largest budget is taken at which an arm
    and the reference both have a result, with the same seed.
    """
    blocks: list[str] = []
    counts: dict[tuple[str, str], Counter[str]] = {}
    for model in summary.models:
        for arm in summary.compared(model):
            versus = arm, str(summary.reference(model))
            count = counts.setdefault(versus, Counter())
            for point, findings in _largest_points(summary, model, *versus):
                count.update(finding.verdict for finding in findings)
                blocks.append(_block(summary, point, versus[1], findings))
    headlines = [
        _headline(arm, reference, of)
        for (arm, reference), of in counts.items()
        if of
    ]
    if not headlines:
        return _nothing(summary)
    return '\n\n'.join([*headlines, '\n'.join(blocks)])


def _nothing(summary: Summary) -> str:
    if any(summary.compared(model) for model in summary.models):
        return (
            '**No comparison yet**: no arm has a result at FLOPs and with a '
            'seed with which continued pretraining has one.'
        )
    return (
        '**No comparison**: it takes an arm that is continued pretraining and '
        'another one. What follows are the results of each arm.'
    )


def _headline(arm: str, reference: str, verdicts: Counter[str]) -> str:
    n_all = verdicts.total()
    parts = [
        f'{verdict} in {verdicts[verdict]}' for verdict in _ORDER
        if verdicts[verdict]
    ]
    return bold(
        f'At the largest budget and equal FLOPs, {arm} against {reference} '
        f'(continued pretraining), of {n_all} '
        f"comparison{'' if n_all == 1 else 's'}: {', '.join(parts)}.",
    )


def _largest_points(
    summary: Summary,
    model: ModelGrid,
    arm: str,
    reference: str,
) -> Iterator[tuple[Place, list[_Finding]]]:
    for duration in model.durations:
        for budget in summary.shared(model, duration, arm, reference):
            point = Place(model.name, duration, arm, budget)
            findings = _findings(summary, point)
            if findings:
                yield point, findings
                break


def _findings(summary: Summary, point: Place) -> list[_Finding]:
    findings = []
    for metric in summary.metrics:
        difference = summary.difference(metric, point)
        if difference is None:
            continue
        examples = None
        is_quality = summary.quality and metric == summary.quality.metric
        if is_quality and difference.over == 'seeds':
            interval = summary.over_examples(point)
            if interval is not None:
                examples = replace(difference, interval=interval)
        findings.append(_Finding(metric, difference, examples))
    return findings


def _block(
    summary: Summary,
    point: Place,
    reference: str,
    findings: list[_Finding],
) -> str:
    run = summary.run(point)
    flops = f'{run.flops:.3g} FLOPs each'
    if summary.grid.model(run).unit == 'fraction':
        flops = f'x{point.budget:g} of pretraining ({flops})'
    compared = (
        f'{point.model}, {point.duration}, {flops}, {point.arm} against '
        f'{reference}:'
    )
    return '\n'.join([
        f'- {plain(compared)}',
        *(f'  - {plain(finding)}' for finding in findings),
    ])
