"""Scores of models as Markdown and as JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Iterable, Iterator, Optional, Sequence

from foundry_upcycle.gauntlet.gauntlets import Gauntlet
from foundry_upcycle.gauntlet.intervals import N_REPLICATES
from foundry_upcycle.gauntlet.results import ModelResults
from foundry_upcycle.gauntlet.scores import Change, Comparison, Estimate, Scores
from foundry_upcycle.markdown import bold, cells, code, plain

__all__ = ['Outcome', 'render_report', 'shown_categories', 'to_json']

_FORMAT = 'foundry_upcycle/gauntlet_scores/1'
_NONE = '-'


@dataclass(frozen=True)
class Outcome:
    """What came of one gauntlet.

    Args:
        gauntlet: The gauntlet.
        scores: Of each model.
        comparisons: Of each model with the baseline, if there is one.
    """

    gauntlet: Gauntlet
    scores: Sequence[Scores]
    comparisons: Sequence[Comparison]

    @property
    def of_same_tasks(self) -> bool:
        """Whether the models' averages are over the same tasks and sizes."""
        missing = {scores.missing for scores in self.scores}
        return len(missing) == 1 and not self.of_other_sizes

    @property
    def of_other_sizes(self) -> tuple[str, ...]:
        """Tasks that models have in other numbers of categories or examples.

        As one does that lacks categories, since its evaluation died. Numbers
        of examples that are not known are not compared.
        """
        tasks = dict.fromkeys(
            task for scores in self.scores for task in scores.tasks
        )
        return tuple(task for task in tasks if self._differs(task))

    def _differs(self, task: str) -> bool:
        having = [scores for scores in self.scores if task in scores.tasks]
        n_parts = {scores.n_parts[task] for scores in having}
        n_examples = {scores.n_examples[task] for scores in having} - {None}
        return len(n_parts) > 1 or len(n_examples) > 1


def shown_categories(gauntlet: Gauntlet) -> list[str]:
    """All categories but those that some average is alone of.

    The average says the same, as ``core_average`` of the paper's tasks does of
    ``all_tasks``.
    """
    alone = [
        names[0] for names in gauntlet.averages.values() if len(set(names)) == 1
    ]
    return [name for name in gauntlet.categories if name not in alone]


