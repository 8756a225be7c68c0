"""What is done of a study is told by what its runs have left."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from small_study import (
    LOSS,
    leave_answers,
    leave_evaluation,
    leave_training,
    log,
    small_grid,
)

from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.study import tracking
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured, read_study_results
from foundry_upcycle.study.results import RunResult

DENSE = 'm_short'
CPT = 'm_short_cpt_0.4_s17'
SWEEP = (
    'm_short_upcycled_0.4_s17_lr0.0001',
    'm_short_upcycled_0.4_s17_lr0.001',
)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return small_grid(tmp_path)


def test_names(grid: Grid):
    assert [run.name for run in grid.runs] == [DENSE, *SWEEP, CPT]


def test_nothing_is_done_at_first(grid: Grid):
    measured = Measured(grid)
    for run in grid.runs:
        assert measured.n_steps(run) == 0
        assert not measured.is_trained(run)
        assert not measured.is_evaluated(run)
        assert measured.result(run) is None
    assert measured.best(tuple(grid[name] for name in SWEEP)) is None


@pytest.mark.parametrize(
    'n_saved,n_logged,is_trained',
    [(100, 100, True), (80, 100, False), (100, 99, False)],
    ids=['all', 'not saved', 'not logged'],
)
def test_trained_is_saved_and_logged(
    grid: Grid,
    n_saved: int,
    n_logged: int,
    is_trained: bool,
):
    leave_training(grid, grid[DENSE], n_saved, n_logged)
    assert Measured(grid).n_steps(grid[DENSE]) == n_saved
    assert Measured(grid).is_trained(grid[DENSE]) is is_trained


def test_a_whole_epoch_logs_its_last_loss_once_more(grid: Grid):
    # Composer's trainer, at the end of an epoch: as if of a step 100.
    run = grid[DENSE]
    leave_training(grid, run, n_logged=0)
    log(grid, run.name, {LOSS: [*[4.0] * 80, *[3.0] * 20, 9.0]})
    result = Measured(grid).result(run)
    assert result is not None
    assert result.train_loss.tolist() == [4.0] * 80 + [3.0] * 20
    assert result.final_loss == Measured(grid).final_loss(run) == 3.0


def test_sharded_checkpoints_are_seen(grid: Grid):
    run = grid[DENSE]
    leave_training(grid, run, n_saved=80)
    folder = Path(grid.study.folder, 'checkpoints', run.name)
    (folder / 'latest-sharded-rank0').symlink_to('ep0-ba100')
    assert Measured(grid).n_steps(run) == 100


def test_a_resumed_run_has_each_step_once(grid: Grid):
    run = grid[CPT]
    assert run.n_steps == 40
    # Killed after step 30, resumed at 20.
    log(grid, run.name, {LOSS: [9.0] * 30})
    log(grid, run.name, {LOSS: [*[5.0] * 20, *[3.0] * 20]})
    leave_training(grid, run, n_logged=0)
    result = Measured(grid).result(run)
    assert result is not None
    assert result.train_loss.tolist() == [5.0] * 20 + [3.0] * 20
    # A fifth of 40 steps.
    assert result.n_final_steps == 8
    assert result.final_loss == pytest.approx(3.0)


def test_final_loss_is_over_a_fifth_or_50_steps(grid: Grid):
    # Of 100 steps 20, of 300 steps 50.
    short = np.array([*[7.0] * 79, 5.0, *[3.0] * 20])
    long = np.array([*[7.0] * 249, 5.0, *[3.0] * 50])
    for losses, n_steps in ((short, 20), (long, 50)):
        result = RunResult(grid[DENSE], losses)
        assert result.n_final_steps == n_steps
        assert result.final_loss == pytest.approx(3.0)


@pytest.mark.parametrize('missing', ['losses', 'answers', None])
def test_evaluated_is_losses_and_answers(grid: Grid, missing: str | None):
    run = grid[DENSE]
    leave_training(grid, run)
    if missing == 'losses':
        leave_answers(grid, run)
    elif missing == 'answers':
        leave_evaluation(grid, run)
        path = leave_answers(grid, run)
        path.rename(f'{path}.partial')
    else:
        leave_evaluation(grid, run)
    assert Measured(grid).is_evaluated(run) is (missing is None)


def test_the_best_of_a_sweep(grid: Grid):
    sweep = tuple(grid[name] for name in SWEEP)
    leave_training(grid, sweep[0], loss=4.0)
    assert Measured(grid).best(sweep) is None
    leave_training(grid, sweep[1], loss=3.5)
    assert Measured(grid).best(sweep) is sweep[1]


def test_another_store(tmp_path: Path):
    pytest.importorskip('sqlalchemy')  # Not in mlflow-skinny.
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    grid = small_grid(tmp_path, tracking_uri=uri)
    run = grid[DENSE]
    log(grid, run.name, {LOSS: [9.0] * 30})
    leave_training(grid, run)
    leave_evaluation(grid, run)
    measured = Measured(grid)
    assert measured.is_trained(run)
    assert measured.is_evaluated(run)
    assert measured.final_loss(run) == 3.0
    assert not (tmp_path / 'results' / 'mlruns').exists()


def test_an_experiment_is_made_once(grid: Grid):
    tracking = Measured(grid).tracking
    tracking.make_experiment()
    tracking.make_experiment()
    log(grid, 'm_short', {LOSS: [3.0]})
    (found, ) = MlflowClient(grid.study.tracking_uri).search_experiments(
        filter_string=f"name = '{grid.study.name}'",
    )
    assert found.lifecycle_stage == 'active'
    assert tracking.last('m_short', LOSS) == 3.0


def test_a_folder_is_read_as_mlflow_reads_it(grid: Grid, monkeypatch):
    run = grid[SWEEP[0]]
    log(grid, run.name, {LOSS: [9.0] * 30})
    leave_training(grid, run, loss=math.nan)
    leave_evaluation(grid, run)
    ours = Measured(grid)
    monkeypatch.setattr(tracking, 'store_folder', lambda uri: None)
    theirs = Measured(grid)
    for name in (run.name, f'{run.name}_eval', 'no run'):
        keys = sorted(ours.tracking.keys(name))
        assert keys == sorted(theirs.tracking.keys(name))
        for key in (*keys, 'no metric'):
            for mine, other in zip(
                    ours.tracking.history(name, key),
                    theirs.tracking.history(name, key),
                    strict=True,
            ):
                np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize('uri', ['{}/my #1 runs', 'file://{}/my%20runs'])
def test_folders_that_mlflow_finds(tmp_path: Path, uri: str):
    grid = small_grid(tmp_path, tracking_uri=uri.format(tmp_path))
    leave_training(grid, grid[DENSE])
    assert Measured(grid).is_trained(grid[DENSE])


def test_what_was_deleted_in_mlflow_is_gone(grid: Grid):
    leave_training(grid, grid[DENSE])
    leave_training(grid, grid[SWEEP[0]])
    client = MlflowClient(grid.study.tracking_uri)
    experiment = client.get_experiment_by_name(grid.study.name)
    (run, ) = client.search_runs(
        [experiment.experiment_id],
        f"tags.run_name = '{DENSE}'",
    )
    client.delete_run(run.info.run_id)
    measured = Measured(grid)
    assert not measured.is_trained(grid[DENSE])
    assert measured.is_trained(grid[SWEEP[0]])
    client.delete_experiment(experiment.experiment_id)
    measured.refresh()
    assert not measured.is_trained(grid[SWEEP[0]])


def test_a_first_value_that_is_being_written(grid: Grid):
    run = grid[DENSE]
    leave_training(grid, run)
    root = Path(grid.study.tracking_uri)
    (path, ) = root.glob(f'*/*/metrics/{LOSS}')
    path.write_text('17642')
    assert not Measured(grid).is_trained(run)


def test_seconds_are_those_of_training(grid: Grid):
    leave_training(grid, grid[DENSE])
    result = Measured(grid).result(grid[DENSE])
    assert result is not None and result.seconds is None
    # speed_monitor logs hours.
    log(grid, DENSE, {'time/train': [0.25, 0.5]})
    result = Measured(grid).result(grid[DENSE])
    assert result is not None and result.seconds == 1800


def test_a_sweep_that_diverged_has_no_best(grid: Grid):
    sweep = tuple(grid[name] for name in SWEEP)
    for run in sweep:
        leave_training(grid, run, loss=float('nan'))
    assert Measured(grid).best(sweep) is None
    assert sweep[0].place not in read_study_results(Measured(grid)).by_place


def test_answers_of_an_unfinished_model_do_not_count(grid: Grid):
    run = grid[DENSE]
    leave_training(grid, run, n_saved=20)
    leave_evaluation(grid, run)
    leave_training(grid, run, n_logged=0)  # The last checkpoint.
    answers = leave_answers(grid, run)
    os.utime(answers, (1e9, 1e9))
    assert not Measured(grid).is_evaluated(run)
    leave_answers(grid, run)
    assert Measured(grid).is_evaluated(run)


def test_a_store_that_can_not_be_read(grid: Grid):
    measured = Measured(grid)
    leave_training(grid, grid[DENSE])
    assert measured.is_trained(grid[DENSE])
    shutil.rmtree(grid.study.tracking_uri)
    measured.refresh()
    with pytest.raises(ConfigError, match="tracking_uri=.*it can't be read"):
        measured.is_trained(grid[DENSE])


def test_a_store_that_mlflow_does_not_know(tmp_path: Path):
    grid = small_grid(tmp_path, tracking_uri='foo://bar')
    with pytest.raises(ConfigError, match="tracking_uri='foo://bar': it can't"):
        Measured(grid)


def test_a_run_that_diverged_is_not_the_best(grid: Grid):
    sweep = tuple(grid[name] for name in SWEEP)
    leave_training(grid, sweep[0], loss=float('nan'))
    leave_training(grid, sweep[1], loss=3.5)
    assert Measured(grid).best(sweep) is sweep[1]
    leave_evaluation(grid, sweep[1])
    found = read_study_results(Measured(grid)).by_place[sweep[0].place]
    assert found.run is sweep[1]


def test_results_of_a_finished_study(grid: Grid):
    for run in grid.runs:
        leave_training(grid, run, loss=3.5 if '0.001' in run.name else 4.0)
    for name in (DENSE, CPT, SWEEP[1]):
        leave_evaluation(grid, grid[name])
    results = read_study_results(Measured(grid))
    assert results.results.keys() == {run.name for run in grid.runs}
    assert [result.run.name
            for result in results.by_place.values()] == [DENSE, SWEEP[1], CPT]
    best = results.by_place[grid[SWEEP[1]].place]
    assert best.evaluation is not None
    assert best.evaluation.losses == {
        'documentation': 4.5,
        'headers': 4.5,
        'python': 4.5
    }
    part = best.evaluation.tasks.tasks['brackets/0-shot']['brackets/0-shot']
    assert part.accuracy == 0.5
    load = best.expert_load
    assert load is not None
    assert load.steps_S.tolist() == [0]
    assert load.layers == (0, 1, 2)
    assert load.shares_SLE.shape == (1, 3, 8)
    # 0.001 (10 expert + layer).
    expected = 0.001 * (10 * np.arange(8) + np.arange(3)[:, None])
    np.testing.assert_allclose(load.shares_SLE[0], expected)
    assert results.results[CPT].expert_load is None


def test_a_place_has_no_result_before_its_evaluation(grid: Grid):
    leave_training(grid, grid[DENSE])
    leave_training(grid, grid[SWEEP[0]])
    leave_evaluation(grid, grid[SWEEP[0]])
    # The dense start is not evaluated, the sweep not finished.
    assert not read_study_results(Measured(grid)).by_place
    leave_evaluation(grid, grid[DENSE])
    assert [*read_study_results(Measured(grid)).by_place] == [grid[DENSE].place]


def test_damaged_answers_are_asked_for_again(grid: Grid):
    leave_training(grid, grid[DENSE])
    leave_evaluation(grid, grid[DENSE])
    leave_answers(grid, grid[DENSE]).write_text('{')
    match = 'm_short counts as not evaluated: .*m_short/checkpoint.json.*JSON'
    with pytest.warns(UpcyclingWarning, match=match):
        assert not Measured(grid).is_evaluated(grid[DENSE])
    with pytest.warns(UpcyclingWarning, match=match):
        assert read_study_results(Measured(grid)
                                 ).results[DENSE].evaluation is None


def test_only_what_is_asked_for_is_read(grid: Grid):
    # A long run logs dozens of metrics a step, of which a study needs the loss.
    leave_training(grid, grid[DENSE])
    log(grid, DENSE, {'throughput/tokens_per_sec': [1.0]})
    (other, ) = Path(grid.study.tracking_uri).rglob('tokens_per_sec')
    other.write_text('nothing that can be read\n')
    result = read_study_results(Measured(grid)).results[DENSE]
    assert len(result.train_loss) == 100


def test_what_is_being_logged_is_read_up_to_there(grid: Grid):
    leave_training(grid, grid[DENSE], n_logged=99)
    (losses, ) = Path(grid.study.tracking_uri).rglob('LanguageCrossEntropy')
    measured = Measured(grid)
    for written, is_trained in ('1795800125778 3.', False), ('5 99\n', True):
        with losses.open('a') as file:
            file.write(written)
        measured.refresh()
        assert measured.is_trained(grid[DENSE]) is is_trained
    assert measured.final_loss(grid[DENSE]) == pytest.approx((19 * 3 + 3.5) / 20
                                                            )
