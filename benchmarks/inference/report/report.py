"""Writes the report of a serving study, from its points alone."""

import tempfile
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.report.answers import NotAsked, read_answers
from benchmarks.inference.report.engines import engine_table, machine_table
from benchmarks.inference.report.figures import Drawing, draw_figures, render
from benchmarks.inference.report.html import to_html
from benchmarks.inference.report.markdown import plain
from benchmarks.inference.report.notes import (
    disagreements,
    how_to_read,
    how_to_read_quality,
    left_out,
    not_done,
    verdict,
    warnings,
    workload_lines,
)
from benchmarks.inference.report.outputs import (
    points_csv,
    serving_json,
    too_noisy,
)
from benchmarks.inference.report.paper import PAPER, paper_size
from benchmarks.inference.report.quality import Quality, find_quality
from benchmarks.inference.report.quality_tables import (
    cost_table,
    not_asked,
    quality_table,
    tasks_table,
)
from benchmarks.inference.report.results import read_points
from benchmarks.inference.report.summary import Summary
from benchmarks.inference.report.tables import (
    experts_table,
    maximum_table,
    percentile_table,
    rate_table,
    speculation_table,
    variant_table,
)

__all__ = ['write_report']


def write_report(folder: Path) -> Path:
    """Writes what a serving study has measured so far.

    Everything is made in a folder beside ``report`` first, and moved when it is
    complete. The same points give the same bytes. What an earlier report left
    in ``figures`` goes.

    Args:
        folder: Of the study, with ``points/<id>/point.json``. The report goes
            to ``report`` in it: ``report.md``, ``report.html`` (which holds its
            figures and opens offline), ``figures/`` (each as PNG and SVG),
            ``points.csv`` and, where a maximum was measured, ``serving.json``.

    Returns:
        ``report.md``.

    Raises:
        HarnessError: There are no points, one is damaged or of another version,
            they can't be compared, or the report can't be written.
    """
    summary = Summary(read_points(folder))
    answers, unasked = read_answers(folder)
    quality = {
        size: find_quality(summary, of_size, size)
        for size, of_size in answers.items()
    }
    files = _render(summary, quality, unasked)
    out = folder / 'report'
    try:
        _write(out, files)
    except OSError as error:
        raise HarnessError(
            'folder',
            str(out),
            f"the report can't be written ({error}).",
            'make room, or make it a folder that can be written to.',
        ) from error
    return out / 'report.md'


def _render(
    summary: Summary,
    quality: Mapping[str, Sequence[Quality]],
    unasked: Sequence[NotAsked],
) -> dict[str, bytes]:
    """Name of each file -> its content."""
    drawings = list(draw_figures(summary, quality))
    files = {
        f'figures/{drawing.name}.{kind}': render(drawing.figure, kind)
        for drawing in drawings
        for kind in ('png', 'svg')
    }
    blocks = _blocks(summary, drawings, quality, unasked)
    text = '\n\n'.join(blocks) + '\n'
    page = to_html(
        text,
        f'Serving study {summary.study}{summary.labelled}',
        {
            # Pages show the sharper one under the name of the other.
            f'figures/{d.name}.png': files[f'figures/{d.name}.svg']
            for d in drawings
        },
    )
    files['points.csv'] = points_csv(summary).encode()
    serving = serving_json(summary)
    if serving:
        files['serving.json'] = serving.encode()
    return {**files, 'report.html': page.encode(), 'report.md': text.encode()}


def _write(out: Path, files: dict[str, bytes]) -> None:
    for path in (out / name for name in files):
        if path.exists() and not path.is_file():
            raise OSError(f'{path} is there, and no file')
    with tempfile.TemporaryDirectory(
            prefix=f'.{out.name}.',
            dir=out.parent,
    ) as folder:
        new = Path(folder)
        (new / 'figures').mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        (out / 'figures').mkdir(parents=True, exist_ok=True)
        for name in files:
            (new / name).replace(out / name)
        # Of an earlier report, that this one does not have.
        for path in (out / 'serving.json', *(out / 'figures').iterdir()):
            if path.relative_to(out).as_posix() not in files:
                path.unlink(missing_ok=True)


