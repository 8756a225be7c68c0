"""Arms that train another arm's mixture on, shrunk, at equal FLOPs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_study
from omegaconf import OmegaConf
from study.report.synthetic import Measured as MeasuredRun
from study.report.synthetic import make_grid, make_results
from study.study_files import CPT_STEP, GONE, UPCYCLED_STEP, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid, Place
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.overview import plan_lines, status_lines
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.preflight import check_runs
from foundry_upcycle.study.report.report import write_report
from foundry_upcycle.study.report.serving import Serving, Throughput, arm_costs
from foundry_upcycle.study.report.summary import Summary
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import shrunk_checkpoint
from foundry_upcycle.study.tasks import command, list_tasks, state, waits_for

# A token of the mixture in a forward pass: 2 * 2728 active, and 256.
TEACHER = 2 * 2728 + 256
# A step of 12 tokens of the dense model, and the teacher's forward pass.
HEALED_STEP = CPT_STEP + 12 * TEACHER
SHRINK = {'arm': 'upcycled', 'dense': 'mean', 'heal': 0.25}
HEALED = 'm_short_healed_0.5_s17'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    """An arm ``healed``, of the YAML of continued pretraining, distilled."""
    files = StudyFiles(tmp_path).set('study', 'evaluation', 'eval.yaml')
    files.contents['heal'] = files.contents['cpt'].copy()
    files.set(
        'heal', 'algorithms', {
            'upcycle_distill': {
                'teacher': 'by_hand.pt'
            },
        }
    )
    files.set('study', 'models.m.durations', {'short': '800ba'})
    return add(files, 'healed', SHRINK)


def add(files: StudyFiles, name: str, shrink: Any, **arm: Any) -> StudyFiles:
    value = {'yaml': 'heal.yaml', 'shrink': shrink, **arm}
    return files.set('study', f'models.m.arms.{name}', value)


def test_an_arm_costs_what_the_others_do(files: StudyFiles):
    grid = files.grid()
    budget = 400 * CPT_STEP
    # 0.75 of it buys a mixture that is a run of its own.
    source = grid['m_short_upcycled_0.375_s17']
    assert source.role == 'source'
    assert source.n_steps == round(0.75 * budget / UPCYCLED_STEP) == 206
    healed = grid[HEALED]
    assert healed.source == source.place
    left = budget - 206 * UPCYCLED_STEP
    assert healed.n_steps == round(left / HEALED_STEP)
    assert healed.own_flops == healed.n_steps * HEALED_STEP
    assert healed.flops == source.flops + healed.own_flops
    for run in grid.runs:
        if run.role == 'arm':
            whole = run.place.budget * 800 * CPT_STEP
            assert run.flops == pytest.approx(whole, rel=0.01)
    # It is planned before what starts from it, and not evaluated.
    names = [task.name for task in list_tasks(grid)]
    order = [
        source.name,
        f'{HEALED}_shrink',
        HEALED,
        f'{HEALED}_eval',
    ]
    assert [name for name in names if name in order] == order
    assert f'{source.name}_eval' not in names


def test_a_budget_of_the_study_is_trained_once(files: StudyFiles):
    # Half of 1.0 is 0.5, which the arm upcycled has anyway.
    half = {**SHRINK, 'heal': 0.5}
    before = [run.name for run in files.grid().runs]
    grid = add(files, 'half', half).grid()
    assert grid['m_short_half_1_s17'].source == Place(
        'm',
        'short',
        'upcycled',
        0.5,
        17,
    )
    new = [run.name for run in grid.runs if run.name not in before]
    assert new == [
        'm_short_upcycled_0.25_s17',
        'm_short_half_0.5_s17',
        'm_short_half_1_s17',
    ]


def test_without_a_teacher_there_is_none_to_pay_for(files: StudyFiles):
    del files.contents['heal']['algorithms']
    assert files.grid()[HEALED].own_flops % CPT_STEP == 0


def test_calibration_costs_two_forward_passes(files: StudyFiles):
    before = files.grid()[HEALED]
    add(
        files, 'healed', {
            **SHRINK,
            'dense': 'weighted',
            'calibrate': 'texts',
            'tokens': 10,
        }
    )
    after = files.grid()[HEALED]
    assert after.source_flops - before.source_flops == 2 * 10 * TEACHER


def test_a_varying_k_teaches_with_its_largest(files: StudyFiles):
    files.set(
        'upcycled',
        'model.ffn_config.moe_top_k',
        {'sample': {
            1: 0.5,
            2: 0.5
        }},
    )
    step = files.grid()[HEALED].base.flops_per_step
    assert step == HEALED_STEP


@pytest.mark.parametrize(
    'shrink,name,ffn',
    [
        (
            {
                'dense': 'concat',
                'keep': 2,
                'by': 'merge'
            },
            'mpt_causal_lm',
            {
                'ffn_type': 'mptglu',
                'ffn_hidden_size': 32,
                'ffn_act_fn': None
            },
        ),
        (
            {
                'experts': 4,
                'by': 'merge'
            },
            'upcycled_mpt',
            {
                'ffn_type': 'upcycled_dmoe',
                'ffn_hidden_size': 16,
                'moe_num_experts': 4,
                'moe_top_k': 2
            },
        ),
    ],
)
def test_yamls(files: StudyFiles, shrink: Any, name: str, ffn: Any):
    shrink = {'arm': 'upcycled', 'heal': 0.25, **shrink}
    grid = add(files, 'healed', shrink, lr=2e-3).grid()
    write_yamls(grid)
    check_runs_of(grid)
    run, folder = grid[HEALED], grid.study.folder
    train = OmegaConf.load(RunFiles(grid.study, HEALED).train_yaml)
    assert train.model.name == name
    assert train.model.ffn_config == ffn
    assert train.load_path == shrunk_checkpoint(grid, run)
    assert train.load_weights_only is True
    assert train.algorithms.upcycle_distill.teacher == str(
        folder / 'checkpoints/m_short_upcycled_0.375_s17/latest-rank0.pt',
    )
    assert train.max_duration == f'{run.n_steps}ba'
    assert train.optimizer.lr == 2e-3
    (model, ) = OmegaConf.load(RunFiles(grid.study, HEALED).eval_yaml).models
    assert model.load_path == str(
        folder / f'checkpoints/{HEALED}/latest-rank0.pt',
    )
    assert model.model.ffn_config == ffn
    # How it is shrunk is part of what it starts from.
    calibrated = {'by': 'load', 'calibrate': 'texts', 'tokens': 10}
    changed = add(files, 'healed', {**shrink, **calibrated}).grid()
    assert shrunk_checkpoint(changed, changed[HEALED]) != train.load_path


def check_runs_of(grid: Grid) -> None:
    """What Foundry says; there are no tasks to evaluate."""
    check_runs(replace(grid, evaluation=None))


def test_sharded(files: StudyFiles):
    for file in ('dense', 'cpt', 'upcycled', 'heal'):
        files.set(file, 'fsdp_config', {'state_dict_type': 'sharded'})
    grid = files.grid()
    found, task = Measured(grid), next(
        task for task in list_tasks(grid) if task.kind == 'shrink'
    )
    moe, out, *options = command(found, task)[2:]
    assert moe.endswith('m_short_upcycled_0.375_s17/latest-sharded-rank0')
    assert not out.endswith('.pt') and options[-3:-1] == ['--format', 'dcp']
    write_yamls(grid)
    train = OmegaConf.load(RunFiles(grid.study, HEALED).train_yaml)
    assert train.load_path == out
    assert train.algorithms.upcycle_distill.teacher == moe


def test_shrunk_alone_is_evaluated_and_not_trained(files: StudyFiles):
    alone = {**SHRINK, 'heal': 0}
    grid = add(files, 'alone', alone).grid()
    run = grid['m_short_alone_0.5_s17']
    assert run.source == Place('m', 'short', 'upcycled', 0.5, 17)
    assert (run.n_steps, run.is_training) == (0, False)
    assert run.flops == grid['m_short_upcycled_0.5_s17'].flops
    write_yamls(grid)
    files_of_run = RunFiles(grid.study, run.name)
    assert not files_of_run.train_yaml.exists()
    (model, ) = OmegaConf.load(files_of_run.eval_yaml).models
    assert model.load_path == shrunk_checkpoint(grid, run)
    lines = '\n'.join(plan_lines(grid))
    assert 'm alone: upcycled, shrunk (--dense mean) and not trained' in lines


def test_a_mixture_is_served_at_other_k(files: StudyFiles):
    shrink = {'arm': 'upcycled', 'experts': 4, 'by': 'merge', 'heal': 0}
    grid = add(files, 'four', shrink, eval_top_k=[1, 2]).grid()
    served = grid['m_short_four_k1_0.5_s17']
    assert served.weights == grid['m_short_four_0.5_s17']
    assert (served.shape.n_experts, served.shape.top_k) == (4, 1)
    write_yamls(grid)
    (model,
    ) = OmegaConf.load(RunFiles(grid.study, served.name).eval_yaml, ).models
    assert model.load_path == shrunk_checkpoint(grid, served.weights)
    assert model.model.ffn_config.moe_top_k == 1
    # It is shrunk once.
    names = [task.name for task in list_tasks(grid)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    'shrink,problem',
    [
        ({
            'arm': 'cpt'
        }, "shrink.arm='cpt': .*cpt.yaml trains a dense model"),
        ({
            'arm': 'healed'
        }, "shrink.arm='healed': the model has no such arm, or it is shrunk"),
        ({
            'heal': 1
        }, 'shrink.heal=1: it is not a share'),
        ({
            'heal': 0.0001
        }, 'shrink.heal=0.0001: of x0.5 it leaves less than a step'),
        ({
            'heal': 0.01
        }, 'shrink.heal=0.01: of x0.5 it leaves 2 steps.*no more than the wa'),
        ({
            'dense': 'median'
        }, "shrink.dense='median': a mixture is not shrunk so"),
        ({
            'dense': 'weighted'
        }, 'healed.shrink: --calibration=None: weighted is of experts at work'),
        ({
            'dense': 'concat',
            'keep': 9,
            'by': 'merge'
        }, 'healed.shrink: --keep=9: the mixture has 8 experts'),
        ({
            'dense': None,
            'experts': 1,
            'by': 'merge'
        }, 'healed.shrink: --experts=1: a token goes to 2 experts'),
        ({
            'tokens': 0
        }, 'shrink.tokens=0'),
        ({
            'dense': 'weighted',
            'calibrate': 'texts',
            'heal': 0
        }, r'shrink.heal=0: at x0.5 all steps and the .* cost \+\d.*%'),
        ({
            'factor': 2
        }, 'shrink.factor=2: there is no such setting'),
    ],
)
def test_refuses(files: StudyFiles, shrink: Any, problem: str):
    with pytest.raises(ConfigError, match=problem):
        add(files, 'healed', {**SHRINK, **shrink}).grid()


def test_refuses_what_the_study_sets_itself(files: StudyFiles):
    overrides = {'model': {'ffn_config': {'ffn_hidden_size': 5}}}
    add(files, 'healed', SHRINK, overrides=overrides)
    with pytest.raises(ConfigError, match='overrides.model.ffn_config=.*foll'):
        files.grid()
    add(
        files,
        'healed',
        SHRINK,
        overrides={'algorithms': {
            'upcycle_distill': {
                'teacher': 'mine.pt'
            }
        }}
    )
    with pytest.raises(ConfigError, match='teacher=.*the study sets it itself'):
        write_yamls(files.grid())


def test_refuses_a_teacher_whose_cost_is_not_counted(files: StudyFiles):
    settings = {'upcycle_distill': {'teacher': 'moe.pt'}}
    files.set('cpt', 'algorithms', settings)
    with pytest.raises(ConfigError, match='cpt.yaml: algorithms.upcycle_dis'):
        files.grid()


def test_refuses_learning_rates_where_nothing_is_trained(files: StudyFiles):
    add(files, 'healed', {**SHRINK, 'heal': 0}, lr=1e-3)
    with pytest.raises(ConfigError, match='heal=0: nothing is trained, and'):
        files.grid()
    add(files, 'healed', {**SHRINK, 'heal': 0})
    files.set('study', 'evaluation', GONE)
    with pytest.raises(ConfigError, match='heal=0: .*nothing is evaluated'):
        files.grid()


def test_refuses_texts_that_are_not_there(files: StudyFiles):
    shrink = {**SHRINK, 'dense': 'weighted', 'calibrate': 'no', 'tokens': 10}
    grid = add(files, 'healed', shrink).grid()
    write_yamls(grid)
    with pytest.raises(ConfigError, match="shrink.calibrate='no': there is no"):
        check_runs_of(grid)


def test_refuses_a_model_that_the_mixture_does_not_become(files: StudyFiles):
    files.set('heal', 'model.d_model', 16)
    with pytest.raises(ConfigError, match='heal.yaml: model: d_model=16'):
        files.grid()
    files.set('heal', 'model.d_model', 8).set('heal', 'model.n_heads', 4)
    grid = files.grid()
    write_yamls(grid)
    with pytest.raises(ConfigError, match='heal.yaml: model.n_heads=4'):
        check_runs_of(grid)


def test_tasks_wait_for_one_another(tmp_path: Path):
    path = small_study.write_study(tmp_path)
    content = OmegaConf.load(path)
    arms = content.models.m.arms
    yaml = str(small_study.YAMLS / 'quickstart_heal.yaml')
    # Of the swept run, whose learning rate is found first.
    shrink = {'arm': 'upcycled', 'dense': 'mean', 'heal': 0}
    arms.alone = {'yaml': yaml, 'shrink': shrink}
    arms.healed = {'yaml': yaml, 'shrink': {**shrink, 'heal': 0.4}}
    content.models.m.durations.short = '300ba'
    OmegaConf.save(content, path)
    grid = small_study.plan_grid(small_study.read_study(path))
    found = Measured(grid)
    alone, healed = (f'm_short_{arm}_0.4_s17' for arm in ('alone', 'healed'))
    tasks = {task.name: task for task in list_tasks(grid)}
    slow, fast = (
        f'm_short_upcycled_0.4_s17_lr{r}' for r in ('0.0001', '0.001')
    )

    def states() -> dict[str, str]:
        found.refresh()
        names = (
            f'{alone}_shrink',
            f'{alone}_eval',
            f'{healed}_shrink',
            healed,
        )
        return {name: state(found, tasks[name]) for name in names}

    assert set(states().values()) == {'waits'}
    assert waits_for(found, tasks[f'{alone}_shrink']) == [slow, fast]
    assert waits_for(found, tasks[healed])[-1] == f'{healed}_shrink'
    for name in ('m_short', slow):
        small_study.leave_training(grid, grid[name])
    small_study.leave_training(grid, grid[fast], loss=2.0)
    small_study.leave_training(grid, grid['m_short_upcycled_0.24_s17'])
    assert [*states().values()] == ['ready', 'waits', 'ready', 'waits']
    words = command(found, tasks[f'{alone}_shrink'])
    assert words[:2] == ['foundry-upcycle', 'shrink']
    assert words[2].endswith(f'checkpoints/{fast}/latest-rank0.pt')
    assert words[3] == shrunk_checkpoint(grid, grid[alone])
    for name in (alone, healed):
        shrunk = Path(shrunk_checkpoint(grid, grid[name]))
        shrunk.parent.mkdir(exist_ok=True)
        shrunk.touch()
    assert [*states().values()] == ['done', 'ready', 'done', 'ready']
    small_study.leave_evaluation(grid, grid[alone])
    assert states()[f'{alone}_eval'] == 'done'
    result = found.result(grid[alone])
    assert result is not None and result.evaluation is not None
    assert any('alone_0.4_s17_shrink' in line for line in status_lines(grid))
    # A mixture that has been trained anew is shrunk anew.
    small_study.leave_training(grid, grid[fast], loss=2.0)
    assert states()[f'{alone}_shrink'] == 'ready'


def test_report(tmp_path: Path):
    of_mixture = {'arm': 'upcycled', 'dense': 'concat', 'by': 'merge'}
    grid = make_grid(
        tmp_path,
        durations={'long': '1000ba'},
        fractions=(0.4, ),
        seeds=(1, 2),
        texts=('headers', ),
        shrunk={
            'one': {
                **of_mixture, 'keep': 1,
                'heal': 0
            },
            'two': {
                **of_mixture, 'keep': 2,
                'heal': 0.25
            },
        },
    )
    losses = {None: 3.0, 'cpt': 2.5, 'upcycled': 2.0, 'one': 2.8, 'two': 2.25}

    def measure(run: Any) -> MeasuredRun:
        loss = losses[run.place.arm] + 0.01 * (run.place.seed == 2)
        evaluated = {} if run.role == 'source' else {'headers': loss}
        return MeasuredRun(loss, evaluated)

    results = make_results(grid, measure)
    out = tmp_path / 'report'
    throughput = {'mean': 2.0, 'low': 2.0, 'high': 2.0}
    serving = Serving('file', (), {('small', 1, 1): Throughput(**throughput)})
    text = write_report(results, out).read_text()
    assert 'Not all runs are there' not in text
    assert '- small one: upcycled, shrunk (' in text
    rows = {
        line.split(' | ')[1]: line.split(' | ')
        for line in text.splitlines()
        if line.startswith('| long | ') and ' | 0.4 | 2 | ' in line
    }
    healed = grid['small_long_two_0.4_s1']
    assert rows['two'][4:7] == [
        f'{healed.n_steps:,}',
        f'{healed.tokens:.3e}',
        f'{healed.flops:.3e}',
    ]
    assert rows['one'][4] == '-'
    assert rows['one'][7] == '-' and rows['one'][8].startswith('2.805 (')
    assert 'two against cpt (continued pretraining)' in text
    curves = (out / 'figures/curves_small.svg').read_text()
    assert '<!-- two -->' in curves and '<!-- one -->' not in curves
    # Two experts side by side are not served as the dense model is.
    summary = Summary(results)
    costs = arm_costs(summary, summary.models[0], serving)
    assert costs['one'] == costs['cpt'] and costs['two'] is None
