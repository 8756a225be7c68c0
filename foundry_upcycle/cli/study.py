"""Commands of a study."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from foundry_upcycle.cli.command import App
from foundry_upcycle.cli.errors import errors_in_one_line

__all__ = ['app']

app = App(
    help='Compares continued pretraining with upcycling at equal FLOPs.',
    no_args_is_help=True,
)

_StudyYaml = Annotated[
    str,
    typer.Argument(metavar='STUDY.yaml', help='Such as yamls/study_430m.yaml.'),
]


@app.command()
def plan(path: _StudyYaml) -> None:
    """Shows what a study runs and what it costs; writes a YAML for each run.

    Example: foundry-upcycle study plan yamls/study_430m.yaml
    """
    with errors_in_one_line():
        from foundry_upcycle.study.lock import exclusive
        from foundry_upcycle.study.overview import plan_lines
        from foundry_upcycle.study.plan_files import write_yamls
        grid = _grid(path)
        with exclusive(grid.study.folder):
            write_yamls(grid)
        for line in plan_lines(grid):
            typer.echo(line)
        typer.echo(f'wrote {grid.study.folder}/yamls')


@app.command()
def run(
    path: _StudyYaml,
    dry_run: Annotated[
        bool,
        typer.Option(
            '--dry-run',
            help='Print the commands that can start now instead, for a cluster.',
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help='How many go on at the same time, for models so small that '
            'one leaves cores idle.',
        ),
    ] = 1,
) -> None:
    """Trains and evaluates what is not yet done; run again, it goes on.

    Each run is a process of its own, train.py or eval.py in this folder, by
    Composer's launcher where there are several GPUs. Ends with 1 if any failed.

    Example: foundry-upcycle study run yamls/study_430m.yaml
    """
    with errors_in_one_line():
        from foundry_upcycle.study import runner
        grid = _grid(path)
        if dry_run:
            for line in runner.dry_run(grid):
                typer.echo(line)
            return
        _exit_on_signals()
        is_complete = runner.StudyRunner(grid, typer.echo, jobs).run()
    if not is_complete:
        raise typer.Exit(1)


@app.command()
def status(path: _StudyYaml) -> None:
    """Says which runs of a study are done, and which are left.

    Example: foundry-upcycle study status yamls/study_430m.yaml
    """
    with errors_in_one_line():
        from foundry_upcycle.study.overview import status_lines
        for line in status_lines(_grid(path)):
            typer.echo(line)


@app.command()
def report(
    path: _StudyYaml,
    out: Annotated[
        Optional[str],
        typer.Option(
            metavar='FOLDER',
            help="Where to write; by default `report` in the study's folder.",
        ),
    ] = None,
    serving: Annotated[
        Optional[str],
        typer.Option(
            metavar='FILE',
            help='JSON of serving results, to plot quality against cost.',
        ),
    ] = None,
) -> None:
    """Writes what a study has found: report.md, report.html and figures.

    Example: foundry-upcycle study report yamls/study_430m.yaml
    """
    with errors_in_one_line():
        from foundry_upcycle.study.measured import Measured, read_study_results
        from foundry_upcycle.study.plan_files import require_unchanged
        from foundry_upcycle.study.report.report import write_report
        grid = _grid(path)
        measured = Measured(grid)
        require_unchanged(measured)
        written = write_report(
            read_study_results(measured),
            grid.study.folder / 'report' if out is None else Path(out),
            None if serving is None else Path(serving),
        )
        typer.echo(f'wrote {written}')


def _exit_on_signals() -> None:
    """As Ctrl-C does: leaves through the `finally` that ends processes."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP, of a closed terminal, ignored; so it stays.
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda number, _: sys.exit(128 + number))


def _grid(path: str) -> Any:
    from foundry_upcycle.study.config import read_study
    from foundry_upcycle.study.plan_runs import plan_grid
    return plan_grid(read_study(path))
