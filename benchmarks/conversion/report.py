"""Tables and plot of what convert.py measured.

    python benchmarks/conversion/report.py docs/conversion

convert.py calls it at its end.
"""

import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from samples import Sample, bound_mib

matplotlib.use('Agg')

import matplotlib.pyplot as plt  # noqa: E402

__all__ = ['machine', 'write_report']

_OURS = {
    'pt': '`convert` .pt to .pt',
    'export-hf': '`export-hf` .pt (mixture) to Mixtral folder',
    'dcp': '`convert` .pt to sharded folder',
    'safetensors': '`convert` .pt to Mixtral folder',
    'llama': '`convert` Llama folder to Mixtral folder',
}
_PEERS = {
    'load-everything': 'load_everything.py',
    'mergekit': 'mergekit-moe',
}
_ORDER = [*_OURS, *_PEERS]
# Okabe and Ito's palette, told apart under every colour blindness.
_LINES = {
    'ours': ('#0072B2', 'o', 'foundry-upcycle (largest of its jobs)'),
    'load-everything': ('#D55E00', 's', 'load_everything.py'),
    'mergekit': ('#009E73', 'D', 'mergekit-moe'),
}
# Of the instructions that copying, converting and hashing use.
_FLAGS = ('avx2', 'avx512f', 'avx512_bf16', 'sha_ni', 'asimd', 'sha2')

_TEXT = """\
# Conversion: memory and time
![Peak memory against size of the output](memory.png)

Written by `python benchmarks/conversion/convert.py`, from \
[results.json](results.json).

{machine}

Peak is the largest resident memory of the process with everything in it: \
imports ({imports:.0f} MiB: torch, LLM Foundry), mapped pages of the source, \
buffers. Bound: 1.5 x all experts of one layer in the output's dtype + 1 GiB.

## Beside `cp`
Seconds leave imports out and include the manifest (SHA-256 of the source); \
`cp` copies what the job wrote, on the same disk, right after it. Both start \
after a sync and end without one: what is timed is writing to the page cache, \
and to the disk where that is full. Medians over {rounds} rounds; of the \
ratios of a round also the range. CPU: seconds of all threads, ours and `cp`.

| model | dtype | job | output GB | seconds | `cp` | / `cp` | CPU | peak MiB \
| bound MiB | |
|---|---|---|---|---|---|---|---|---|---|---|
{ours}

## Beside other tools
From a Llama folder to a Mixtral folder, 8 experts, top-2, source and output \
of the same dtype; each tool with its defaults. Experts and all else but the \
random routers are compared exactly with ours. Process: from start to exit, \
imports included.

| model | dtype | tool | seconds | process seconds | peak MiB | tensors |
|---|---|---|---|---|---|---|
{tools}
"""

_Rounds = list[Sample]


def machine(mergekit: Optional[str]) -> list[str]:
    """What the figures depend on; no names of hosts."""
    with open('/proc/cpuinfo', encoding='ascii') as file:
        flags = next(s for s in file if s.startswith(('flags', 'Features')))
    known = ' '.join(flag for flag in _FLAGS if flag in flags.split())
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    names = ('llm-foundry', 'torch', 'transformers')
    return [
        f'{len(os.sched_getaffinity(0))} cores ({platform.machine()}, '
        f'{known}), {memory / 2**30:.0f} GiB of memory',
        f'Python {platform.python_version()}, ' +
        ', '.join(f'{name} {version(name)}' for name in names),
        f'in an environment of its own: {mergekit or "no mergekit"}',
    ]


def write_report(out: Path) -> None:
    """Writes results.md and the plot from results.json in ``out``."""
    content = json.loads((out / 'results.json').read_text())
    groups = _by_job([Sample(**sample) for sample in content['samples']])
    (out / 'results.md').write_text(_markdown(content, groups))
    _plot(groups, out)


def _span(n_rounds: set[int]) -> str:
    few, many = min(n_rounds), max(n_rounds)
    return str(few) if few == many else f'{few} to {many}'


def _by_job(samples: Sequence[Sample]) -> list[_Rounds]:
    """The rounds of each job on each model, smallest model first."""
    groups: dict[Any, _Rounds] = {}
    for sample in samples:
        key = (
            sample.dtype,
            sample.group_bytes,
            sample.size,
            _ORDER.index(sample.job),
        )
        groups.setdefault(key, []).append(sample)
    return [groups[key] for key in sorted(groups)]


