"""Where the files of a study's runs lie."""

from foundry_upcycle.study.config import Study
from foundry_upcycle.study.grid import evaluation_run_name

__all__ = ['RunFiles']


class RunFiles:
    """Where a run's files lie in the folder of its study.

    Args:
        study: The study.
        name: The run; of ``log`` and ``lock``, any task.
    """

    def __init__(self, study: Study, name: str):
        folder = study.folder
        self.log = folder / 'logs' / f'{name}.log'
        # Held while it goes on.
        self.lock = folder / 'locks' / f'{name}.lock'
        self.train_yaml = folder / 'yamls' / f'{name}.yaml'
        self.eval_yaml = folder / 'yamls' / f'{evaluation_run_name(name)}.yaml'
        self.checkpoints = folder / 'checkpoints' / name
        self.answers = folder / 'answers' / name
