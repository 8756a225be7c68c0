"""Starts a script on two ranks, as the tests of several ranks share it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

__all__ = ['run_on_two_ranks']


def run_on_two_ranks(*command: Any, cwd: Optional[Path] = None) -> None:
    """Runs a script and its arguments with Composer's launcher.

    Fails with all that it printed, if it does.
    """
    folder = Path(sys.executable).parent
    result = subprocess.run(
        [folder / 'composer', '-n', '2', *command],
        cwd=cwd,
        env={
            **os.environ,
            'FSDP_VERSION':
            '2',
            'OMP_NUM_THREADS':
            '1',
            'PATH':
            f'{folder}:{os.environ["PATH"]}',
            'PYTHONPATH':
            os.pathsep.join([
                str(Path(__file__).parent),
                os.environ.get('PYTHONPATH', ''),
            ]),
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
