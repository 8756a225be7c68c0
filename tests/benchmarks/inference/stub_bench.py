r"""Behaves like ``vllm bench serve``: writes a recorded result.

    python stub_bench.py RECORDED MODE FLAGS ...

MODE: ``writes``; ``fails``: ends with status 1; ``hangs``; ``empty``: ends
without a result.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

__all__ = ['main']


def main(recorded: str, mode: str, *flags: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--result-dir', type=Path)
    parser.add_argument('--result-filename')
    args, _ = parser.parse_known_args(flags)
    print('the tool writes', mode, flush=True)
    if mode == 'fails':
        raise ValueError('prompts that it cannot read')
    if mode == 'hangs':
        time.sleep(600)
    if mode == 'writes':
        shutil.copy(recorded, args.result_dir / args.result_filename)


if __name__ == '__main__':
    main(*sys.argv[1:])
