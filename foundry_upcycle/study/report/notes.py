"""What a study's report says beside its figures and tables, as Markdown."""

import importlib.metadata
import os
import platform
from typing import Iterator

from foundry_upcycle.markdown import code, plain
from foundry_upcycle.study.grid import Grid, Run
from foundry_upcycle.study.report.summary import Summary

__all__ = ['how_it_was_run', 'how_to_read', 'missing_runs']

_PACKAGES = (
    'foundry_upcycle',
    'llm-foundry',
    'mosaicml',
    'mosaicml-streaming',
    'torch',
    'numpy',
    'scipy',
    'matplotlib',
)
# `study status` has them all.
_MAX_NAMED = 12


def missing_runs(summary: Summary) -> Iterator[str]:
    """What a study lacks, by name: unfinished runs, and such as diverged."""
    study = summary.study
    lacking = [
        place for place in study.grid.places if place not in study.by_place
    ]
    runs = [run for place in lacking for run in study.grid.candidates(place)]
    untrained = [
        run.weights.name for run in runs if run.name not in study.results
    ]
    # Of a sweep that is done, the best is still to be evaluated.
    trained = [study.best(study.grid.candidates(place)) for place in lacking]
    unevaluated = [best.run.name for best in trained if best is not None]
    for what, names in (
        ('trained', [*dict.fromkeys(untrained)]),
        ('evaluated', unevaluated),
    ):
        if names:
            listed = ', '.join(map(code, names[:_MAX_NAMED]))
            if len(names) > _MAX_NAMED:
                listed += f' and {len(names) - _MAX_NAMED} more'
            yield (
                f'**Not all runs are there.** Not {what} to the end, and left '
                f'out: {listed}.'
            )
    diverged = [*summary.diverged]
    for place, best in zip(lacking, trained):
        sweep = study.grid.candidates(place)
        names = [run.weights.name for run in sweep]
        # A sweep that is done, and nothing won.
        if best is None and study.results.keys() >= set(names):
            diverged += [name for name in names if name not in diverged]
    if diverged:
        listed = ', '.join(map(code, diverged))
        yield (
            '**Runs diverged.** A loss of these is no number, and left out of '
            f'means: {listed}.'
        )


def how_to_read(summary: Summary) -> str:
    """What is matched, what intervals are over, what is left out."""
    farthest = max(
        _deviation(summary.grid, run)
        for run in summary.grid.runs
        if run.role in ('sweep', 'arm')
    )
    lines = [
        f'- Arms are matched by FLOPs, not by tokens: {_budgets(summary)}, in '
        f'whole steps (at most {farthest:.2%} off). All arms of a duration '
        'start from one dense model.',
        '- Losses are cross entropies in nats per token, without the '
        "routers' balancing loss. The final training loss is the mean of the "
        'last 50 steps, or of the last fifth in runs of fewer than 250. That of '
        'the dense start is on the text of pretraining: compare it with '
        'nothing else.',
        *_reading_served(summary),
        *_reading_shrunk(summary),
        *_reading_intervals(summary),
        *_reading_quality(summary),
        '- "n/a" in brackets: there is no interval, as there is one run (of a '
        'dense start always), or the number of examples is not known. "-": '
        'does not apply, or was not measured.',
        '- "Ahead for good": the difference of the means, interpolated '
        'linearly between budgets; of several crossings the last. Smaller '
        'FLOPs than the first point were not measured.',
        '- Left out: seeds vary the order of data and the routers of the '
        'second phase, not the dense model; other data, other sizes and longer '
        'training may come out otherwise; FLOPs are not time, and a mixture '
        'trains and serves slower than its FLOPs say.',
    ]
    return '\n'.join(lines)


def _deviation(grid: Grid, run: Run) -> float:
    """By how much whole steps miss the FLOPs, as a share of them."""
    pretraining = grid.dense_start(run).flops
    budget = grid.model(run).budget_flops(run.place.budget, pretraining)
    return abs(run.flops / budget - 1)


