"""Plans the runs of a study: from its YAMLs to a grid."""

import os
from dataclasses import replace
from typing import Iterator, Mapping, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.study.base_yaml import BaseYaml, require_same_model
from foundry_upcycle.study.config import ModelGrid, Phase, Study
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.existing import ExistingCheckpoint
from foundry_upcycle.study.grid import Grid, Place, Run, evaluation_run_name
from foundry_upcycle.study.paper import paper_durations
from foundry_upcycle.study.plan_arms import Arms
from foundry_upcycle.study.shrunk_start import ShrunkStart

__all__ = ['plan_grid']

# Bytes of a file's name, which is longest while it is written.
_MAX_NAME = 255
_UNFINISHED = '.' + 31 * 'x'


def plan_grid(study: Study) -> Grid:
    """Plans the runs of a study from its YAMLs.

    The FLOPs of a second phase are its budget, or that fraction of those that
    its dense start took, in whole steps. A sweep is run at ``sweep_at``, or at
    the cheapest pretraining and the smallest budget (paper, section 3), with
    the first seed.

    Raises:
        ConfigError: A YAML or the budget can't be used, an arm trains another
            model than the dense start, an ``eval_top_k`` can't be used, two
            runs would have one name, or no YAML has a variable that the study
            sets.
    """
    runs = [
        served for model in study.models for run in _plan_model(study, model)
        for served in _as_served(study, run)
    ]
    names = [run.name for run in runs]
    names += map(evaluation_run_name, names.copy())
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                'models',
                name,
                'two runs have this name.',
                'rename models, durations or arms: a run is named '
                'MODEL_DURATION_ARM_FRACTION_sSEED, and its evaluation has '
                '_eval behind it.',
            )
    _refuse_long_names(names)
    evaluation = study.evaluation
    grid = Grid(
        _with_served_arms(study, runs),
        tuple(runs),
        None if evaluation is None else EvaluationYaml.read(
            evaluation,
            study.variables,
        ),
    )
    _refuse_unknown_variables(grid)
    return grid


def _as_served(study: Study, run: Run) -> Iterator[Run]:
    """A run, and its model with each other K that its arm is evaluated with."""
    yield run
    if run.role in ('dense', 'source'):
        return
    for top_k in run.base.phase.eval_top_k:
        _check_served(study, run, top_k)
        if top_k != run.shape.top_k:
            yield run.served(top_k)


def _check_served(study: Study, run: Run, top_k: int) -> None:
    problem, fix = '', 'remove it.'
    if study.evaluation is None:
        problem, fix = 'nothing is evaluated.', 'set evaluation, or remove it.'
    elif not run.shape.n_moe_layers:
        problem = f'{run.base.path} trains a dense model.'
    elif top_k > run.shape.n_experts:
        problem = f'{run.base.path} has {run.shape.n_experts} experts.'
        fix = 'write how many of them a token goes to.'
    if problem:
        raise ConfigError(f'{run.base.key}.eval_top_k', top_k, problem, fix)


def _with_served_arms(study: Study, runs: Sequence[Run]) -> Study:
    """The study with an arm more for each K that another is served with."""
    models = []
    for model in study.models:
        arms = {
            str(run.place.arm): phase
            for name, phase in model.arms.items()
            for run in runs
            if (run.place.model, run.weights.place.arm) == (model.name, name)
        }
        models.append(replace(model, arms=arms))
    return replace(study, models=tuple(models))


def _refuse_long_names(names: Sequence[str]) -> None:
    for name in names:
        file = f'{name}.yaml{_UNFINISHED}'
        if len(os.fsencode(file)) > _MAX_NAME:
            raise ConfigError(
                'models',
                name,
                f'a run of this name has files of more than {_MAX_NAME} bytes '
                'in their names, which no file system has.',
                'write shorter names of models, durations and arms.',
            )


def _refuse_unknown_variables(grid: Grid) -> None:
    known = set().union(*(run.base.variables for run in grid.runs))
    if grid.evaluation is not None:
        known |= grid.evaluation.variables
    for name, value in grid.study.variables.items():
        if name not in known:
            raise ConfigError(
                f'variables.{name}',
                value,
                'no YAML of the study has it among its variables.',
                f"remove it; there are {', '.join(sorted(known)) or 'none'}.",
            )