def _markdown(content: dict[str, Any], groups: list[_Rounds]) -> str:
    loads = sorted(sample.load for rounds in groups for sample in rounds)
    facts = [
        *content['machine'],
        f'load average before a job: {loads[0]:.1f} to {loads[-1]:.1f}, '
        f'median {statistics.median(loads):.1f} (this benchmark alone makes '
        'about 1)',
        *(f'skipped: {line}' for line in content['skipped']),
    ]
    ours = [rounds for rounds in groups if rounds[0].job in _OURS]
    tools = [
        rounds for rounds in groups
        if rounds[0].job == 'llama' or rounds[0].job in _PEERS
    ]
    n_rounds = {len(rounds) for rounds in groups}
    return _TEXT.format(
        rounds=_span(n_rounds),
        machine='\n'.join(f'- {fact}' for fact in facts),
        imports=max((r[0].imports_mib for r in ours), default=0),
        ours='\n'.join(map(_row_beside_cp, ours)),
        tools='\n'.join(map(_row_beside_tools, tools)),
    )


def _row_beside_cp(rounds: _Rounds) -> str:
    first = rounds[0]
    ratios = [s.seconds / s.cp_seconds for s in rounds if s.cp_seconds]
    peak, bound = _peak_mib(rounds), bound_mib(first)
    return _row(
        first.size,
        first.dtype,
        _OURS[first.job],
        f'{first.output_bytes / 1e9:.2f}',
        f'{_median(rounds, "seconds"):.2f}',
        f'{_median(rounds, "cp_seconds"):.2f}',
        f'{statistics.median(ratios):.2f} '
        f'({min(ratios):.2f} to {max(ratios):.2f})',
        f'{_median(rounds, "cpu_seconds"):.1f}, '
        f'{_median(rounds, "cp_cpu_seconds"):.1f}',
        f'{peak:.0f}',
        f'{bound:.0f}',
        'within' if peak <= bound else '**above**',
    )


def _row_beside_tools(rounds: _Rounds) -> str:
    first = rounds[0]
    if first.job in _PEERS:
        tool = _PEERS[first.job]
        same = 'equal' if first.is_same else 'not compared'
    else:
        tool, same = 'foundry-upcycle', ''
    return _row(
        first.size,
        first.dtype,
        tool,
        f'{_median(rounds, "seconds"):.2f}',
        f'{_median(rounds, "process_seconds"):.2f}',
        f'{_peak_mib(rounds):.0f}',
        same,
    )


def _row(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


def _median(rounds: _Rounds, field: str) -> float:
    return statistics.median(getattr(sample, field) for sample in rounds)


def _peak_mib(rounds: _Rounds) -> float:
    return max(sample.peak_mib for sample in rounds)


def _plot(groups: list[_Rounds], out: Path) -> None:
    dtypes = sorted({rounds[0].dtype for rounds in groups})
    figure, panels = plt.subplots(
        ncols=len(dtypes),
        figsize=(1 + 4.5 * len(dtypes), 5),
        layout='constrained',
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, dtype in zip(panels[0], dtypes):
        _plot_panel(axes, [r for r in groups if r[0].dtype == dtype])
        axes.set_title(f'output in {dtype}')
        axes.set_xlabel('size of the output (GiB)')
    panels[0][0].set_ylabel('peak resident memory (GiB)')
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc='outside lower center',
        ncols=2,
        frameon=False,
    )
    for name in ('memory.png', 'memory.svg'):
        figure.savefig(out / name, dpi=150)
    plt.close(figure)


def _plot_panel(axes: Axes, groups: list[_Rounds]) -> None:
    """Peak against output size, both in GiB and logarithmic."""
    models = [rounds[0] for rounds in groups if rounds[0].job == 'llama']
    outputs = {first.size: first.output_bytes / 2**30 for first in models}
    for kind, (color, marker, label) in _LINES.items():
        peaks: dict[str, float] = {}
        for rounds in groups:
            size, job = rounds[0].size, rounds[0].job
            if kind == (job if job in _PEERS else 'ours'):
                peak = _peak_mib(rounds) / 1024
                peaks[size] = max(peak, peaks.get(size, 0))
        sizes = [size for size in peaks if size in outputs]
        axes.plot(
            [outputs[size] for size in sizes],
            [peaks[size] for size in sizes],
            color=color,
            marker=marker,
            label=label,
        )
    axes.plot(
        [*outputs.values()],
        [bound_mib(first) / 1024 for first in models],
        color='black',
        linestyle=':',
        label='bound: 1.5 x the experts of one layer + 1 GiB',
    )
    axes.plot(
        [*outputs.values()],
        [*outputs.values()],
        color='grey',
        linestyle='--',
        marker='.',
        label='the output itself',
    )
    for size, output in outputs.items():
        axes.annotate(
            size.upper(),
            (output, output),
            xytext=(4, -12),
            textcoords='offset points',
            color='dimgrey',
        )
    ticks = [2.0**exponent for exponent in range(-3, 5)]
    for axis in (axes.xaxis, axes.yaxis):
        axis._set_axes_scale('log')
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter('{x:g}')
    axes.margins(0.12)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)


if __name__ == '__main__':
    write_report(Path(sys.argv[1]))
