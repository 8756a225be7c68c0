"""The runs of a study: what each trains, for how long, after which others."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Mapping, Optional

from foundry_upcycle.planning.flops import ModelShape
from foundry_upcycle.study.base_yaml import BaseYaml
from foundry_upcycle.study.config import ModelGrid, Study, number_text
from foundry_upcycle.study.evaluation_yaml import EvaluationYaml
from foundry_upcycle.study.existing import ExistingCheckpoint
from foundry_upcycle.study.shrunk_start import ShrunkStart

__all__ = ['Grid', 'Place', 'Role', 'Run', 'evaluation_run_name']

# The dense start; a run that only compares learning rates; a second phase; one
# that is only shrunk, of a budget that is none of the study's.
Role = Literal['dense', 'sweep', 'arm', 'source']
# What follows an arm's name where it is evaluated with another K than its own.
_SERVED = ', served at K = '


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
        n_steps: Optimizer steps; 0 of a checkpoint, and of what is shrunk and
            not trained.
        needs: Runs that must be finished before.
        learning_rate: None: the YAML's own, or, where the arm has a sweep,
            the one that the sweep finds.
        checkpoint: A dense start that the study does not train; its base is
            the YAML that goes on with it.
        serves: A run whose model this one only evaluates, with another K.
        served_top_k: That K.
        source: Where the run stands whose mixture it starts from, shrunk.
        source_flops: Of training that mixture and shrinking it.
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
    source: Optional[Place] = None
    source_flops: float = 0

    @property
    def is_training(self) -> bool:
        """Whether the study trains it: no checkpoint, not only evaluated."""
        return self.n_steps > 0 and self.serves is None

    @property
    def shrink_name(self) -> Optional[str]:
        """What names the shrinking that it starts with; None: it has none.

        The runs of a sweep have it in common, and so has what evaluates a model
        with another K.
        """
        if self.source is None:
            return None
        return f'{self.weights.place.name}_shrink'

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
        """Of a dense start; of a second phase, all that followed it."""
        if self.checkpoint is not None:
            given = self.checkpoint.flops
            return given or self.tokens * self.base.flops_per_token
        return self.source_flops + self.own_flops

    @property
    def own_flops(self) -> float:
        """Of its own training alone."""
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
        """What is to be trained."""
        return tuple(run for run in self.runs if run.is_training)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """What a report has results of, dense starts included."""
        runs = [run for run in self.runs if run.role != 'source']
        return tuple(dict.fromkeys(run.place for run in runs))

    @cached_property
    def shrunk(self) -> Mapping[str, ShrunkStart]:
        """Model and arm -> what it starts from, of those that are shrunk."""
        return {
            f'{run.place.model} {run.place.arm}': run.base.phase.shrunk
            for run in self.runs
            if run.base.phase.shrunk is not None and run.serves is None
        }

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
