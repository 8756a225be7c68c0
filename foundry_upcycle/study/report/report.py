"""Writes the report of a study: Markdown, one HTML file, and figures."""

from pathlib import Path
from typing import Iterator, Optional, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.figures import render
from foundry_upcycle.files import fix_for, reason_of, write_together
from foundry_upcycle.markdown import plain
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.report.comparison import (
    break_even_table,
    difference_table,
)
from foundry_upcycle.study.report.figures import Drawing, draw_figures
from foundry_upcycle.study.report.html import to_html
from foundry_upcycle.study.report.notes import (
    how_it_was_run,
    how_to_read,
    missing_runs,
)
from foundry_upcycle.study.report.serving import (
    Serving,
    arm_costs,
    read_serving,
)
from foundry_upcycle.study.report.summary import Summary
from foundry_upcycle.study.report.tables import (
    change_table,
    result_table,
    seconds_table,
    serving_table,
    sweep_tables,
    task_tables,
)
from foundry_upcycle.study.report.verdict import write_verdict
from foundry_upcycle.study.results import StudyResults

__all__ = ['write_report']


def write_report(
    results: StudyResults,
    out: Path,
    serving: Optional[Path] = None,
) -> Path:
    """Writes what a study has measured so far.

    Everything is made in a folder beside ``out`` first, and moved when it is
    complete; files of these names are replaced, others stay.

    Args:
        results: What was measured, in whole or in part.
        out: Folder for ``report.md``, ``report.html`` (which holds its figures
            and opens offline) and ``figures/`` (each as PNG and SVG).
        serving: What serving costs, as ``read_serving`` reads it.

    Returns:
        ``report.md``.

    Raises:
        ConfigError: No dense start or no second phase is finished, the serving
            results can't be used, the paper has no such model as the study
            says, or ``out`` can't be written.
    """
    _require_results(results)
    costs = None if serving is None else read_serving(serving)
    summary = Summary(results)
    drawings = list(draw_figures(summary, costs))
    files = _render(summary, drawings, costs)
    try:
        write_together(out, files)
    except OSError as error:
        raise ConfigError(
            'out',
            str(out),
            f"it can't be written ({reason_of(error)}).",
            fix_for(error),
        ) from error
    return out / 'report.md'


def _require_results(results: StudyResults) -> None:
    study = results.grid.study
    for is_start, what in ((True, 'dense start'), (False, 'second phase')):
        if not any(
            (place.arm is None) == is_start for place in results.by_place):
            raise ConfigError(
                'folder',
                str(study.folder),
                f'no {what} of the study {study.name} is finished in it.',
                'train and evaluate with `foundry-upcycle study run`.',
            )


def _render(
    summary: Summary,
    drawings: Sequence[Drawing],
    serving: Optional[Serving],
) -> dict[str, bytes]:
    """Name of each file -> its content."""
    images = {
        f'figures/{drawing.name}.{kind}': render(drawing.figure, kind)
        for drawing in drawings
        for kind in ('png', 'svg')
    }
    text = '\n\n'.join(_blocks(summary, drawings, serving)) + '\n'
    page = to_html(
        text,
        f'Study {summary.grid.study.name}',
        {
            # Pages show the sharper one under the name of the other.
            f'figures/{d.name}.png': images[f'figures/{d.name}.svg']
            for d in drawings
        },
    )
    return {**images, 'report.html': page.encode(), 'report.md': text.encode()}


def _blocks(
    summary: Summary,
    drawings: Sequence[Drawing],
    serving: Optional[Serving],
) -> Iterator[str]:
    study = plain(summary.grid.study.name)
    yield f'# Study {study}: continue training, or upcycle?'
    yield from missing_runs(summary)
    yield write_verdict(summary)
    for drawing in drawings:
        title = plain(drawing.title)
        yield f'## {title}'
        yield f'![{title}](figures/{drawing.name}.png)'
        yield plain(drawing.caption)
    for model in summary.models:
        yield f'## {plain(model.name)}: tables'
        yield from _tables(summary, model, serving)
    yield '## How to read it'
    yield how_to_read(summary)
    yield '## How it was run'
    yield how_it_was_run(summary)
    yield seconds_table(summary)


def _tables(
    summary: Summary,
    model: ModelGrid,
    serving: Optional[Serving],
) -> Iterator[str]:
    results = result_table(summary, model)
    if not results:
        yield 'No run of this model is finished.'
        return
    yield '### Results'
    yield results
    differences = difference_table(summary, model)
    if differences:
        reference = plain(summary.reference(model))
        yield f'### Differences from {reference} at equal FLOPs'
        yield differences
        yield f'### When is it ahead of {reference} for good?'
        yield break_even_table(summary, model)
    changes = change_table(summary, model)
    if changes:
        yield '### What it learnt and forgot'
        yield (
            "Held-out losses less the dense start's: below 0 it learnt, above "
            '0 it forgot.'
        )
        yield changes
    sweeps = list(sweep_tables(summary, model))
    if sweeps:
        yield '### Learning rates'
        yield from sweeps
    tasks = list(task_tables(summary, model))
    if tasks:
        yield '### Tasks'
        yield from tasks
    if serving:
        yield from _serving(summary, model, serving)


def _serving(
    summary: Summary,
    model: ModelGrid,
    serving: Serving,
) -> Iterator[str]:
    labels = f" ({plain(', '.join(serving.labels))})" if serving.labels else ''
    yield f'### Quality against serving cost{labels}'
    table = serving_table(summary, model, serving)
    if table:
        yield table
    costs = arm_costs(summary, model, serving)
    left_out = [arm for arm, cost in costs.items() if cost is None]
    if left_out:
        yield plain(
            f"Left out: {', '.join(left_out)}, as the serving results have no "
            f'model of size {model.name} with its experts and top-k, or no '
            'dense one.',
        )
