"""Part 4: a whole study of "continue or upcycle?", as a user runs one."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Mapping

from omegaconf import OmegaConf

from foundry_upcycle.data.quickstart import SIZES, write_quickstart

__all__ = ['cases']

_ROOT = Path(__file__).parents[2]
# Study YAML and size of data.
_STUDIES = {
    'cuda': ('study_gpu', 'large'),
    'cpu': ('study_quickstart_tiny', 'tiny'),
}
_COMMAND = 'from foundry_upcycle.cli.app import app; app()'


def cases(device: str, folder: Path) -> Mapping[str, Any]:
    """See ``worker.Case``. Interrupted, it goes on where it was."""
    study, size = _STUDIES[device]
    yaml = folder / f'{study}.yaml'
    return {
        'data': partial(_data, study, size, yaml),
        'run': partial(_foundry_upcycle, 'run', yaml),
        'report': partial(_report, yaml),
    }


def _data(study: str, size: str, yaml: Path) -> dict[str, Any]:
    """Text from the installed packages, and the study of ``yamls/`` on it."""
    folder = yaml.with_suffix('')
    write_quickstart(folder, SIZES[size])
    config: Any = OmegaConf.load(_ROOT / 'yamls' / f'{study}.yaml')
    config.folder = str(folder)
    config.variables = {'folder': str(folder)}
    config.evaluation = str(_ROOT / 'yamls' / config.evaluation)
    for model in config.models.values():
        for phase in (model.pretrain, *model.arms.values()):
            phase.yaml = str(_ROOT / 'yamls' / phase.yaml)
    OmegaConf.save(config, yaml)
    return {}


def _foundry_upcycle(command: str, yaml: Path) -> dict[str, Any]:
    """What the command of this name does, from the folder of ``train.py``.

    Raises:
        RuntimeError: It failed; its output is in the part's log.
    """
    done = subprocess.run(
        [sys.executable, '-c', _COMMAND, 'study', command,
         str(yaml)],
        cwd=_ROOT,
    )
    if done.returncode:
        raise RuntimeError(
            f'foundry-upcycle study {command}: exit status '
            f'{done.returncode}; see study.log.',
        )
    return {}


def _report(yaml: Path) -> dict[str, Any]:
    _foundry_upcycle('report', yaml)
    report = yaml.with_suffix('') / 'report' / 'report.md'
    # Its title, its verdict, then sections.
    _, verdict, *_ = report.read_text().split('\n## ')[0].split('\n\n', 1)
    return {'report': str(report), 'verdict': verdict}
