"""python -m benchmarks.inference plan|run|report|doctor STUDY.yaml."""

import argparse
import sys
from typing import Optional, Sequence

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.settings import Study

__all__ = ['main']


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Does a command; returns its exit status.

    Args:
        arguments: Of the command line.
    """
    args = _parser().parse_args(arguments)
    try:
        return args.command(read_study(args.study), args)
    except HarnessError as error:
        print(f'benchmarks.inference: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            'benchmarks.inference: interrupted. Run it again to go on.',
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.inference',
        description='Measures what a mixture of experts costs to serve.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, command, text in (
        ('plan', _plan, 'list the points that a study measures'),
        ('run', _run, 'measure what is not yet measured'),
        ('report', _report, 'write tables and figures of what is measured'),
        ('doctor', _doctor, 'say what this machine can run, and why not'),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument('study', metavar='STUDY.yaml')
        sub.set_defaults(command=command)
        if name in ('plan', 'run'):
            sub.add_argument(
                '--full-grid',
                action='store_true',
                help='all rates, as the paper did; otherwise a search finds '
                'those around the knee',
            )
    return parser


def _plan(study: Study, args: argparse.Namespace) -> int:
    from benchmarks.inference.run.plan import describe_plan
    for line in describe_plan(study, args.full_grid):
        print(line)
    return 0


def _run(study: Study, args: argparse.Namespace) -> int:
    from benchmarks.inference.engine.processes import exit_on_sigterm
    from benchmarks.inference.run.measure import VllmBackend
    from benchmarks.inference.run.runner import Runner

    def say(line: str) -> None:
        print(line, flush=True)

    with exit_on_sigterm():
        backend = VllmBackend(study)
        is_complete = Runner(study, backend, args.full_grid, say).run()
    return 0 if is_complete else 1


def _report(study: Study, args: argparse.Namespace) -> int:
    del args
    # It takes a while to import.
    from benchmarks.inference.report.report import write_report
    print(write_report(study.folder))
    return 0


def _doctor(study: Study, args: argparse.Namespace) -> int:
    del args
    from benchmarks.inference.engine.doctor import diagnose
    from benchmarks.inference.engine.machine import this_machine
    from benchmarks.inference.run.plan import describe_servers
    lines, all_run = diagnose(this_machine(), describe_servers(study))
    print('\n'.join(lines))
    return 0 if all_run else 1


if __name__ == '__main__':
    sys.exit(main())
