from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from planning.test_flops import PAPER_TOKENS
from study.study_files import CPT_STEP, GONE, UPCYCLED_STEP, YAMLS, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, Place
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.run_yamls import train_yaml


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path)


def assert_needs_come_first(grid: Grid) -> None:
    before = set()
    for run in grid.runs:
        assert before.issuperset(run.needs), run.name
        before.add(run.name)


@pytest.fixture(scope='module', params=PAPER_TOKENS)
def papers(request: pytest.FixtureRequest) -> tuple[str, Grid]:
    study = read_study(YAMLS / f'study_{request.param}.yaml')
    return request.param, plan_grid(study)


def test_tokens_are_the_papers(papers: tuple[str, Grid]):
    # Table 4 rounds to two digits. Farthest: 430m, 43.6 * 3,108,255,744 /
    # 4,147,427,328 = 32.68 of 32, 2.1 %; CPT of 1b, 14.2 of 14, 1.4 %.
    size, grid = papers
    (model, ) = grid.study.models
    points = iter(PAPER_TOKENS[size])
    for duration in model.durations:
        for fraction in model.budgets:
            for arm, tokens in zip(('cpt', 'upcycled'), next(points)):
                place = Place(size, duration, arm, fraction, 17)
                (run, ) = grid.candidates(place)
                assert run.tokens / 1e9 == pytest.approx(tokens, rel=0.03), run
    assert next(points, None) is None


def test_arms_cost_fractions_of_the_pretraining(papers: tuple[str, Grid]):
    _, grid = papers
    (model, ) = grid.study.models
    arms = [run for run in grid.runs if run.role == 'arm']
    n_points = len(model.durations) * len(model.budgets)
    assert len(arms) == 2 * n_points
    assert len(grid.runs) == 2 * n_points + len(model.durations)
    for run in arms:
        budget = run.place.budget * grid.dense_start(run).flops
        assert run.flops == pytest.approx(budget, rel=0.01)
    assert_needs_come_first(grid)


