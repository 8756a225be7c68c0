"""The report of the paper's studies, with made-up results of all their runs."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from foundry_upcycle.gauntlet.figure import COLORS
from foundry_upcycle.gauntlet.gauntlets import FOLDER, Gauntlet
from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Run
from foundry_upcycle.study.paper import paper_durations
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.report.figures import Drawing, draw_figures
from foundry_upcycle.study.report.report import write_report
from foundry_upcycle.study.report.summary import Summary
from foundry_upcycle.study.results import (
    Evaluation,
    ExpertLoad,
    RunResult,
    StudyResults,
)

YAMLS = Path(__file__).parents[3] / 'yamls'
STUDIES = ('study_430m', 'study_1b')
N_EXAMPLES = 1000
UNITS = {
    f'FLOPs after the dense start ({prefix}FLOP)': unit
    for prefix, unit in (('E', 1e18), ('Z', 1e21))
}


@cache
def finished(name: str) -> StudyResults:
    """Every run is done, and measured about what the paper did."""
    study = read_study(YAMLS / f'{name}.yaml')
    # Of few tasks: those of the paper would take seconds to resample.
    variables = {'gauntlet': str(FOLDER), 'gauntlet_name': 'quickstart'}
    grid = plan_grid(replace(study, variables=variables))
    (model, ) = study.models
    papers = paper_durations(model)
    assert grid.evaluation is not None
    gauntlet = grid.evaluation.gauntlet
    assert gauntlet is not None

    def result(index: int, run: Run) -> RunResult:
        rng = np.random.default_rng(index)
        paper, place = papers[run.place.duration], run.place
        loss, score = 2.2, paper.dense_start
        if place.arm is not None:
            point = paper.arms[place.arm][place.budget]
            loss, score = point.final_loss, point.core_average
        steps = np.arange(1, run.n_steps + 1)
        losses = loss + 0.3 * (1 - steps / run.n_steps)
        return RunResult(
            run,
            losses + 0.02 * rng.standard_normal(run.n_steps),
            Evaluation({}, _answers(run.name, gauntlet, score, rng)),
            _load(run, rng) if run.base.is_upcycling else None,
            seconds=run.flops / 4e14,
        )

    results = {run.name: result(i, run) for i, run in enumerate(grid.runs)}
    return StudyResults(grid, results)


def _answers(
    label: str,
    gauntlet: Gauntlet,
    score: float,
    rng: np.random.Generator,
) -> ModelResults:
    tasks = {}
    for benchmark in gauntlet.benchmarks:
        chance = benchmark.random_baseline
        right = rng.random(N_EXAMPLES) < chance + score * (1 - chance)
        part = Part('Accuracy', float(right.mean()), N_EXAMPLES, right)
        tasks[benchmark.label] = {benchmark.label: part}
    return ModelResults(label, 'made up', tasks)


def _load(run: Run, rng: np.random.Generator) -> ExpertLoad:
    n_layers, n_experts = run.shape.n_layers, run.shape.n_experts
    shares = rng.dirichlet(np.full(n_experts, 50), (40, n_layers))
    steps = np.linspace(10, run.n_steps, 40).astype(int)
    return ExpertLoad(steps, tuple(range(n_layers)), shares)


@dataclass(frozen=True)
class Report:
    """The text of a report, and its figures as they were drawn."""

    study: StudyResults
    text: str
    figures: dict[str, Figure]


@pytest.fixture(scope='module', params=STUDIES)
def report(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    study, figures = finished(request.param), {}

    def draw(summary: Summary, serving: Any) -> list[Drawing]:
        drawings = list(draw_figures(summary, serving))
        figures.update((d.name, d.figure) for d in drawings)
        return drawings

    with pytest.MonkeyPatch.context() as patch:
        module = 'foundry_upcycle.study.report.report'
        patch.setattr(f'{module}.draw_figures', draw)
        patch.setattr(f'{module}.render', lambda *_: b'')  # That is slow.
        path = write_report(study, tmp_path_factory.mktemp('out'))
    return Report(study, path.read_text(), figures)


def test_losses_stand_at_the_flops_spent(report: Report):
    # Up to 3e21, where an int64 ends at 9.2e18.
    grid = report.study.grid
    (model, ) = grid.study.models
    panels = report.figures[f'curves_{model.name}'].axes
    for axes, duration in zip(panels, model.durations, strict=True):
        unit = UNITS[axes.get_xlabel()]
        for arm, color in zip(model.arms, COLORS):
            run = next(
                run for run in grid.runs
                if run.place.arm == arm and run.place.budget ==
                model.budgets[-1] and run.place.duration == duration
            )
            for line in axes.lines:
                if same_color(line.get_color(), color):
                    flops = np.asarray(line.get_xdata())
                    step = np.diff(flops)
                    assert step == pytest.approx(run.flops_per_step / unit)
                    assert flops[-1] == pytest.approx(run.flops / unit)
                    assert flops[0] > 0


def test_tables_hold_the_flops_spent(report: Report):
    runs = report.study.grid.runs
    total = sum(Fraction(run.n_steps) * run.flops_per_step for run in runs)
    assert total > 2**63
    assert f'| {float(total):.3e} | ' in report.text
    for run in runs:
        flops = float(Fraction(run.n_steps) * run.flops_per_step)
        assert f'| {run.name} | {run.n_steps:,} | {flops:.3e} |' in report.text


def test_nothing_in_figures_is_cut_off(report: Report):
    for name, figure in report.figures.items():
        figure.draw_without_rendering()
        drawn, whole = figure.get_tightbbox(), figure.bbox_inches
        assert whole.contains(*drawn.min), name
        assert whole.contains(*drawn.max), name
