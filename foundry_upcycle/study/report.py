"""Writes the report of one comparison: a dense start and two ways on from it."""

import importlib.metadata
import math
import os
import platform
from dataclasses import dataclass
from typing import Callable, Mapping

from foundry_upcycle.gauntlet.intervals import binomial_interval
from foundry_upcycle.gauntlet.scores import relative_change
from foundry_upcycle.study.results import FINAL_STEPS, RunResult

__all__ = [
    'Arm',
    'Comparison',
    'render_report',
]

_PACKAGES = (
    'foundry_upcycle',
    'llm-foundry',
    'mosaicml',
    'mosaicml-streaming',
    'torch',
)
# Quantile of the normal distribution for intervals of 95 %.
_Z = 1.96


@dataclass(frozen=True)
class Arm:
    """One training run in the comparison.

    Args:
        label: What tables and figures call it.
        total_params: Parameters.
        active_params: Parameters that a token meets.
        steps: Steps trained.
        tokens: Tokens trained on.
        flops: FLOPs spent.
        result: What the run measured.
    """

    label: str
    total_params: int
    active_params: int
    steps: int
    tokens: int
    flops: int
    result: RunResult

    @property
    def accuracy(self) -> float:
        """Mean over the tasks, which are all of one size."""
        accuracies = self.result.accuracy.values()
        return sum(accuracies) / len(accuracies)


@dataclass(frozen=True)
class Comparison:
    """A dense start, and what equal compute made of it in two ways.

    Args:
        dense: The dense model after pretraining.
        cpt: The dense model after continued pretraining.
        upcycled: The mixture of experts.
        n_examples: Examples of each task.
    """

    dense: Arm
    cpt: Arm
    upcycled: Arm
    n_examples: int

    @property
    def arms(self) -> tuple[Arm, Arm, Arm]:
        return self.dense, self.cpt, self.upcycled

    @property
    def n_all_examples(self) -> int:
        return self.n_examples * len(self.dense.result.accuracy)


def render_report(
    comparison: Comparison,
    figures: Mapping[str, str],
    seconds: Mapping[str, float],
    command: str,
) -> str:
    """The report as Markdown.

    Args:
        comparison: What was measured.
        figures: Caption -> path of the image, relative to the report.
        seconds: Stage -> wall time.
        command: What was run.
    """
    return '\n\n'.join([
        '# Upcycling against continued pretraining, at small scale',
        _verdict(comparison),
        '## Result',
        _main_table(comparison),
        _task_table(comparison),
        *(
            f'![{caption}]({path})\n\n{caption}'
            for caption, path in figures.items()
        ),
        '## How to read it',
        _reading(comparison),
        '## What was run',
        _facts(seconds, command),
        '',
    ])


def _verdict(c: Comparison) -> str:
    cpt, upcycled = (arm.result.eval_loss['domain'] for arm in c.arms[1:])
    change = relative_change(upcycled, cpt)
    word = 'lower' if change < 0 else 'higher'
    loss = (
        f'**At equal training compute, upcycling ended with a {word} loss on ' +
        f'held-out domain text than continued pretraining: {upcycled:.3f} ' +
        f'against {cpt:.3f} nats per token ({change:+.1%}).**'
    )
    points = 100 * (c.upcycled.accuracy - c.cpt.accuracy)
    # The difference of two accuracies, taken as independent.
    variance = sum(
        arm.accuracy * (1 - arm.accuracy) / c.n_all_examples
        for arm in (c.cpt, c.upcycled)
    )
    margin = 100 * _Z * math.sqrt(variance)
    told = 'more' if abs(points) > margin else 'no more'
    return (
        f'{loss} Its accuracy on the small tasks differs by {points:+.1f} ' +
        f'percentage points, {told} than the {margin:.1f} points that ' +
        f'{c.n_all_examples:,} examples can tell apart (95 %). One seed, tiny '
        + 'models: this shows that the pipeline works, not how the method ' +
        'scales.'
    )