@pytest.mark.parametrize(
    'ffn,n_active',
    [
        # Of the dense model's 1832 parameters 384 are a block's GLU; a router
        # has 8 for each expert.
        ({
            'moe_layers': [1]
        }, 1832 + 384 + 64),
        ({
            'moe_num_experts': 4
        }, 1832 + 2 * (384 + 32)),
        ({
            'moe_top_k': 1
        }, 1832 + 2 * 64),
        ({
            'moe_top_k': {
                'sample': {
                    1: 0.5,
                    2: 0.5
                }
            }
        }, 1832 + 2 * (384 // 2 + 64)),
        # 0.7 * 2 * 384 = 537.6.
        ({
            'moe_top_k': {
                'until': {
                    '0.7dur': 2,
                    '1dur': 1
                }
            }
        }, 1832 + 538 + 2 * 64),
    ],
)
def test_cheaper_mixtures_are_arms_at_equal_flops(
    files: StudyFiles,
    ffn: dict[str, Any],
    n_active: int,
):
    changes = {
        'yaml': 'upcycled.yaml',
        'overrides': {
            'model': {
                'ffn_config': ffn
            }
        }
    }
    files.set('study', 'models.m.arms.cheaper', changes)
    grid = files.grid()
    run = grid['m_long_cheaper_1_s17']
    assert run.shape.n_active_params == n_active
    assert run.flops_per_step == 12 * (6 * n_active + 768)
    assert run.n_steps == round(400 * CPT_STEP / run.flops_per_step)
    text = train_yaml(grid, run, None)
    settings = OmegaConf.to_container(OmegaConf.create(text))
    for key, value in ffn.items():
        assert settings['model']['ffn_config'][key] == value


def test_by_hand(files: StudyFiles):
    grid = files.grid()
    # Steps of CPT_STEP to steps of UPCYCLED_STEP are as 51 to 35, so 100 buy
    # 68.6, 200 137.3 and 400 274.5.
    assert [(run.name, run.n_steps, run.needs) for run in grid.runs] == [
        ('m_short', 200, ()),
        ('m_long', 400, ()),
        # All arms at a budget before the next: what there is can be compared.
        ('m_short_cpt_0.5_s17', 100, ('m_short', )),
        ('m_short_upcycled_0.5_s17', 69, ('m_short', )),
        ('m_short_cpt_1_s17', 200, ('m_short', )),
        ('m_short_upcycled_1_s17', 137, ('m_short', )),
        ('m_long_cpt_0.5_s17', 200, ('m_long', )),
        ('m_long_upcycled_0.5_s17', 137, ('m_long', )),
        ('m_long_cpt_1_s17', 400, ('m_long', )),
        ('m_long_upcycled_1_s17', 275, ('m_long', )),
    ]
    dense, upcycled = grid['m_short'], grid['m_short_upcycled_0.5_s17']
    assert (dense.role, dense.place) == ('dense', Place('m', 'short'))
    assert dense.flops == 200 * CPT_STEP
    assert upcycled.role == 'arm'
    assert upcycled.place == Place('m', 'short', 'upcycled', 0.5, 17)
    assert upcycled.tokens == 69 * 12
    assert upcycled.flops == 69 * UPCYCLED_STEP
    assert upcycled.shape.n_active_params == 2728
    assert grid.dense_start(upcycled) is dense
    assert grid.dense_start(dense) is dense
    assert {run.learning_rate for run in grid.runs} == {None}
    assert len(grid.places) == 10
    assert grid.evaluation is None


def test_in_tokens(files: StudyFiles):
    files.set_all('max_duration', '1e6tok')
    files.set_all('scheduler.t_warmup', '120tok')
    durations = {'short': '2.4e3tok', 'odd': '4805tok'}
    files.set('study', 'models.m.durations', durations)
    grid = files.grid()
    assert grid['m_short'].n_steps == 200
    assert grid['m_odd'].n_steps == 400  # 400.4
    assert grid['m_short_upcycled_0.5_s17'].n_steps == 69


def test_seeds(files: StudyFiles):
    grid = files.set('study', 'seeds', [17, 18]).grid()
    names = [run.name for run in grid.runs if run.place.seed == 18]
    assert names == [
        f'm_{duration}_{arm}_{fraction}_s18' for duration in ('short', 'long')
        for fraction in ('0.5', '1') for arm in ('cpt', 'upcycled')
    ]
    # The dense starts serve both.
    assert [run.place.seed for run in grid.runs].count(None) == 2


def test_one_learning_rate_is_no_sweep(files: StudyFiles):
    files.set('study', 'models.m.arms.upcycled.lr', [2e-3])
    files.set('study', 'models.m.pretrain.lr', 3e-3)
    grid = files.grid()
    assert len(grid.runs) == 10
    assert grid['m_short'].learning_rate == 3e-3
    assert grid['m_short_cpt_1_s17'].learning_rate is None
    upcycled = grid['m_short_upcycled_1_s17']
    assert upcycled.learning_rate == 2e-3
    assert grid.sweep_for(upcycled) == ()


def test_a_sweep_is_run_where_the_study_says(files: StudyFiles):
    files.set('study', 'models.m.durations', {'a': '200ba', 'b': '400ba'})
    files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3])
    files.set('study', 'models.m.sweep_at', {'duration': 'b', 'fraction': 1})
    grid = files.grid()
    place = Place('m', 'b', 'upcycled', 1, 17)
    sweep = grid.candidates(place)
    assert [run.role for run in sweep] == ['sweep', 'sweep']
    assert [run.needs for run in sweep] == [('m_b', ), ('m_b', )]
    assert grid.sweep_for(grid['m_a_upcycled_0.5_s17']) == sweep


