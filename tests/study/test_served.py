"""Arms that are evaluated with other numbers of experts a token."""

from pathlib import Path
from typing import Any

import pytest
import small_study
from omegaconf import OmegaConf
from study.report.synthetic import Measured, make_grid, make_results
from study.study_files import StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study import measured
from foundry_upcycle.study.grid import Grid, Place
from foundry_upcycle.study.overview import plan_lines
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.report.report import write_report
from foundry_upcycle.study.tasks import list_tasks, state, waits_for

SERVED = 'upcycled, served at K = 1'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path).set('study', 'evaluation', 'eval.yaml')


def planned(files: StudyFiles, eval_top_k: Any) -> Grid:
    if eval_top_k is not None:
        files.set('study', 'models.m.arms.upcycled.eval_top_k', eval_top_k)
    return files.grid()


def test_the_same_model_is_evaluated_once_more(files: StudyFiles):
    before = planned(files, None)
    grid = planned(files, [1, 2])
    trained = grid['m_short_upcycled_0.5_s17']
    served = grid['m_short_upcycled_k1_0.5_s17']
    assert served.place == Place('m', 'short', SERVED, 0.5, 17)
    assert served.weights is served.serves is trained
    assert (served.flops, served.shape.top_k) == (trained.flops, 1)
    # Its own K, 2, it has anyway; and nothing more is trained.
    assert [run.name for run in grid.trainings
           ] == [run.name for run in before.trainings]
    assert len(grid.runs) == len(before.runs) + 4
    assert [*grid.study.models[0].arms] == ['cpt', 'upcycled', SERVED]
    lines = '\n'.join(plan_lines(grid))
    assert f'evaluated as well: {SERVED}' in lines
    assert '\n'.join(plan_lines(before)) in lines.replace(
        f'\nevaluated as well: {SERVED}',
        '',
    )


def test_yamls_differ_in_k_alone(files: StudyFiles):
    folder = files.folder / 'results' / 'yamls'
    write_yamls(planned(files, None))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_yamls(planned(files, [1, 3]))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items()
    new = sorted(after.keys() - before.keys())
    assert len(new) == 8 and all(name.endswith('_eval.yaml') for name in new)
    own, served = (
        OmegaConf.load(folder / f'm_long_upcycled{K}_1_s17_eval.yaml')
        for K in ('', '_k3')
    )
    (own_model, ), (served_model, ) = own.models, served.models
    assert served_model.load_path == own_model.load_path
    assert served_model.model.ffn_config.moe_top_k == 3
    served_model.model.ffn_config.moe_top_k = 2
    assert served_model.model == own_model.model
    assert served.run_name == 'm_long_upcycled_k3_1_s17_eval'
    answers = served.callbacks.icl_results.folder
    assert answers != own.callbacks.icl_results.folder


@pytest.mark.parametrize(
    'arm,value,problem',
    [
        ('upcycled', [9], 'upcycled.eval_top_k=9: .*upcycled.yaml has 8 expe'),
        ('upcycled', [0], 'upcycled.eval_top_k=0: '),
        ('upcycled', [True], 'upcycled.eval_top_k=True: it is not a number'),
        ('upcycled', [1, 1], 'upcycled.eval_top_k=1: it stands there twice'),
        ('upcycled', 1, 'upcycled.eval_top_k=1: it is missing, empty or of'),
        ('cpt', [1], 'cpt.eval_top_k=1: .*cpt.yaml trains a dense model'),
    ],
)
def test_refuses(files: StudyFiles, arm: str, value: Any, problem: str):
    files.set('study', f'models.m.arms.{arm}.eval_top_k', value)
    with pytest.raises(ConfigError, match=problem):
        files.grid()


def test_without_evaluation_there_is_none_at_another_k(tmp_path: Path):
    with pytest.raises(ConfigError, match='eval_top_k=1: nothing is evaluated'):
        planned(StudyFiles(tmp_path), [1])


def test_tasks_of_a_swept_arm(tmp_path: Path):
    path = small_study.write_study(tmp_path)
    content = OmegaConf.load(path)
    content.models.m.arms.upcycled.eval_top_k = [1]
    OmegaConf.save(content, path)
    grid = plan_grid(small_study.read_study(path))
    found = measured.Measured(grid)
    names = [task.name for task in list_tasks(grid)]
    ours = [task for task in list_tasks(grid) if task.run.serves is not None]
    slow, fast = 'lr0.0001', 'lr0.001'
    assert [task.name for task in ours] == [
        f'm_short_upcycled_k1_0.4_s17_{rate}_eval' for rate in (slow, fast)
    ]
    assert waits_for(found, ours[0]) == [
        f'm_short_upcycled_0.4_s17_{rate}' for rate in (slow, fast)
    ]
    for task in list_tasks(grid):
        if task.kind == 'train':
            loss = 2.0 if task.name.endswith(fast) else 3.0
            small_study.leave_training(grid, task.run, loss=loss)
    found.refresh()
    assert [state(found, task) for task in ours] == ['not needed', 'ready']
    small_study.leave_evaluation(grid, ours[1].run)
    found.refresh()
    assert state(found, ours[1]) == 'done'
    assert len(names) == len(set(names))
    results = measured.read_study_results(found)
    place = Place('m', 'short', SERVED, 0.4, 17)
    result = results.by_place[place]
    assert result.run.learning_rate == 1e-3
    assert result.expert_load is None and result.evaluation is not None


def test_report(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '1000ba'},
        fractions=(0.1, 0.4),
        seeds=(1, 2),
        sweep=(1e-4, 1e-3),
        texts=('headers', ),
        has_gauntlet=True,
        eval_top_k=[1, 2],
    )
    losses = {None: 3.0, 'cpt': 2.5, 'upcycled': 2.0, SERVED: 2.25}

    def measure(run: Any) -> Measured:
        loss = losses[run.place.arm] + 0.01 * (run.place.seed == 2)
        return Measured(loss, {'headers': loss}, (1 - loss / 4, ) * 2)

    out = tmp_path / 'report'
    text = write_report(make_results(grid, measure), out).read_text()
    rows = [
        line.split(' | ')
        for line in text.splitlines()
        if line.startswith(f'| long | {SERVED}')
    ]
    results, *_ = (row for row in rows if len(row) > 9 and row[2] == '0.4')
    (trained, *_) = (
        line.split(' | ')
        for line in text.splitlines()
        if line.startswith('| long | upcycled | 0.4')
    )
    assert results[2:7] == trained[2:7]  # Seeds, steps, tokens and FLOPs.
    # The final training loss is of its own K; the held-out one is its own.
    assert results[7] == '-' and results[8].startswith('2.255 (')
    assert f'{SERVED} against cpt (continued pretraining)' in text
    assert f'{SERVED} against cpt:\n  - loss on held-out headers' in text
    assert '"Served at K"' in text
    # A sweep is shown once.
    assert text.count('learning rate | final training loss') == 1
    assert SERVED in (out / 'figures/gains_small.svg').read_text()
    assert SERVED not in (out / 'figures/curves_small.svg').read_text()


def test_a_report_before_the_own_k_is_evaluated(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '1000ba'},
        fractions=(0.1, ),
        seeds=(1, ),
        arms=('upcycled', ),
        texts=('headers', ),
        eval_top_k=[1],
    )

    def measure(run: Any) -> Measured:
        own = run.place.arm == 'upcycled'
        return Measured(2.0, {} if own else {'headers': 2.0})

    text = write_report(
        make_results(grid, measure),
        tmp_path / 'report',
    ).read_text()
    assert f'long | {SERVED}' in text
    assert 'Not evaluated to the end' in text