def _main_table(c: Comparison) -> str:
    rows = [
        _row(c, 'parameters', lambda arm: f'{arm.total_params:,}'),
        _row(c, 'active parameters', lambda arm: f'{arm.active_params:,}'),
        _row(c, 'training steps', lambda arm: f'{arm.steps:,}'),
        _row(c, 'training tokens', lambda arm: f'{arm.tokens:,}'),
        _row(c, 'training FLOPs', lambda arm: f'{arm.flops:.4g}'),
        _row(
            c,
            f'training loss, last {FINAL_STEPS} steps',
            lambda arm: f'{arm.result.final_loss:.3f}',
        ),
        *_changes(c, 'loss, held-out domain', _held_out_loss('domain'), '.3f'),
        *_changes(c, 'loss, held-out prose', _held_out_loss('prose'), '.3f'),
        _row(
            c,
            'accuracy, mean of the tasks',
            lambda arm: _accuracy(arm.accuracy, c.n_all_examples),
        ),
        _row(
            c,
            '... relative to the dense start',
            lambda arm: _percent(arm.accuracy, c.dense.accuracy),
        ),
        *_changes(
            c,
            'gauntlet core average',
            lambda arm: arm.result.gauntlet['core_average'],
            '.3f',
        ),
    ]
    return '\n'.join([_row(c, '', lambda arm: arm.label), _RULE, *rows])


_RULE = '| --- | ---: | ---: | ---: |'


def _held_out_loss(text: str) -> Callable[[Arm], float]:
    return lambda arm: arm.result.eval_loss[text]


def _changes(
    c: Comparison,
    title: str,
    value: Callable[[Arm], float],
    form: str,
) -> list[str]:
    """Two rows: a figure, and its change relative to the dense start."""
    start = value(c.dense)
    return [
        _row(c, title, lambda arm: format(value(arm), form)),
        _row(
            c,
            '... relative to the dense start',
            lambda arm: _percent(value(arm), start),
        ),
    ]


def _row(c: Comparison, title: str, cell: Callable[[Arm], str]) -> str:
    return f"| {' | '.join([title, *map(cell, c.arms)])} |"


def _percent(value: float, start: float) -> str:
    change = relative_change(value, start)
    return 'n/a' if math.isnan(change) else f'{change:+.1%}'


def _accuracy(accuracy: float, n: int) -> str:
    low, high = binomial_interval(accuracy, n)
    return f'{accuracy:.1%} ({low:.1%} to {high:.1%})'


def _task_table(c: Comparison) -> str:
    title = f'accuracy ({c.n_examples} examples each)'
    rows = [_row(c, title, lambda arm: arm.label), _RULE]
    for task in c.dense.result.accuracy:

        def cell(arm: Arm, task: str = task) -> str:
            return _accuracy(arm.result.accuracy[task], c.n_examples)

        rows.append(_row(c, task, cell))
    return '\n'.join(rows)


def _reading(c: Comparison) -> str:
    apart = relative_change(c.upcycled.flops, c.cpt.flops)
    return '\n'.join([
        '- The dense start is trained on docstrings (prose). Both arms start ' +
        'from its checkpoint, with a fresh optimizer, and train on the same ' +
        'other mix: 15 % other docstrings, 35 % code, 15 % package ' +
        'descriptions, 35 % domain text (mathematics and statistics).',
        '- The arms are matched by FLOPs, not by tokens: upcycling costs more '
        + f'a token, so it gets fewer. Their FLOPs differ by {apart:+.2%}. ' +
        'FLOPs are 6 x active parameters (without the input embedding) + ' +
        '12 x layers x width x sequence length, a token.',
        '- All losses are cross entropies in nats per token of this ' +
        "tokenizer, without the routers' balancing loss. The training loss " +
        'of the dense start is on prose, that of the arms on the mix: compare '
        + 'it between the arms only.',
        '- Held-out text is of documents on which no model trained.',
        '- Intervals are 95 % binomial (Wilson). All tasks but last_word are ' +
        'choices among four: 25 % is chance. The core average subtracts ' +
        'chance and rescales; n/a means a start at or below chance.',
        '- Left out: other seeds, a search for learning rates, larger models, '
        + 'longer training, inference cost.',
    ])


def _facts(seconds: Mapping[str, float], command: str) -> str:
    versions = ', '.join(
        f'{package} {importlib.metadata.version(package)}'
        for package in _PACKAGES
    )
    stages = '\n'.join(
        f'| {stage} | {wall:.0f} |' for stage, wall in seconds.items()
    )
    return '\n'.join([
        f'- Command: `{command}`',
        f'- Versions: Python {platform.python_version()}, {versions}',
        f'- Machine: {platform.machine()}, {os.cpu_count()} CPUs',
        '',
        '| stage | wall time (s) |',
        '| --- | ---: |',
        stages,
        f'| total | {sum(seconds.values()):.0f} |',
    ])
