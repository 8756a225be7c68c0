"""Studies whose every figure is chosen: planned from YAMLs, never run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np
import yaml

from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, Run
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.results import (
    Evaluation,
    ExpertLoad,
    RunResult,
    StudyResults,
)

__all__ = ['Measured', 'make_grid', 'make_results', 'plain_study']

N_EXAMPLES = 100
N_LAYERS = 3
_MODEL = {
    'name': 'mpt_causal_lm',
    'd_model': 64,
    'n_heads': 4,
    'n_layers': N_LAYERS,
    'max_seq_len': 32,
    'vocab_size': 128,
    'tie_word_embeddings': False,
    'no_bias': True,
    'norm_type': 'rmsnorm',
    'learned_pos_emb': False,
    'attn_config': {
        'attn_type': 'grouped_query_attention',
        'kv_n_heads': 2,
        'rope': True,
    },
    'ffn_config': {
        'ffn_type': 'mptglu',
        'ffn_hidden_size': 96,
    },
}
_TRAIN = {
    'max_seq_len': 32,
    'tokenizer': {
        'name': 'gpt2',
    },
    'global_train_batch_size': 4,
    'max_duration': '1000ba',
    'optimizer': {
        'name': 'decoupled_lionw',
        'lr': 1e-4,
        'weight_decay': 1e-5,
    },
    'model': _MODEL,
}
# Chance is 0, so that a score is an accuracy; core_average is their mean.
GAUNTLET = {
    'eval_gauntlet': {
        'averages': {
            'core_average': ['all']
        },
        'categories': [{
            'name':
            'all',
            'benchmarks': [{
                'name': name,
                'num_fewshot': 0,
                'random_baseline': 0.0,
            } for name in ('first', 'second')],
        }],
    },
}


@dataclass
class Measured:
    """What a run is to have measured.

    Args:
        final_loss: All its steps have it.
        losses: Held-out text -> loss.
        accuracies: Of the tasks ``first`` and ``second``, or of the first.
        train_loss: Instead of ``final_loss``, of each step.
        load: Of the experts.
        seconds: What training took.
    """

    final_loss: float = 2.0
    losses: Mapping[str, float] = field(default_factory=dict)
    accuracies: Sequence[float] = ()
    train_loss: Optional[np.ndarray] = None
    load: Optional[ExpertLoad] = None
    seconds: Optional[float] = None


def _yamls(
    folder: Path,
    train: Mapping[str, Any],
    arms: Sequence[str],
) -> dict[str, Path]:
    mixture = {
        **_MODEL,
        'name': 'upcycled_mpt',
        'ffn_config': {
            **_MODEL['ffn_config'],  # type: ignore
            'ffn_type': 'upcycled_dmoe',
            'moe_num_experts': 8,
            'moe_top_k': 2,
        },
    }
    contents: dict[str, Any] = {'dense': dict(train)}
    for arm in arms:
        contents[arm] = dict(train) if arm.startswith('cpt') else {
            **train,
            'model': mixture,
            'callbacks': {
                'sparse_upcycling': {
                    'source_path': 'dense.pt'
                }
            },
        }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f'{name}.yaml' for name in contents}
    for name, content in contents.items():
        paths[name].write_text(yaml.safe_dump(content, sort_keys=False))
    return paths


def make_grid(
    folder: Path,
    *,
    durations: Mapping[str, str],
    fractions: Sequence[float],
    seeds: Sequence[int],
    arms: Sequence[str] = ('cpt', 'upcycled'),
    sweep: Sequence[float] = (),
    texts: Sequence[str] = (),
    has_gauntlet: bool = False,
    paper: Optional[str] = None,
    models: Sequence[str] = ('small', ),
    batch: int = 4,
    eval_top_k: Sequence[int] = (),
    shrunk: Mapping[str, Mapping[str, Any]] = {},  # noqa: B006
) -> Grid:
    """Plans a study.

    Args:
        folder: For its YAMLs.
        durations: As a study YAML has them.
        fractions: Likewise.
        seeds: Likewise.
        arms: Those that begin with ``cpt`` are continued pretraining.
        sweep: Learning rates of the last arm, if several.
        texts: Held out, to be measured a loss on.
        has_gauntlet: Whether tasks are scored.
        paper: The models' ``paper``.
        models: Names.
        batch: Sequences of a step, each of 32 tokens.
        eval_top_k: Of the last arm.
        shrunk: Further arms, and their ``shrink``.
    """
    train = {
        **_TRAIN,
        'max_duration': next(iter(durations.values())),  # For its unit.
        'global_train_batch_size': batch,
    }
    paths = _yamls(folder, train, arms)
    model: dict[str, Any] = {
        'pretrain': {
            'yaml': str(paths['dense'])
        },
        'durations': dict(durations),
        'fractions': list(fractions),
        'arms': {
            arm: {
                'yaml': str(paths[arm])
            }
            for arm in arms
        },
    }
    if sweep:
        model['arms'][arms[-1]]['lr'] = list(sweep)
    if eval_top_k:
        model['arms'][arms[-1]]['eval_top_k'] = list(eval_top_k)
    for arm, shrink in shrunk.items():
        model['arms'][arm] = {
            'yaml': str(paths['dense']),
            'shrink': dict(shrink),
        }
    if paper:
        model['paper'] = paper
    study: dict[str, Any] = {
        'name': 'synthetic',
        'folder': 'runs/synthetic',
        'seeds': list(seeds),
        'models': dict.fromkeys(models, model),
        'hardware': {
            'name': 'CPU',
            'peak_flops': 1e12,
            'mfu': 0.5
        },
    }
    if texts or has_gauntlet:
        study['evaluation'] = str(_evaluation(folder, texts, has_gauntlet))
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return plan_grid(read_study(path))


def _evaluation(
    folder: Path,
    texts: Sequence[str],
    has_gauntlet: bool,
) -> Path:
    content: dict[str, Any] = {
        'eval_loaders': [{
            'label': text
        } for text in texts],
        'icl_tasks': 'tasks.yaml',
    }
    if has_gauntlet:
        gauntlet = folder / 'synthetic.yaml'
        gauntlet.write_text(yaml.safe_dump(GAUNTLET, sort_keys=False))
        content['eval_gauntlet'] = str(gauntlet)
    path = folder / 'eval.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def make_results(
    grid: Grid,
    measure: Callable[[Run], Optional[Measured]],
) -> StudyResults:
    """What a study is to have measured.

    Args:
        grid: The study.
        measure: Of each run; None: it is not finished.
    """
    found = {run.name: measure(run) for run in grid.runs}
    return StudyResults(
        grid,
        {
            name: _result(grid[name], measured)
            for name, measured in found.items()
            if measured is not None
        },
    )


def _result(run: Run, measured: Measured) -> RunResult:
    loss = measured.train_loss
    if loss is None:
        loss = np.full(run.n_steps, measured.final_loss)
    answers = ModelResults(
        run.name,
        'synthetic',
        {
            task: {
                task: _part(accuracy)
            }
            for task, accuracy in zip(('first/0-shot',
                                       'second/0-shot'), measured.accuracies)
        },
    )
    evaluation = None
    if measured.losses or measured.accuracies:
        evaluation = Evaluation(measured.losses, answers)
    return RunResult(run, loss, evaluation, measured.load, measured.seconds)


def _part(accuracy: float) -> Part:
    n_right = round(accuracy * N_EXAMPLES)
    correct = np.arange(N_EXAMPLES) < n_right
    return Part('Accuracy', n_right / N_EXAMPLES, N_EXAMPLES, correct)


def plain_study(folder: Path, **settings: Any) -> StudyResults:
    """Two arms at three fractions of one duration, two seeds.

    Final losses are 3 - fraction for ``cpt``; ``upcycled`` is 0.1 above that at
    0.1, and 0.1, 0.3 below at 0.2 and 0.4. The second seed is 0.02 above the
    first, of ``upcycled`` 0.04.
    """
    grid = make_grid(
        folder,
        **{
            'durations': {
                'long': '10000ba'
            },
            'fractions': (0.1, 0.2, 0.4),
            'seeds': (1, 2),
            **settings
        },
    )
    leads = {0.1: 0.1, 0.2: -0.1, 0.4: -0.3}

    def measure(run: Run) -> Measured:
        place = run.place
        if place.arm is None:
            return Measured(3.5, seconds=100.0)
        is_second = place.seed == 2
        loss = 3 - place.budget + 0.02 * is_second
        if place.arm == 'upcycled':
            loss += leads[place.budget] + 0.02 * is_second
        return Measured(loss, seconds=10.0)

    return make_results(grid, measure)
