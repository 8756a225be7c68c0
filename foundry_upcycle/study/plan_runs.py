"""Plans the runs of a study: from its YAMLs to a grid."""

import os
from dataclasses import replace
from typing import Iterator, Mapping, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.planning.isoflop import steps_for_budget
from foundry_upcycle.study.base_yaml import BaseYaml, require_same_model
from foundry_upcycle.study.config import ModelGrid, Phase, Study
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.existing import ExistingCheckpoint
from foundry_upcycle.study.grid import Grid, Place, Run, evaluation_run_name
from foundry_upcycle.study.paper import paper_durations

__all__ = ['plan_grid']

# Farther apart, arms would not be compared at equal cost.
_FLOPS_TOLERANCE = 0.01
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
    if run.role == 'dense':
        return
    for top_k in run.base.phase.eval_top_k:
        _check_served(study, run, top_k)
        if top_k != run.shape.top_k:
            yield run.served(top_k)


def _check_served(study: Study, run: Run, top_k: int) -> None:
    problem, fix = '', 'remove it.'
    if study.evaluation is None:
        problem, fix = 'nothing is evaluated.', 'set evaluation, or remove it.'
    elif not run.base.is_upcycling:
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
    arms = {
        name: BaseYaml.read(f'{key}.arms.{name}', phase, study.variables)
        for name, phase in model.arms.items()
    }
    base = base or _first_dense(key, arms)
    for arm in arms.values():
        require_same_model(base, arm)
    starts = [
        _plan_start(key, model, base, name, start)
        for name, start in model.durations.items()
    ]
    yield from starts
    sweeps = {
        name: _plan_sweep(key, study, model, starts, name, arm)
        for name, arm in arms.items()
    }
    for sweep in sweeps.values():
        yield from sweep
    # All arms at a budget before the next: what there is can be compared.
    for start in starts:
        for budget in model.budgets:
            for name, arm in arms.items():
                for seed in study.seeds:
                    duration = start.place.duration
                    place = Place(model.name, duration, name, budget, seed)
                    sweep = sweeps[name]
                    # That one is the best of the sweep.
                    if not (sweep and place == sweep[0].place):
                        yield _plan_arm(key, model, start, arm, place, sweep)


def _first_dense(key: str, arms: Mapping[str, BaseYaml]) -> BaseYaml:
    """The YAML that says what checkpoints are models of."""
    for arm in arms.values():
        if not arm.is_upcycling:
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


def _plan_sweep(
    key: str,
    study: Study,
    model: ModelGrid,
    starts: Sequence[Run],
    name: str,
    arm: BaseYaml,
) -> tuple[Run, ...]:
    rates = arm.phase.learning_rates
    if len(rates) < 2:
        return ()
    start, budget = min(starts, key=lambda run: run.flops), model.budgets[0]
    if model.sweep_at is not None:
        duration, budget = model.sweep_at
        start = next(run for run in starts if run.place.duration == duration)
    duration = start.place.duration
    place = Place(model.name, duration, name, budget, study.seeds[0])
    n_steps = _matched_steps(key, model, start, arm, budget)
    return tuple(
        Run(
            f'{place.name}_lr{rate:g}',
            'sweep',
            place,
            arm,
            n_steps,
            (start.name, ),
            rate,
        ) for rate in rates
    )


def _plan_arm(
    key: str,
    model: ModelGrid,
    start: Run,
    arm: BaseYaml,
    place: Place,
    sweep: Sequence[Run],
) -> Run:
    rates = arm.phase.learning_rates
    return Run(
        place.name,
        'arm',
        place,
        arm,
        _matched_steps(key, model, start, arm, place.budget),
        (start.name, *(run.name for run in sweep)),
        rates[0] if len(rates) == 1 else None,
    )


def _matched_steps(
    key: str,
    model: ModelGrid,
    start: Run,
    arm: BaseYaml,
    budget: float,
) -> int:
    if model.unit == 'fraction':
        key, says = f'{key}.fractions', f'of the FLOPs of {start.name} it buys '
        ways = ['raise it', 'pretrain longer']
    else:
        key, says, ways = f'{key}.budgets', 'it buys ', ['raise it']
    flops = model.budget_flops(budget, start.flops)
    if flops < arm.flops_per_step:
        raise ConfigError(
            key,
            budget,
            f'{says}less than a step of {arm.path}.',
            f"{', or '.join(ways)}.",
        )
    n_steps, deviation = steps_for_budget(flops, arm.flops_per_step, 1)
    arm.require_warmup_shorter(key, budget, n_steps, says)
    if abs(deviation) > _FLOPS_TOLERANCE:
        raise ConfigError(
            key,
            budget,
            f'the nearest whole number of steps of {arm.path}, {n_steps}, '
            f'costs {deviation:+.1%} FLOPs.',
            f"{', '.join(ways)}, or lower global_train_batch_size.",
        )
    return n_steps