@pytest.mark.parametrize(
    'at,key',
    [
        ({
            'duration': 'other',
            'fraction': 1.0
        }, 'duration'),
        ({
            'duration': 'a',
            'fraction': 0.3
        }, 'fraction'),
        ({
            'duration': 'a'
        }, 'fraction'),
        ({
            'duration': 'a',
            'fraction': 1.0,
            'seed': 1
        }, 'seed'),
    ],
)
def test_a_place_of_sweeps_that_is_not_in_the_grid(
    files: StudyFiles,
    at: dict[str, Any],
    key: str,
):
    files.set('study', 'models.m.durations', {'a': '200ba'})
    files.set('study', 'models.m.sweep_at', at)
    with pytest.raises(ConfigError, match=f'models.m.sweep_at.{key}='):
        files.grid()


def test_a_sweep_is_run_once_where_it_is_cheapest(files: StudyFiles):
    files.set('study', 'seeds', [18, 17])
    files.set(
        'study', 'models.m.durations', {
            'long': '400ba',
            'short': '200ba'
        }
    )
    files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3, 5e-4])
    grid = files.grid()
    sweep = [run for run in grid.runs if run.role == 'sweep']
    first = 'm_short_upcycled_0.5_s18'
    assert [(run.name, run.learning_rate) for run in sweep] == [
        (f'{first}_lr0.001', 1e-3),
        (f'{first}_lr0.002', 2e-3),
        (f'{first}_lr0.0005', 5e-4),
    ]
    place = Place('m', 'short', 'upcycled', 0.5, 18)
    for run in sweep:
        assert (run.place, run.n_steps) == (place, 69)
        assert run.needs == ('m_short', )
        assert grid.sweep_for(run) == ()
    # The best of them is the run of that place.
    assert grid.candidates(place) == tuple(sweep)
    assert first not in [run.name for run in grid.runs]
    # 2 starts, 8 of each arm, of which the sweep has one.
    assert len(grid.places) == 18
    others = [
        run for run in grid.runs
        if run.place.arm == 'upcycled' and run.role == 'arm'
    ]
    assert len(others) == 7
    for run in others:
        start = grid.dense_start(run)
        assert run.needs == (start.name, *(each.name for each in sweep))
        assert grid.sweep_for(run) == tuple(sweep)
        assert run.learning_rate is None
    assert_needs_come_first(grid)
    # The other arm waits for none of it.
    cpt = [run for run in grid.runs if run.place.arm == 'cpt']
    assert len(cpt) == 8
    assert all(len(run.needs) == 1 for run in cpt)


def test_several_models(files: StudyFiles):
    models = files.contents['study'].models
    models.n = models.m
    files.set('study', 'models.n.durations', {'short': '300ba'})
    files.set('study', 'models.n.pretrain.overrides', {'max_seq_len': 2})
    overrides = {'overrides': {'max_seq_len': 2}}
    arms = {'cpt': {'yaml': 'cpt.yaml', **overrides}}
    files.set('study', 'models.n.arms', arms)
    grid = files.grid()
    of_n = [run.name for run in grid.runs if run.place.model == 'n']
    assert of_n == ['n_short', 'n_short_cpt_0.5_s17', 'n_short_cpt_1_s17']
    assert grid['n_short_cpt_1_s17'].needs == ('n_short', )
    assert grid['n_short_cpt_1_s17'].tokens == 300 * 6
    assert len(grid.runs) == 10 + 3


def test_it_is_evaluated_by_a_yaml(files: StudyFiles):
    files.set('eval', 'icl_tasks', '${variables.tasks}')
    files.set('eval', 'variables', {'tasks': 'theirs.yaml'})
    files.set('study', 'variables', {'tasks': 'mine.yaml'})
    evaluation = files.set('study', 'evaluation', 'eval.yaml').grid().evaluation
    assert evaluation is not None
    assert evaluation.config.icl_tasks == 'mine.yaml'


