"""Runs the cases of one part, and says of each what came of it.

    python -m benchmarks.gpu.worker MODULE DEVICE FOLDER SECONDS [DONE ...]

A line of its output that starts with ``MARK`` is JSON for the parent, which
starts another worker, told what is DONE, if this one dies: a case may end its
process, never the part. Cases share a process because imports take longest.
"""

import gc
import importlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from foundry_upcycle.errors import ConfigError

__all__ = ['MARK', 'Case', 'is_out_of_memory', 'main']

MARK = '@pack '
_MOST_OF_ERROR = 300
# Errors of kernels, torch's and Triton's.
_SPOILT = ('CUDA error', 'Triton Error')

# Returns what was measured, by name.
Case = Callable[[], dict[str, Any]]


def main(
    module: str,
    device: str,
    folder: str,
    seconds: str,
    *done: str,
) -> None:
    """See the module's docstring.

    Args:
        module: The part. Its ``cases(device, folder)`` are run in order;
            where it says ``ONE_A_PROCESS``, the first that is not done.
        device: ``cuda`` or ``cpu``.
        folder: For files of the cases.
        seconds: After which no further case starts.
        done: Cases to pass over.
    """
    end = time.monotonic() + float(seconds)
    part = importlib.import_module(module)
    cases: dict[str, Case] = part.cases(device, Path(folder))
    _tell(cases=[*cases])
    for name, run in cases.items():
        if name in done:
            continue
        if time.monotonic() > end:
            _tell(name=name, left_out="the part's time was up")
            continue
        _tell(started=name)
        start = time.perf_counter()
        outcome, is_spoilt = _outcome(run)
        seconds_taken = round(time.perf_counter() - start, 1)
        _tell(name=name, seconds=seconds_taken, **outcome)
        if is_spoilt:
            sys.exit(1)
        _free()
        if getattr(part, 'ONE_A_PROCESS', False):
            return


def _outcome(run: Case) -> tuple[dict[str, Any], bool]:
    """What a case measured, or its error; whether the process is spoilt."""
    try:
        return run(), False
    except ConfigError as error:
        return {'left_out': _line(error)}, False
    except Exception as error:
        traceback.print_exc()
        if is_out_of_memory(error):
            return {'error': f'out of memory: {_line(error)}'}, False
        # After an error of a kernel, every call of CUDA fails.
        outcome = {'error': f'{type(error).__name__}: {_line(error)}'}
        return outcome, any(text in str(error) for text in _SPOILT)


def _free() -> None:
    """Gives the next case all of the memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too small, for torch or a library of it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in ('out of memory', 'ALLOC_FAILED')
    )


def _line(error: BaseException) -> str:
    return ' '.join(str(error).split())[:_MOST_OF_ERROR]


def _tell(**what: Any) -> None:
    print(f'\n{MARK}{json.dumps(what)}', flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
