"""python -m benchmarks.gpu [PART ...] [--device cpu] [--out FOLDER]."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

from benchmarks.gpu.machine import describe_machine, require_device
from benchmarks.gpu.report import report
from benchmarks.gpu.runner import PARTS, run_part
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.files import write_whole

__all__ = ['main']

# What a CPU may take longer, at tiny size.
_SLOWER = 8


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs parts and prints their report; returns the exit status.

    The status is 1 where a case failed, and 2 where nothing could run.

    Args:
        arguments: Of the command line.
    """
    args = _parser().parse_args(arguments)
    os.environ['FSDP_VERSION'] = '2'
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    try:
        parts = _chosen(args.parts)
        require_device(args.device)
    except ConfigError as error:
        print(f'benchmarks.gpu: {error}', file=sys.stderr)
        return 2
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = _earlier(out / 'results.json', describe_machine(args.device))
    for part in parts:

        def keep(records: list[dict[str, Any]], part: str = part) -> None:
            results['parts'][part] = records
            write_whole(out / 'results.json', json.dumps(results, indent=1))
            write_whole(out / 'report.md', report(results))

        print(f'{part}:', file=sys.stderr, flush=True)
        seconds = PARTS[part] * (_SLOWER if args.device == 'cpu' else 1)
        run_part(
            f'benchmarks.gpu.{part}', seconds, args.device, out, keep, _say
        )
    print(report(results))
    records = [each for part in results['parts'].values() for each in part]
    return int(any('error' in each for each in records))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='benchmarks/gpu/run.sh',
        description='Shows on one GPU what this project does there, and how '
        'fast; writes report.md and results.json.',
    )
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help=f"of {', '.join(PARTS)}; by default all",
    )
    parser.add_argument(
        '--device',
        choices=('cuda', 'cpu'),
        default='cuda',
        help='cpu: everything at tiny size, to see that it runs',
    )
    parser.add_argument('--out', type=Path, default=Path('runs/gpu'))
    return parser


def _chosen(parts: Sequence[str]) -> list[str]:
    for part in parts:
        if part not in PARTS:
            raise ConfigError(
                'PART',
                part,
                'there is no such part.',
                f"name one of {', '.join(PARTS)}.",
            )
    return [each for each in PARTS if each in (parts or PARTS)]


def _earlier(path: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """What other parts gave on this machine on the same day."""
    if path.exists():
        results = json.loads(path.read_text())
        if results['machine'] == machine:
            return results
    return {'machine': machine, 'parts': {}}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