def test_a_variable_that_no_yaml_has(files: StudyFiles):
    files.set('eval', 'variables', {'tasks': 'theirs.yaml'})
    files.set('upcycled', 'variables.source', 'dense.pt')
    files.set('study', 'variables', {'sorce': 'my.pt'})
    match = (
        "variables.sorce='my.pt': no YAML of the study has it among its "
        'variables. Fix: remove it; there are '
    )
    with pytest.raises(ConfigError, match=f'{match}lr, source, tokenizer.$'):
        files.grid()
    files.set('study', 'evaluation', 'eval.yaml')
    with pytest.raises(ConfigError, match=f'{match}lr, source, tasks, token'):
        files.grid()
    files.set('study', 'variables', {'source': 'my.pt', 'tasks': 'mine.yaml'})
    assert files.grid().study.variables['source'] == 'my.pt'


def test_a_variable_where_there_are_none(files: StudyFiles):
    files.set_all('variables', GONE).set_all('optimizer.lr', 1e-3)
    files.set_all('tokenizer', {'name': 'a_tokenizer'})
    files.set('study', 'variables', {'lr': 1e-4})
    with pytest.raises(ConfigError, match='variables.lr=.*there are none.$'):
        files.grid()


@pytest.mark.parametrize(
    'settings,name',
    [
        # Model m_short, duration d; model m, duration short_d.
        ({'models': {'m': 'short_d', 'm_short': 'd'}}, 'm_short_d'),
        # A duration named as another's second phase.
        ({'durations': {'short': '200ba', 'short_cpt_0.5_s17': '200ba'}},
         'm_short_cpt_0.5_s17'),
        # And as another's evaluation.
        ({'durations': {'short': '200ba', 'short_eval': '300ba'}},
         'm_short_eval'),
        # A name has six digits.
        ({'fractions': [0.5, 0.5000001]}, 'm_short_cpt_0.5_s17'),
        ({'arms.upcycled.lr': [1e-3, 1.0000001e-3]}, 'm_short_upcycled_0.5_s17'
         '_lr0.001'),
    ],
)  # yapf: disable
def test_two_runs_of_one_name(files: StudyFiles, settings, name):
    content = files.contents['study']
    for key, value in settings.items():
        if key != 'models':
            files.set('study', f'models.m.{key}', value)
            continue
        model = content.models.m
        for other, duration in value.items():
            content.models[other] = model
            durations = {duration: '200ba'}
            files.set('study', f'models.{other}.durations', durations)
    with pytest.raises(
            ConfigError,
            match=f"models='{name}': two runs have this name. Fix: rename models,"
            ' durations or arms: a run is named MODEL_DURATION_ARM_FRACTION_sSE',
    ):
        files.grid()


@pytest.mark.parametrize(
    'duration,problem',
    [
        ('2400tok', 'dense.yaml counts its max_duration in ba. Fix: write it in'),
        ('1ep', 'dense.yaml counts its max_duration in ba'),
        ('soon', 'it is not a duration. Fix: write a number and a unit'),
        ('10ba', 'it is 10 steps, 120 tokens, no more than the warm-up of 10ba.'
         ' Fix: raise it, or lower scheduler.t_warmup of .*/dense.yaml'),
    ],
)  # yapf: disable
def test_durations_that_can_not_be_used(files: StudyFiles, duration, problem):
    files.set('study', 'models.m.durations.long', duration)
    with pytest.raises(
            ConfigError,
            match=f"models.m.durations.long='{duration}': .*{problem}",
    ):
        files.grid()


