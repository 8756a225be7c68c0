"""Reads what runs of a study measured, and which are finished."""

import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np

from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.gauntlet.results import ModelResults, read_results
from foundry_upcycle.study.grid import Grid, Run, evaluation_run_name
from foundry_upcycle.study.results import (
    Evaluation,
    ExpertLoad,
    RunResult,
    StudyResults,
    best_of,
)
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import shrunk_checkpoint
from foundry_upcycle.study.tracking import Tracking

__all__ = ['Measured', 'read_study_results']

_TRAIN_LOSS = 'metrics/train/LanguageCrossEntropy'
_EVAL_LOSS = re.compile(r'metrics/eval/(.+)/LanguageCrossEntropy')
_SHARE = re.compile(r'router/layer_(\d+)/expert_(\d+)/share')
# Hours, by the callback speed_monitor.
_TRAIN_TIME = 'time/train'
# Of a link's target: ep0-ba500-rank0.pt, ep0-ba500.
_STEP = re.compile(r'\bba(\d+)\b')


class Measured:
    """What the runs of a study have left in MLflow and in its folder.

    What is logged later is seen after ``refresh``.

    Args:
        grid: The study's runs.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        self.tracking = Tracking(grid.study.tracking_uri, grid.study.name)

    def refresh(self) -> None:
        """Reads MLflow again."""
        self.tracking.refresh()

    def n_steps(self, run: Run) -> int:
        """Steps after which the newest checkpoint was saved; 0 without one."""
        return max((step for step, _ in self._saved(run)), default=0)

    def is_trained(self, run: Run) -> bool:
        """Whether the last step is done, saved and logged.

        Of a checkpoint that is there, always; of what is only shrunk, whether
        it is.
        """
        if run.checkpoint is not None:
            return True
        if not run.weights.is_training:
            return self.is_shrunk(run)
        steps, _ = self._train_loss(run)
        if self.n_steps(run) != run.n_steps or not len(steps):
            return False
        return int(steps[-1]) == run.n_steps - 1

    def is_evaluated(self, run: Run) -> bool:
        """Whether everything is measured that the study's evaluation asks.

        Answers count that are newer than the last checkpoint: others, of an
        evaluation started by hand too early, are of an unfinished model.
        """
        return self._evaluation(run) is not None

    def final_loss(self, run: Run) -> float:
        """Of a run that is trained."""
        return self._trained(run).final_loss

    def best(self, sweep: tuple[Run, ...]) -> Optional[Run]:
        """The run of a sweep with the lowest final loss, once all are done.

        None before that, and if all diverged.
        """
        if not all(map(self.is_trained, sweep)):
            return None
        best = best_of([self._trained(run) for run in sweep])
        return None if best is None else best.run

    def source(self, run: Run) -> Optional[Run]:
        """The run whose mixture a run starts from, shrunk.

        None before a sweep has found it, and where the run starts otherwise.
        """
        if run.source is None:
            return None
        candidates = self.grid.candidates(run.source)
        return candidates[0] if len(candidates) == 1 else self.best(candidates)

    def is_shrunk(self, run: Run) -> bool:
        """Whether what a run starts from is there, of the source as it is."""
        source, path = self.source(run), Path(shrunk_checkpoint(self.grid, run))
        if source is None or not path.exists():
            return False
        # It is written whole, or not at all.
        return path.stat().st_mtime >= self._saved_at(source)

    def learning_rate(self, run: Run) -> Optional[float]:
        """The study's, or what its sweep has found.

        None before that, or where the YAML's own is taken.
        """
        sweep = self.grid.sweep_for(run)
        if not sweep:
            return run.learning_rate
        best = self.best(sweep)
        return None if best is None else best.learning_rate

    def result(self, run: Run) -> Optional[RunResult]:
        """What a run measured; None if it is not finished."""
        if not self.is_trained(run):
            return None
        trained = replace(
            self._trained(run),
            evaluation=self._evaluation(run),
        )
        if run.serves is not None:
            return trained  # What its training took is that run's.
        hours = self.tracking.last(run.name, _TRAIN_TIME)
        return replace(
            trained,
            expert_load=self._expert_load(run),
            seconds=None if hours is None else 3600 * hours,
        )

    def _trained(self, run: Run) -> RunResult:
        _, losses = self._train_loss(run)
        return RunResult(run, losses)

    def _train_loss(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """Steps, from 0, and losses.

        Composer logs the last loss of an epoch once more when that ends, as if
        of the step that follows.
        """
        steps, losses = self.tracking.history(run.weights.name, _TRAIN_LOSS)
        is_step = steps < run.n_steps
        return steps[is_step], losses[is_step]

    def _evaluation(self, run: Run) -> Optional[Evaluation]:
        """None if it is not complete, or none is asked for."""
        asked = self.grid.evaluation
        if asked is None:
            return None
        name = evaluation_run_name(run.name)
        losses = {
            match[1]: value
            for key in self.tracking.keys(name)
            if (match := _EVAL_LOSS.fullmatch(key))
            if (value := self.tracking.last(name, key)) is not None
        }
        tasks = self._answers(run)
        has_losses = asked.held_out_texts <= losses.keys()
        if not has_losses or tasks is None:
            return None
        return Evaluation(losses, tasks)

    def _saved(self, run: Run) -> list[tuple[int, float]]:
        """Step and time of what the links to newest checkpoints lead to."""
        folder = RunFiles(self.grid.study, run.weights.name).checkpoints
        return [(int(match[1]), link.lstat().st_mtime)
                for link in folder.glob('latest-*')
                if link.is_symlink()
                if (match := _STEP.search(os.readlink(link)))]

    def _saved_at(self, run: Run) -> float:
        """When the model was; never, where it is not."""
        if run.checkpoint is not None:
            return -math.inf
        if not run.weights.is_training:
            path = Path(shrunk_checkpoint(self.grid, run))
            return path.stat().st_mtime if path.exists() else math.inf
        return max((time for _, time in self._saved(run)), default=math.inf)

    def _answers(self, run: Run) -> Optional[ModelResults]:
        folder = RunFiles(self.grid.study, run.name).answers
        saved = self._saved_at(run)
        # One that goes on, or died, ends in .partial.
        files = [
            path for path in folder.glob('*.json')
            if path.stat().st_mtime >= saved
        ]
        if not files:
            return None
        try:
            return read_results(str(files[0]), run.name)
        except ConfigError as error:
            warnings.warn(
                f'{run.name} counts as not evaluated: {error}',
                UpcyclingWarning,
                stacklevel=2,
            )
            return None

    def _expert_load(self, run: Run) -> Optional[ExpertLoad]:
        keys = {}
        for key in self.tracking.keys(run.name):
            if match := _SHARE.fullmatch(key):
                keys[int(match[1]), int(match[2])] = key
        if not keys:
            return None
        layers = sorted({layer for layer, _ in keys})
        experts = sorted({expert for _, expert in keys})
        histories = {
            place: self.tracking.history(run.name, key)
            for place, key in keys.items()
        }
        steps_S, _ = histories[layers[0], experts[0]]
        return ExpertLoad(
            steps_S,
            tuple(layers),
            np.stack([[histories[layer, expert][1]
                       for expert in experts]
                      for layer in layers], ).transpose(2, 0, 1),
        )


def read_study_results(measured: Measured) -> StudyResults:
    """What the runs of a study have measured.

    Raises:
        ConfigError: Results can't be read.
    """
    grid = measured.grid
    found = {run.name: measured.result(run) for run in grid.runs}
    return StudyResults(
        grid,
        {
            name: result
            for name, result in found.items()
            if result is not None
        },
    )
