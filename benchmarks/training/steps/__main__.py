"""Speed of training on a CPU, and of the layer, as docs/performance.md.

    python -m benchmarks.training.steps [--out docs/performance.md] ...

Takes a quarter of an hour on 2 cores, which should have nothing else to do:
the load before the run is written on the page.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.processor import processor_name
from benchmarks.training.steps.measure import measure_shape
from benchmarks.training.steps.report import report
from benchmarks.training.steps.shapes import ARMS, SHAPES
from foundry_upcycle.files import write_whole

# A load above it is of others.
_QUIET = 0.5
_COMMAND = 'python -m benchmarks.training.steps'
_LAYER = Path(__file__).parents[1] / 'moe_layer.py'
_LAYER_SHAPES = (
    '--tokens 4096 --d_model 1024 --hidden 2560 --experts 8',
    '--tokens 1024 --d_model 1024 --hidden 2560 --experts 8',
    '--tokens 4096 --d_model 512 --hidden 1280 --experts 64',
    '--tokens 2048 --d_model 2048 --hidden 5120 --experts 8',
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--out', type=Path, help='the page; else printed')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=6, help='of a turn')
    parser.add_argument(
        '--shapes', nargs='*', choices=SHAPES, default=[*SHAPES]
    )
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=[*ARMS])
    parser.add_argument('--no-layer', action='store_true')
    args = parser.parse_args()

    results: dict[str, Any] = {
        'machine': _machine(),
        'command': ' '.join([_COMMAND, *sys.argv[1:]]),
        'rounds': args.rounds,
        'n_steps': args.steps,
        'shapes': {},
        'layer': {},
    }
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            results['shapes'][shape] = measure_shape(
                shape,
                Path(folder),
                args.arms,
                args.rounds,
                args.steps,
            )
        print(json.dumps({shape: results['shapes'][shape]}), flush=True)
    for sizes in () if args.no_layer else _LAYER_SHAPES:
        command = f'{_LAYER.relative_to(Path.cwd())} {sizes}'
        results['layer'][f'python {command}'] = subprocess.run(
            [sys.executable, *command.split()],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    if args.out is None:
        print(report(results))
    else:
        write_whole(args.out, report(results))


def _machine() -> str:
    load, _, _ = os.getloadavg()
    facts = (
        f'Machine: {processor_name()}, {torch.get_num_threads()} threads of '
        f'{os.cpu_count()} CPUs, load {load:.1f} before the run; torch '
        f'{torch.__version__}, Python {platform.python_version()}.'
    )
    if load < _QUIET:
        return facts
    return (
        f'{facts} **Other work held the machine**: seconds and speeds below '
        'are far from what it can do, and only ratios by CPU time tell much. '
        'Run it again on a quiet one.'
    )


if __name__ == '__main__':
    main()