def _blocks(
    summary: Summary,
    drawings: Sequence[Drawing],
    quality: Mapping[str, Sequence[Quality]],
    unasked: Sequence[NotAsked],
) -> Iterator[str]:
    title = plain(
        f'Serving study {summary.study}: dense models against mixtures of '
        f'experts{summary.labelled}',
    )
    yield f'# {title}'
    yield from warnings(summary)
    if summary.done:
        yield '\n'.join(verdict(summary))
        yield '## What was measured, and on what'
        yield machine_table(summary)
        yield workload_lines(summary)
    missing = not_done(summary)
    if missing:
        yield '## Points that are not there'
        yield missing
    for drawing in drawings:
        title = plain(drawing.title)
        yield f'## {title}'
        yield f'![{title}](figures/{drawing.name}.png)'
        yield plain(drawing.caption)
    for size in summary.sizes:
        title = plain(f'{size}: tables{summary.labelled}')
        yield f'## {title}'
        yield from _quality(summary, size, quality.get(size, ()), unasked)
        yield from _tables(summary, size)
    yield '## How to read it'
    yield how_to_read(summary)
    if quality:
        yield how_to_read_quality()
    yield from _variants(summary)


def _quality(
    summary: Summary,
    size: str,
    found: Sequence[Quality],
    unasked: Sequence[NotAsked],
) -> Iterator[str]:
    if found:
        yield '### Quality and cost'
        yield cost_table(summary, size, found)
        yield '### Quality'
        yield quality_table(summary, size, found)
        tasks = tasks_table(summary, size, found)
        if tasks:
            yield '### In-context tasks, answered right'
            yield tasks
    told = not_asked(summary, size, unasked)
    if told:
        yield 'Not asked for quality:'
        yield told


def _tables(summary: Summary, size: str) -> Iterator[str]:
    yield '### Maximum throughput'
    yield maximum_table(summary, size)
    yield from disagreements(summary, size)
    short = left_out(summary, size)
    if short:
        yield short
    for of, arm in too_noisy(summary):
        if of == size:
            name = plain(summary.name(size, arm))
            yield (
                f'The interval of {name} reaches down to 0: `serving.json` is '
                'without it.'
            )
    if paper_size(size):
        yield f'The paper: {PAPER}.'
    yield '### Rates'
    yield rate_table(summary, size)
    yield '### Time to first token, and latency'
    yield from _percentiles(summary, size)
    yield '### Memory and engine'
    yield engine_table(summary, size)
    for title, table in (
        ('Expert load', experts_table(summary, size)),
        ('Speculative decoding', speculation_table(summary, size)),
    ):
        if table:
            yield f'### {title}'
            yield table


def _percentiles(summary: Summary, size: str) -> Iterator[str]:
    table = percentile_table(summary, size)
    if table:
        rates = summary.keeping_up(size, summary.arms(size))
        yield (
            f'At {rates[-1]:g} requests/s, the highest rate that all models '
            'were measured at without saturation, of requests in the steady '
            'state:'
        )
        yield table
    else:
        yield 'There is no rate that all models were measured at unsaturated.'


def _variants(summary: Summary) -> Iterator[str]:
    table = variant_table(summary)
    if table:
        title = f'Variants: the gap to dense they close{summary.labelled}'
        yield f'## {plain(title)}'
        yield (
            '(variant - base) / (dense - base): 0 % closes nothing, 100 % '
            'serves like the dense model without the variant. "lower K" is '
            'the mixture with fewer experts a token, which is another model. '
            'Throughput is that of each device where a variant and its base '
            'are on different numbers of them; latency is as it is. Dashes: '
            'not measured, or no gap to close; "no base": the mixture without '
            'the variant was not measured.'
        )
        yield table
