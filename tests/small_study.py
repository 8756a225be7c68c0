"""A small study, and what its runs would leave, without running them."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
import yaml
from mlflow import MlflowClient

from foundry_upcycle.gauntlet.results import write_results
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, Run
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.tasks import Task, list_tasks

__all__ = [
    'LOSS',
    'leave',
    'leave_answers',
    'leave_evaluation',
    'leave_training',
    'list_tasks',
    'log',
    'plan_grid',
    'read_study',
    'small_grid',
    'write_study',
]

YAMLS = Path(__file__).parents[1] / 'yamls'
LOSS = 'metrics/train/LanguageCrossEntropy'
SHARE = 'router/layer_{:02d}/expert_{:02d}/share'


def write_study(folder: Path, **changes: Any) -> Path:
    """A study YAML: one duration and fraction, one seed, a sweep of upcycling.

    Args:
        folder: Where to write it; results go to ``results`` in it.
        changes: Replace top-level keys.
    """
    study = {
        'name': 'small',
        'folder': str(folder / 'results'),
        'evaluation': str(YAMLS / 'eval_quickstart.yaml'),
        'seeds': [17],
        'models': {
            'm': {
                'durations': {
                    'short': '100ba',
                },
                'fractions': [0.4],
                'pretrain': {
                    'yaml': str(YAMLS / 'quickstart_pretrain.yaml'),
                },
                'arms': {
                    'cpt': {
                        'yaml': str(YAMLS / 'quickstart_cpt.yaml'),
                    },
                    'upcycled': {
                        'yaml': str(YAMLS / 'quickstart_upcycle.yaml'),
                        'lr': [1.0e-4, 1.0e-3],
                    },
                },
            },
        },
        'hardware': {
            'name': 'machine',
            'peak_flops': 1.0e12,
            'mfu': 0.5,
        },
        **changes,
    }
    study = {key: value for key, value in study.items() if value is not None}
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(study))
    return path


def small_grid(folder: Path, **changes: Any) -> Grid:
    return plan_grid(read_study(write_study(folder, **changes)))


def leave_training(
    grid: Grid,
    run: Run,
    n_saved: Optional[int] = None,
    n_logged: Optional[int] = None,
    loss: float = 3.0,
) -> None:
    """Leaves what a training does, of so many steps; by default of all."""
    n_saved = run.n_steps if n_saved is None else n_saved
    n_logged = run.n_steps if n_logged is None else n_logged
    folder = RunFiles(grid.study, run.name).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / 'latest-rank0.pt'
    link.unlink(missing_ok=True)
    link.symlink_to(f'ep0-ba{n_saved}-rank0.pt')
    values = {LOSS: list(np.full(n_logged, loss))}
    if run.base.is_upcycling:
        for layer in range(run.shape.n_layers):
            for expert in range(run.shape.n_experts):
                # Expert 1 of layer 2 gets 0.012.
                values[SHARE.format(layer, expert)] = [
                    0.001 * (10 * expert + layer),
                ]
    log(grid, run.name, values)


def leave_evaluation(grid: Grid, run: Run) -> None:
    """Leaves what an evaluation does."""
    log(
        grid,
        f'{run.name}_eval',
        {
            f'metrics/eval/{text}/LanguageCrossEntropy': [4.5]
            for text in ('documentation', 'headers', 'python')
        },
    )
    leave_answers(grid, run)


def leave_answers(grid: Grid, run: Run) -> Path:
    path = RunFiles(grid.study, run.name).answers / 'checkpoint.json'
    write_results(
        path,
        model={
            'name': 'MPT',
            'source': None,
            'n_params': 5,
        },
        run_name=f'{run.name}_eval',
        batch=0,
        precision='fp32',
        tasks={
            'brackets/0-shot': {
                'metric': 'InContextLearningMultipleChoiceAccuracy',
                'accuracy': 0.5,
                'n': 4,
                'correct': '0101',
            },
        },
    )
    return path


def leave(grid: Grid, task: Task, **options: Any) -> None:
    """Leaves what a task does."""
    if task.kind == 'train':
        leave_training(grid, task.run, **options)
    else:
        leave_evaluation(grid, task.run)


def log(grid: Grid, name: str, values: dict[str, list[float]]) -> None:
    """Logs to MLflow, as Composer does: one run of a name, step by step."""
    client = MlflowClient(grid.study.tracking_uri)
    found = client.get_experiment_by_name(grid.study.name)
    experiment = (
        found.experiment_id
        if found else client.create_experiment(grid.study.name)
    )
    runs = client.search_runs([experiment], f"tags.run_name = '{name}'")
    run = runs[0] if runs else client.create_run(
        experiment,
        tags={'run_name': name},
    )
    for key, steps in values.items():
        for step, value in enumerate(steps):
            client.log_metric(run.info.run_id, key, value, step=step)