@pytest.mark.parametrize(
    'warmup,fraction,problem',
    [
        # 0.8 of a step of 200.
        ('10ba', 0.004, 'of the FLOPs of m_short it buys less than a step of .*'
         '/cpt.yaml. Fix: raise it, or pretrain longer'),
        (GONE, 0.004, 'of the FLOPs of m_short it buys less than a step of'),
        ('10ba', 0.05, 'of the FLOPs of m_short it buys 10 steps, 120 tokens, no'
         ' more than the warm-up of 10ba. Fix: raise it, or lower scheduler.t_w'),
        # 13 are enough for cpt; 13 * 35 / 51 = 8.92 of upcycled are not.
        ('10ba', 0.065, 'it buys 9 steps, 108 tokens, no more than the warm-up o'
         'f 10ba. Fix: raise it, or lower scheduler.t_warmup of .*/upcycled.yam'),
        # 20 steps exactly, and 20 * 35 / 51 = 13.73: 14 are 2.0 % more.
        ('10ba', 0.1, 'the nearest whole number of steps of .*/upcycled.yaml, 14'
         r', costs \+2.0% FLOPs. Fix: raise it, pretrain longer, or lower globa'),
        # 18 * 35 / 51 = 12.35: 12 are 2.9 % less.
        (GONE, 0.09, r'steps of .*/upcycled.yaml, 12, costs -2.9% FLOPs'),
    ],
)  # yapf: disable
def test_fractions_that_can_not_be_used(files, warmup, fraction, problem):
    files.set_all('scheduler.t_warmup', warmup)
    files.set('study', 'models.m.fractions', [fraction, 1.0])
    with pytest.raises(
            ConfigError,
            match=f'models.m.fractions={fraction}: .*{problem}',
    ):
        files.grid()


def test_a_deviation_below_one_percent_will_do(files: StudyFiles):
    # 8.92 are nearly 9, 0.9 % more; there is no warm-up.
    files.set_all('scheduler.t_warmup', GONE)
    grid = files.set('study', 'models.m.fractions', [0.065]).grid()
    assert grid['m_short_upcycled_0.065_s17'].n_steps == 9


def test_pretraining_is_not_swept(files: StudyFiles):
    files.set('study', 'models.m.pretrain.lr', [1e-3, 2e-3])
    with pytest.raises(
            ConfigError,
            match=r'models.m.pretrain.lr=\[0.001, 0.002\]: only arms are swept. '
            'Fix: write one learning rate',
    ):
        files.grid()


@pytest.mark.parametrize(
    'file,key,value,problem',
    [
        ('cpt', 'max_seq_len', 8, 'cpt.yaml: max_seq_len=8: in .*dense.yaml'),
        ('upcycled', 'model.d_model', 16, 'upcycled.yaml: model: d_model=16: '),
        ('cpt', 'scheduler.t_warmup', '9tok', "cpt.yaml: scheduler.t_warmup='9"),
        ('dense', 'scheduler.t_warmup', '9tok', "dense.yaml: scheduler.t_warmup"),
        ('cpt', 'max_duration', '9ep', "cpt.yaml: max_duration='9ep': a study"),
        ('upcycled', 'callbacks', GONE, 'upcycled.yaml: model.name='),
        ('cpt', 'global_train_batch_size', 0, 'cpt.yaml: global_train_batch_s'),
        ('dense', 'tokenizer', GONE, 'dense.yaml: tokenizer=None: it is miss'),
        ('study', 'models.m.pretrain.yaml', 'upcycled.yaml',
         'models.m.pretrain.yaml=.*upcycled.yaml.: it upcycles a dense model'),
        ('study', 'models.m.paper', '7B',
         "models.m.paper='7B': the paper has no such model. Fix: write one of"),
    ],
)  # yapf: disable
def test_yamls_that_can_not_be_used(files, file, key, value, problem):
    with pytest.raises(ConfigError, match=problem):
        files.set(file, key, value).grid()


@pytest.mark.parametrize('key', ['durations', 'arms'])
def test_names_that_no_file_can_have(files: StudyFiles, key: str):
    section = files.contents['study'].models.m[key]
    section['x' * 240] = section[next(iter(section))]
    match = "^models='m_.*x.*': a run of this name has files of more than 255 bytes"
    with pytest.raises(ConfigError, match=match):
        files.grid()


def test_a_pretraining_of_less_than_a_step(files: StudyFiles):
    files.set_all('scheduler', {'name': 'constant_with_warmup'})
    files.set('study', 'models.m.durations.short', '0.4ba')
    match = "durations.short='0.4ba': it is less than a step, of 12 tokens"
    with pytest.raises(ConfigError, match=match):
        files.grid()
