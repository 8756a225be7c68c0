"""What the runs of a study measured, read back from MLflow and from files."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Optional, Sequence

import numpy as np

from foundry_upcycle.gauntlet.gauntlets import Gauntlet
from foundry_upcycle.gauntlet.results import ModelResults
from foundry_upcycle.study.grid import Grid, Place, Run

__all__ = ['Evaluation', 'ExpertLoad', 'RunResult', 'StudyResults', 'best_of']

# The paper's final loss is a mean over this many steps ...
_FINAL_STEPS = 50
# ... which here are never more than this share of a run: with more, it would be
# a mean over warm-up too.
_FINAL_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class ExpertLoad:
    """Which share of the token-slots each expert got.

    Args:
        steps_S: Training steps at which it was logged.
        layers: Index of each block that is a mixture.
        shares_SLE: Share of each expert since the step before, (steps, layers,
            experts); 1 / E everywhere is an even load.
    """

    steps_S: np.ndarray
    layers: tuple[int, ...]
    shares_SLE: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What was measured after a run.

    Args:
        losses: Held-out text -> cross entropy in nats a token.
        tasks: Answers to in-context tasks.
    """

    losses: Mapping[str, float]
    tasks: ModelResults


@dataclass(frozen=True, eq=False)
class RunResult:
    """What one finished run measured.

    Args:
        run: What was run.
        train_loss: (steps,) cross entropy of each, in nats a token, without
            any auxiliary loss; none of a checkpoint that was there.
        evaluation: None of a run that is not evaluated (yet): of a sweep only
            the best is.
        expert_load: None of a dense model, or where it was not logged.
        seconds: What training took.
    """

    run: Run
    train_loss: np.ndarray
    evaluation: Optional[Evaluation] = None
    expert_load: Optional[ExpertLoad] = None
    seconds: Optional[float] = None

    @property
    def n_final_steps(self) -> int:
        """Steps that the final loss is a mean of."""
        share = int(len(self.train_loss) * _FINAL_SHARE)
        return max(1, min(_FINAL_STEPS, share))

    @property
    def final_loss(self) -> float:
        """Mean training cross entropy of the last 50 steps (paper, Figure 1).

        Deviation: of fewer, a fifth of the run, where that is less.
        """
        return float(self.train_loss[-self.n_final_steps:].mean())


def best_of(sweep: Sequence[RunResult]) -> Optional[RunResult]:
    """The run of a sweep with the lowest final loss; None if all diverged."""
    converged = [run for run in sweep if math.isfinite(run.final_loss)]
    return min(converged, key=lambda run: run.final_loss, default=None)


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured so far.

    Args:
        grid: The study's runs.
        results: Name of a run -> what it measured. Runs that are not trained
            to the end are not there.
    """

    grid: Grid
    results: Mapping[str, RunResult]

    @property
    def gauntlet(self) -> Optional[Gauntlet]:
        """How tasks are scored; None where they are not."""
        evaluation = self.grid.evaluation
        return None if evaluation is None else evaluation.gauntlet

    @cached_property
    def by_place(self) -> Mapping[Place, RunResult]:
        """Every place of the grid that has its result, with its evaluation."""
        found = {
            place: self.best(self.grid.candidates(place))
            for place in self.grid.places
        }
        return {
            place: best
            for place, best in found.items()
            if best is not None and
            (best.evaluation is not None or self.grid.evaluation is None)
        }

    def best(self, runs: Sequence[Run]) -> Optional[RunResult]:
        """What the best of a place's runs has measured.

        None while one of them is not trained, and where all of a sweep
        diverged.
        """
        results = [
            self.results[run.name] for run in runs if run.name in self.results
        ]
        if len(results) < len(runs):
            return None  # A sweep goes on.
        return results[0] if len(results) == 1 else best_of(results)
