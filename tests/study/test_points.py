from pathlib import Path

import numpy as np
import pytest
from study.report.synthetic import Measured, make_grid, make_results
from study.study_files import CPT_STEP, GONE, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.laws import Point
from foundry_upcycle.planning.advice.model import Mixture
from foundry_upcycle.study.grid import Run
from foundry_upcycle.study.points import PAPER, paper_points, study_points
from foundry_upcycle.study.results import RunResult, StudyResults

# Of the arms, and what each seed adds.
LOSS = {'cpt': 2.0, 'cpt_other': 5.0, 'upcycled': 3.0}


def study(tmp_path: Path, losses: dict[str, float] = LOSS) -> StudyResults:
    grid = make_grid(
        tmp_path,
        durations={
            'short': '500ba',
            'long': '1000ba'
        },
        fractions=(0.2, 0.4),
        seeds=(1, 3),
        arms=tuple(LOSS),
    )

    def measure(run: Run) -> Measured | None:
        place = run.place
        if place.arm is None:
            return Measured()
        if place.arm not in losses or (place.budget, place.seed) == (0.4, 3):
            return None
        return Measured(losses[place.arm] + (place.seed or 0) / 10)

    return make_results(grid, measure)


def test_seeds_are_averaged_and_the_rest_is_the_runs_own(tmp_path):
    results = study(tmp_path)
    found = study_points(results, Mixture(8, 2))
    runs = {run.name: run for run in results.grid.runs}
    dense = runs['small_short']
    # 500 steps of 4 sequences of 32.
    assert dense.tokens == 64_000
    assert found['cpt'][:2] == (
        Point(
            'synthetic',
            'small short',
            0.2,
            dense.shape.n_total_params,
            64_000,
            12_800,
            pytest.approx(2.2),
        ),
        # The other seed is not finished.
        Point(
            'synthetic',
            'small short',
            0.4,
            dense.shape.n_total_params,
            64_000,
            25_600,
            pytest.approx(2.1),
        ),
    )
    upcycled = runs['small_long_upcycled_0.2_s1']
    of_long = found['upcycled'][2]
    assert (of_long.start, of_long.tokens) == ('small long', upcycled.tokens)
    assert of_long.loss == pytest.approx(3.2)
    assert len(found['upcycled']) == 4


def test_of_a_checkpoint_that_is_there(tmp_path):
    files = StudyFiles(tmp_path)
    for key in ('durations', 'pretrain', 'fractions'):
        files.set('study', f'models.m.{key}', GONE)
    base = {'path': str(tmp_path / 'base.pt'), 'tokens': 2.4e12}
    files.set('study', 'models.m.checkpoints', {'base': base})
    files.set('study', 'models.m.budgets', [100 * CPT_STEP])
    grid = files.grid()
    results = StudyResults(
        grid,
        {
            run.name: RunResult(run, np.full(run.n_steps, 2.0))
            for run in grid.trainings
        },
    )
    [cpt] = study_points(results, Mixture(8, 2))['cpt']
    # A step has 12 tokens; the model 1832 parameters.
    assert cpt == Point(
        grid.study.name,
        'm base',
        pytest.approx(1200 / 2.4e12),
        1832,
        2.4e12,
        1200,
        2.0,
    )


def test_runs_that_diverged_are_no_points(tmp_path):
    results = study(tmp_path, {**LOSS, 'cpt': float('nan')})
    with pytest.raises(
            ConfigError,
            match="--runs='synthetic': no run of continued pretraining is",
    ):
        study_points(results, Mixture(8, 2))


def test_no_arm_has_these_experts(tmp_path):
    with pytest.raises(
            ConfigError,
            match="--runs='synthetic': no run of upcycling to 4 experts, "
            r'top-2 is finished \(arms: cpt, cpt_other, upcycled\)',
    ):
        study_points(study(tmp_path), Mixture(4, 2))


def test_the_papers_points():
    cpt, upcycled = (paper_points()[arm] for arm in ('cpt', 'upcycled'))
    assert cpt[0] == Point(
        PAPER,
        '436M medium',
        0.1,
        436e6,
        43.6e9,
        4.3e9,
        2.197,
    )
    assert upcycled[-1] == Point(
        PAPER,
        '1.4B long',
        0.8,
        1.42e9,
        354e9,
        193e9,
        1.686,
    )
    assert len(cpt) == len(upcycled) == 23
