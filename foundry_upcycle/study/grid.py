"""The runs of a study: what each trains, for how long, after which others."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Iterator, Literal, Mapping, Optional, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.planning.flops import ModelShape
from foundry_upcycle.planning.isoflop import steps_for_budget
from foundry_upcycle.study.base_yaml import BaseYaml, require_same_model
from foundry_upcycle.study.config import ModelGrid, Phase, Study, number_text
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.existing import ExistingCheckpoint
from foundry_upcycle.study.paper import paper_durations

__all__ = ['Grid', 'Place', 'Role', 'Run', 'evaluation_run_name', 'plan_grid']

# The dense start; a run that only compares learning rates; a second phase.
Role = Literal['dense', 'sweep', 'arm']
# Farther apart, arms would not be compared at equal cost.
_FLOPS_TOLERANCE = 0.01
# What follows an arm's name where it is evaluated with another K than its own.
_SERVED = ', served at K = '
# Bytes of a file's name, which is longest while it is written.
_MAX_NAME = 255
_UNFINISHED = '.' + 31 * 'x'


@dataclass(frozen=True)
class Place:
    """Where a run stands in the grid.

    Args:
        model: The dense model.
        duration: Name of its pretraining.
        arm: Name of the second phase, and with which K it is served if that is
            not its own; None of the dense start.
        budget: FLOPs of the second phase, in the unit of the model's budgets;
            0 of the dense start.
        seed: Of the second phase; None of the dense start.
    """

    model: str
    duration: str
    arm: Optional[str] = None
    budget: float = 0.0
    seed: Optional[int] = None

    @property
    def name(self) -> str:
        """What names the run, its files and its folder."""
        dense = f'{self.model}_{self.duration}'
        if self.arm is None:
            return dense
        arm = self.arm.replace(_SERVED, '_k')
        return f'{dense}_{arm}_{number_text(self.budget)}_s{self.seed}'


@dataclass(frozen=True)
class Run:
    """One training run, or a dense start that is there.

    Args:
        name: In MLflow, and of its files and its folder.
        role: What it is for.
        place: Where it stands. The runs of a sweep share theirs: the best of
            them becomes the grid's.
        base: The YAML that it is made of.
        n_steps: Optimizer steps; 0 of a checkpoint.
        needs: Runs that must be finished before.
        learning_rate: None: the YAML's own, or, where the arm has a sweep,
            the one that the sweep finds.
        checkpoint: A dense start that the study does not train; its base is
            the YAML that goes on with it.
        serves: A run whose model this one only evaluates, with another K.
        served_top_k: That K.
    """

    name: str
    role: Role
    place: Place
    base: BaseYaml
    n_steps: int
    needs: tuple[str, ...] = ()
    learning_rate: Optional[float] = None
    checkpoint: Optional[ExistingCheckpoint] = None
    serves: Optional['Run'] = None
    served_top_k: Optional[int] = None

    @property
    def weights(self) -> 'Run':
        """The run that trains its model."""
        return self.serves or self

    @property
    def shape(self) -> ModelShape:
        if self.served_top_k is not None:
            # In training it was what it was, and so are the FLOPs.
            return replace(self.base.shape, top_k=self.served_top_k)
        return self.base.shape

    def served(self, top_k: int) -> 'Run':
        """The same model, evaluated with another K."""
        place = replace(self.place, arm=f'{self.place.arm}{_SERVED}{top_k}')
        return replace(
            self,
            # Those of a sweep have more behind their place's.
            name=place.name + self.name.removeprefix(self.place.name),
            place=place,
            serves=self,
            served_top_k=top_k,
        )

    @property
    def tokens(self) -> float:
        if self.checkpoint is not None:
            given = self.checkpoint.tokens
            return given or self.flops / self.base.flops_per_token
        return self.n_steps * self.base.tokens_per_step

    @property
    def flops_per_step(self) -> int:
        return self.base.flops_per_step

    @property
    def flops(self) -> float:
        if self.checkpoint is not None:
            given = self.checkpoint.flops
            return given or self.tokens * self.base.flops_per_token
        return self.n_steps * self.flops_per_step


@dataclass(frozen=True)
class Grid:
    """All runs of a study.

    Args:
        study: What they are planned from.
        runs: In an order in which they can be run.
        evaluation: What is measured after each; None: nothing.
    """

    study: Study
    runs: tuple[Run, ...]
    evaluation: Optional[EvaluationYaml] = None

    def __getitem__(self, name: str) -> Run:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Run]:
        return {run.name: run for run in self.runs}

    @cached_property
    def trainings(self) -> tuple[Run, ...]:
        """What is to be trained: no checkpoints, nothing but evaluated."""
        return tuple(
            run for run in self.runs
            if run.checkpoint is None and run.serves is None
        )

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """What a report has results of, dense starts included."""
        return tuple(dict.fromkeys(run.place for run in self.runs))

    def model(self, run: Run) -> ModelGrid:
        """The model that a run is of."""
        name = run.place.model
        return next(m for m in self.study.models if m.name == name)

    def candidates(self, place: Place) -> tuple[Run, ...]:
        """The run of a place; several where a sweep chooses among them."""
        return tuple(run for run in self.runs if run.place == place)

    def sweep_for(self, run: Run) -> tuple[Run, ...]:
        """The runs among which a run's learning rate is found, if it is."""
        needed = (self[name] for name in run.needs)
        return tuple(other for other in needed if other.role == 'sweep')

    def dense_start(self, run: Run) -> Run:
        """The dense model that a second phase goes on from."""
        return self[Place(run.place.model, run.place.duration).name]


def evaluation_run_name(name: str) -> str:
    """The evaluation of a run, in MLflow and of its files."""
    return f'{name}_eval'


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
    served = dict.fromkeys(
        (run.place.model, run.serves.place.arm, run.place.arm)
        for run in runs
        if run.serves is not None
    )
    models = []
    for model in study.models:
        arms: dict[str, Phase] = {}
        for name, phase in model.arms.items():
            arms[name] = phase
            for of_model, arm, place_arm in served:
                if (of_model, arm) == (model.name, name):
                    arms[str(place_arm)] = phase
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