def to_json(
    models: Sequence[ModelResults],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """All figures, as what ``json`` writes. What is not known is None."""
    return {
        'format': _FORMAT,
        'models': {
            model.label: {
                'source': model.source,
                'n_params': model.n_params,
                'seconds': {
                    task:
                    _sum_of_known(part.seconds
                                  for part in parts.values())
                    for task, parts in model.tasks.items()
                },
            }
            for model in models
        },
        'gauntlets': {
            outcome.gauntlet.name: {
                'scores': {
                    scores.label: asdict(scores)
                    for scores in outcome.scores
                },
                'comparisons': {
                    comparison.label: _comparison_json(comparison)
                    for comparison in outcome.comparisons
                },
            }
            for outcome in outcomes
        },
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    kinds = ('accuracies', 'tasks', 'categories', 'averages')
    return asdict(comparison) | {
        kind: {
            name: _change_json(change)
            for name, change in getattr(comparison, kind).items()
        }
        for kind in kinds
    }


def _change_json(change: Change) -> dict[str, Any]:
    return asdict(change) | {
        'difference': change.difference,
        # JSON has no NaN.
        'relative': None if math.isnan(change.relative) else change.relative,
        'verdict': change.verdict,
    }


def render_report(
    models: Sequence[ModelResults],
    outcomes: Sequence[Outcome],
) -> str:
    """All figures, as Markdown."""
    return '\n\n'.join([
        '# Eval Gauntlet',
        _table(
            ['model', 'parameters', 'seconds', 'results'],
            [[
                model.label,
                _count(model.n_params),
                _seconds(model),
                code(model.source),
            ] for model in models],
        ),
        *(block for outcome in outcomes for block in _outcome(outcome)),
        '## How to read it',
        _READING,
        '',
    ])


_READING = '\n'.join([
    '- Rows of tasks are accuracies, averaged over the categories of a task '
    'that has any. Bold rows are scores: accuracy above chance, rescaled so '
    'that 0 is guessing and 1 is all right; a category is the mean of its '
    "tasks' scores.",
    "- In parentheses: 95 % intervals. Of a figure that rests on one accuracy "
    "(a task without categories, or a category of one such task), Wilson's: "
    'for one proportion a bootstrap is a binomial anyway, and too narrow near '
    '0 and 1. Of means over several accuracies, and of differences, by a '
    f'percentile bootstrap ({N_REPLICATES:,} replicates) of how many examples '
    'are right, which needs no more than the accuracy and the number of '
    'examples; where none or all are right, that shows no spread, and '
    "Wilson's interval is taken for this part. No interval: the number of "
    'examples is not known.',
    '- Differences are resampled in pairs where both models kept which '
    'examples they got right and have as many, else as if independent. Pairs '
    'take for granted that both models were asked the same examples in the '
    'same order: results do not say of which file, few-shot examples or order '
    'they are.',
    '- "higher" and "lower": the interval of the difference excludes 0. Of two '
    'equally good models, about one such row in 20 is expected to say so.',
    '- "relative" is the difference divided by the baseline, as the paper '
    'reports it; n/a where the baseline is not above 0. Its interval holds '
    'what chance does to both, and is wide where the baseline is near 0; there '
    'is none where the baseline may be 0.',
    '- "seconds" is what the evaluation of all tasks took, of those where the '
    'results say so (each in scores.json).',
    '- Intervals leave out the choice of few-shot examples and prompts, and '
    'what another seed of training would change.',
])


def _outcome(outcome: Outcome) -> Iterator[str]:
    gauntlet = outcome.gauntlet
    yield f'## {plain(gauntlet.name)}'
    notes = list(_missing(outcome))
    if not outcome.of_same_tasks:
        notes.append(
            '- **The models were not measured on the same tasks or examples: '
            'their categories and averages in this table do not compare.**',
        )
    if outcome.of_other_sizes:
        notes.append(
            '- In other numbers of examples or categories: '
            f"{plain(', '.join(outcome.of_other_sizes))}.",
        )
    if notes:
        yield '\n'.join(notes)
    yield _score_table(outcome)
    for comparison in outcome.comparisons:
        yield (
            f'### {plain(comparison.label)} against '
            f'{plain(comparison.baseline)}'
        )
        yield plain(_basis(comparison))
        yield _change_table(gauntlet, comparison)


def _missing(outcome: Outcome) -> Iterator[str]:
    """A line for each set of models that lack the same tasks."""
    groups: dict[tuple[str, ...], list[Scores]] = {}
    for scores in outcome.scores:
        groups.setdefault(tuple(scores.missing), []).append(scores)
    for missing, group in groups.items():
        if missing:
            n_measured = len(group[0].tasks)
            measured = outcome.gauntlet.restricted(group[0].tasks)
            text = plain(
                f"{', '.join(s.label for s in group)}: "
                f"{', '.join(group[0].averages)} over {n_measured} of "
                f'{n_measured + len(missing)} tasks: left out '
                f'{measured.say_left_out()}',
            )
            yield f'- {text}'


def _basis(comparison: Comparison) -> str:
    changes = comparison.accuracies.values()
    n_paired = sum(change.paired for change in changes)
    n_all = len(changes) + len(comparison.left_out)
    text = (
        f'Over {len(changes)} of {n_all} tasks, {n_paired} of them resampled '
        'in pairs'
    )
    if comparison.left_out:
        text += f": left out {', '.join(comparison.left_out)}"
    return f'{text}.'


def _rows(gauntlet: Gauntlet) -> Iterator[tuple[str, str, str]]:
    """What to show: its title, its kind and its name."""
    listed = set()
    for category in shown_categories(gauntlet):
        yield bold(category), 'categories', category
        for benchmark in gauntlet.categories[category]:
            if benchmark.label not in listed:
                yield benchmark.label, 'accuracies', benchmark.label
                listed.add(benchmark.label)
    for benchmark in gauntlet.benchmarks:
        if benchmark.label not in listed:
            yield benchmark.label, 'accuracies', benchmark.label
    for average in gauntlet.averages:
        yield bold(average), 'averages', average


def _score_table(outcome: Outcome) -> str:
    rows = []
    for title, kind, name in _rows(outcome.gauntlet):
        figures = [getattr(scores, kind).get(name) for scores in outcome.scores]
        if any(figures):
            n = _n_examples(
                outcome.scores, name
            ) if kind == 'accuracies' else ''
            rows.append([title, n, *map(_estimate, figures)])
    return _table(['', 'n', *(s.label for s in outcome.scores)], rows)


def _n_examples(all_scores: Sequence[Scores], task: str) -> str:
    counts = [
        _count(scores.n_examples[task])
        for scores in all_scores
        if task in scores.n_examples
    ]
    return ' or '.join(dict.fromkeys(counts))


def _change_table(gauntlet: Gauntlet, comparison: Comparison) -> str:
    rows = []
    for title, kind, name in _rows(gauntlet):
        change: Optional[Change] = getattr(comparison, kind).get(name)
        if change:
            rows.append([
                title,
                f'{change.baseline:.3f}',
                f'{change.value:.3f}',
                _with_interval(change.difference, change.interval, '+.3f'),
                _relative(change),
                change.verdict,
            ])
    return _table(
        [
            '',
            comparison.baseline,
            comparison.label,
            'difference',
            'relative',
            'verdict',
        ],
        rows,
    )


def _estimate(figure: Optional[Estimate]) -> str:
    if figure is None:
        return _NONE
    return _with_interval(figure.value, figure.interval, '.3f')


def _with_interval(
    value: float,
    interval: Optional[tuple[float, float]],
    form: str,
) -> str:
    if interval is None:
        return f'{value:{form}} (no interval)'
    low, high = interval
    return f'{value:{form}} ({low:{form}} to {high:{form}})'


def _relative(change: Change) -> str:
    if math.isnan(change.relative):
        return 'n/a'
    return _with_interval(change.relative, change.relative_interval, '+.1%')


def _count(n: Optional[int]) -> str:
    return _NONE if n is None else f'{n:,}'


def _seconds(model: ModelResults) -> str:
    total = _sum_of_known(
        part.seconds
        for parts in model.tasks.values()
        for part in parts.values()
    )
    return _NONE if total is None else f'{total:,.1f}'


def _sum_of_known(values: Iterable[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that also reads well as text: first column left, others right."""
    head, *rows = map(cells, (head, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = widths
        padded = [cells[0].ljust(first)] + [
            cell.rjust(width) for cell, width in zip(cells[1:], others)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
    return '\n'.join([line(head), line(rule), *map(line, rows)])