def _budgets(summary: Summary) -> str:
    texts = {
        'fraction':
        'x is the FLOPs of the second phase as a fraction of those of '
        'pretraining',
        'FLOPs': 'a budget is the FLOPs of the second phase',
    }
    units = dict.fromkeys(model.unit for model in summary.models)
    return ', '.join(texts[unit] for unit in units)


def _reading_served(summary: Summary) -> Iterator[str]:
    if any(run.serves is not None for run in summary.grid.runs):
        yield (
            '- "Served at K": the very models of an arm, evaluated with '
            'another number of experts a token than their own. Other rows have '
            "their own: where K varied in training, the largest. Steps, tokens "
            'and FLOPs are those of the training, with its K.'
        )


def _reading_shrunk(summary: Summary) -> Iterator[str]:
    shrunk = summary.grid.shrunk
    for arm, start in shrunk.items():
        yield f'- {plain(f"{arm}: {start}")}.'
    if shrunk:
        yield (
            '- FLOPs of what is shrunk are those of the mixture, its '
            "calibration, the training that follows and its teacher's forward "
            'passes; steps and tokens are of that training.'
        )


def _reading_intervals(summary: Summary) -> Iterator[str]:
    if len(summary.grid.study.seeds) > 1:
        yield (
            '- Intervals are of 95 % over seeds. The spread between seeds is '
            "estimated from all points of an arm together (Student's t with "
            'as many degrees of freedom as there are seeds above one a point), '
            'which assumes that it is the same at all of them. Differences '
            'are taken between runs with the same seed. "Not told apart": the '
            'interval includes 0. Of 20 differences that are none, one is '
            'expected to look like one.'
        )
    else:
        yield (
            '- There is one seed, so losses have no interval. Another seed '
            'would give other figures, by how much is not known.'
        )


def _reading_quality(summary: Summary) -> Iterator[str]:
    if summary.quality is None:
        return
    gauntlet = summary.quality.gauntlet
    title = plain(summary.quality.metric.title)
    n_tasks = len(gauntlet.benchmarks)
    yield (
        f'- {title} is of the gauntlet {plain(gauntlet.name)}: accuracies above '
        'chance, 0 is guessing and 1 all right. "; examples" marks intervals '
        'over the examples that tasks have, of one model; of tasks they '
        'are for the mean over seeds, as wide as for one seed. Intervals over '
        'seeds hold for these examples; the verdict has both.'
    )
    yield (
        f'- "relative to dense start": the change in {title}, as a share of '
        "the dense start's. Its interval is over the examples of both, in "
        'pairs, and over seeds where there are several: it excludes 0 where '
        'they tell a change from none. It is "n/a" where the dense start '
        'scores 0 or less, which nothing can be relative to, and has no '
        'interval where that may be by chance.'
    )
    if gauntlet.left_out:
        yield (
            f'- {title} is over {n_tasks} of '
            f'{n_tasks + len(gauntlet.left_out)} tasks. Left out, as not all '
            f'runs have them: {plain(gauntlet.say_left_out())}'
        )


def how_it_was_run(summary: Summary) -> str:
    """How FLOPs are counted, versions and machine."""
    versions = ', '.join(
        f'{package} {importlib.metadata.version(package)}'
        for package in _PACKAGES
    )
    study = summary.grid.study
    return '\n'.join([
        '- FLOPs a token: 6 x active parameters (of a mixture the top-k '
        'experts; without the input embedding) + 12 x layers x width x '
        'sequence length. Left out: recomputed activations, auxiliary losses, '
        'the optimizer.',
        f"- Seeds of the second phase: {', '.join(map(str, study.seeds))}.",
        f'- Where this report was written: Python {platform.python_version()}, '
        f'{versions}; {platform.system()} {platform.machine()}, '
        f'{os.cpu_count()} CPUs.',
        '- Seconds of training, without evaluation, as logged by '
        '`speed_monitor`:',
    ])