def _plan_model(study: Study, model: ModelGrid) -> Iterator[Run]:
    key = f'models.{model.name}'
    paper_durations(model)  # Raises where the paper has no such model.
    base = None
    if model.pretrain is not None:
        base = _read_pretraining(key, study, model.pretrain)
    arms = _read_arms(key, study, model)
    base = base or _first_dense(key, arms)
    for arm in arms.values():
        require_same_model(base, arm)
    starts = [
        _plan_start(key, model, base, name, start)
        for name, start in model.durations.items()
    ]
    yield from starts
    yield from Arms(key, study.seeds, model, arms, starts).runs()


def _read_arms(
    key: str,
    study: Study,
    model: ModelGrid,
) -> dict[str, BaseYaml]:
    arms = {
        name: BaseYaml.read(f'{key}.arms.{name}', phase, study.variables)
        for name, phase in model.arms.items()
        if phase.shrunk is None
    }
    for name, phase in model.arms.items():
        if phase.shrunk is None:
            continue
        source = arms[phase.shrunk.arm]
        _check_shrunk(study, phase.shrunk, source)
        arms[name] = BaseYaml.read(
            f'{key}.arms.{name}',
            phase,
            study.variables,
            source,
        )
    return {name: arms[name] for name in model.arms}


def _check_shrunk(
    study: Study,
    shrunk: ShrunkStart,
    source: BaseYaml,
) -> None:
    if not source.is_upcycling:
        raise ConfigError(
            f'{shrunk.key}.arm',
            shrunk.arm,
            f'{source.path} trains a dense model.',
            'name an arm that upcycles.',
        )
    if not shrunk.heal and study.evaluation is None:
        raise ConfigError(
            f'{shrunk.key}.heal',
            shrunk.heal,
            'nothing is trained, and nothing is evaluated.',
            'set evaluation, or raise it.',
        )


def _first_dense(key: str, arms: Mapping[str, BaseYaml]) -> BaseYaml:
    """The YAML that says what checkpoints are models of."""
    for arm in arms.values():
        if arm.is_continued:
            return replace(arm, key=f'{key}.checkpoints')
    raise ConfigError(
        f'{key}.arms',
        list(arms),
        'none goes on with the dense model, and only the YAML of such an arm '
        'says what the checkpoint is a model of.',
        'add continued pretraining, a train YAML of mpt_causal_lm.',
    )


def _read_pretraining(key: str, study: Study, phase: Phase) -> BaseYaml:
    base = BaseYaml.read(f'{key}.pretrain', phase, study.variables)
    if len(phase.learning_rates) > 1:
        raise ConfigError(
            f'{key}.pretrain.lr',
            list(phase.learning_rates),
            'only arms are swept.',
            'write one learning rate.',
        )
    if base.is_upcycling:
        raise ConfigError(
            f'{key}.pretrain.yaml',
            str(base.path),
            'it upcycles a dense model; pretraining makes one.',
            'name a train YAML of mpt_causal_lm.',
        )
    return base


def _plan_start(
    key: str,
    model: ModelGrid,
    base: BaseYaml,
    name: str,
    start: str | ExistingCheckpoint,
) -> Run:
    if isinstance(start, str):
        return _plan_pretraining(key, model, base, name, start)
    place = Place(model.name, name)
    return Run(place.name, 'dense', place, base, 0, checkpoint=start)


def _plan_pretraining(
    key: str,
    model: ModelGrid,
    base: BaseYaml,
    name: str,
    text: str,
) -> Run:
    key = f'{key}.durations.{name}'
    duration = parse_duration(key, text)
    if duration.unit != base.duration.unit:
        raise ConfigError(
            key,
            text,
            f'{base.path} counts its max_duration in {base.duration.unit}.',
            f'write it in {base.duration.unit}.',
        )
    n_steps = round(duration.steps(base.tokens_per_step))
    if n_steps < 1:
        raise ConfigError(
            key,
            text,
            f'it is less than a step, of {base.tokens_per_step:,} tokens.',
            'raise it.',
        )
    base.require_warmup_shorter(key, text, n_steps)
    place = Place(model.name, name)
    rate = next(iter(base.phase.learning_rates), None)
    return Run(place.name, 'dense', place, base, n_steps, (), rate)
