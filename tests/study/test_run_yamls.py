from pathlib import Path
from typing import Any

import pytest
from llmfoundry.utils.config_utils import (
    EVAL_CONFIG_KEYS,
    TRAIN_CONFIG_KEYS,
    EvalConfig,
    TrainConfig,
    make_dataclass_and_log_config,
)
from omegaconf import DictConfig, OmegaConf
from study.study_files import YAMLS, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, evaluation_run_name
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import eval_yaml, train_yaml

DENSE, CPT, UPCYCLED = 'm_short', 'm_short_cpt_0.5_s17', 'm_short_upcycled_1_s17'
SWEPT = 'm_short_upcycled_0.5_s17_lr0.002'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path).set('study', 'evaluation', 'eval.yaml')


def planned(grid: Grid, name: str) -> DictConfig:
    run = grid[name]
    config = OmegaConf.create(train_yaml(grid, run, run.learning_rate))
    assert isinstance(config, DictConfig)
    return config


def evaluated(grid: Grid, name: str) -> DictConfig:
    config = OmegaConf.load(RunFiles(grid.study, name).eval_yaml)
    assert isinstance(config, DictConfig)
    return config


@pytest.fixture(
    params=[
        '430m', '1b', 'overtrained', 'quickstart', 'quickstart_tiny', 'smollm2'
    ]
)
def ours(request, tmp_path: Path, monkeypatch) -> Grid:
    grid = plan_grid(read_study(YAMLS / f'study_{request.param}.yaml'))
    monkeypatch.chdir(tmp_path)  # Its folder is relative.
    write_yamls(grid)
    return grid


def test_foundry_accepts_them(ours: Grid):
    # One of each kind: the dense start, a sweep's, the arms'.
    runs = {(run.role, run.place.arm): run
            for run in ours.runs
            if not ours.sweep_for(run)}.values()
    assert len(runs) >= 3
    for run in runs:
        files = RunFiles(ours.study, run.name)
        start = str(files.checkpoints)
        if run.checkpoint is None:
            # Raises on an unknown key and on a missing mandatory one.
            _, config = make_dataclass_and_log_config(
                OmegaConf.load(files.train_yaml),
                TrainConfig,
                TRAIN_CONFIG_KEYS,
                transforms='all',
            )
            assert config.run_name == run.name
            assert config.autoresume
            assert config.save_folder == start
        else:
            start = run.checkpoint.path
        _, config = make_dataclass_and_log_config(
            OmegaConf.load(files.eval_yaml),
            EvalConfig,
            EVAL_CONFIG_KEYS,
            icl_tasks_required=True,
        )
        assert config.run_name == evaluation_run_name(run.name)
        assert [entry['model_name'] for entry in config.models] == [run.name]
        assert config.models[0]['load_path'].startswith(start)


def test_sharded_checkpoints_have_another_name():
    grid = plan_grid(read_study(YAMLS / 'study_430m.yaml'))
    source = 'runs/study_430m/checkpoints/430m_long/latest-sharded-rank0'
    cpt = planned(grid, '430m_long_cpt_0.2_s17')
    assert cpt.load_path == source
    upcycled = planned(grid, '430m_long_upcycled_0.2_s17')
    assert upcycled.callbacks.sparse_upcycling.source_path == source
    # 20e9 of 4,194,304 tokens a step are 4768.4; the dense run has 23,842
    # steps, and 0.2 of it in tokens is what max_duration and warm-up count.
    assert cpt.max_duration == f'{4768 * 4_194_304}tok'


@pytest.mark.parametrize(
    'fsdp,name',
    [
        (None, 'latest-rank0.pt'),
        ({
            'mixed_precision': 'DEFAULT'
        }, 'latest-rank0.pt'),
        ({
            'state_dict_type': 'full'
        }, 'latest-rank0.pt'),
        ({
            'state_dict_type': 'sharded'
        }, 'latest-sharded-rank0'),
    ],
)
def test_links_are_called_as_foundry_calls_them(
    files: StudyFiles,
    fsdp: dict[str, str] | None,
    name: str,
):
    # Foundry's train.py takes the name from what the YAML says alone.
    grid = files.set_all('fsdp_config', fsdp).grid()
    assert Path(planned(grid, CPT).load_path).name == name


def test_a_model_that_leads_nowhere(files: StudyFiles):
    files.set('study', 'evaluation', 'eval.yaml')
    grid = files.set('cpt', 'model.loss_fn', '${variables.nothing}').grid()
    assert grid.evaluation is not None
    with pytest.raises(
            ConfigError,
            match="cpt.yaml: model.*=None: it can't be resolved .*nothing"):
        eval_yaml(grid, grid.evaluation, grid[CPT])


def test_the_dense_start(files: StudyFiles):
    grid = files.grid()
    config = planned(grid, DENSE)
    assert config.run_name == DENSE
    assert config.max_duration == '200ba'
    assert config.save_folder == str(grid.study.folder / 'checkpoints' / DENSE)
    assert config.autoresume is True
    # As its YAML has them.
    assert (config.seed, config.train_loader.dataset.shuffle_seed) == (5, 6)
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-3, 1e-4)
    assert 'load_path' not in config
    assert 'callbacks' not in config


def test_continued_pretraining_starts_from_its_weights(files: StudyFiles):
    grid = files.set('study', 'seeds', [18]).grid()
    config = planned(grid, 'm_long_cpt_0.5_s18')
    checkpoints = grid.study.folder / 'checkpoints'
    assert config.load_path == f'{checkpoints}/m_long/latest-rank0.pt'
    assert config.load_weights_only is True
    assert config.save_folder == f'{checkpoints}/m_long_cpt_0.5_s18'
    assert config.max_duration == '200ba'
    assert (config.seed, config.train_loader.dataset.shuffle_seed) == (18, 18)
    assert 'callbacks' not in config


def test_upcycling_starts_from_its_weights(files: StudyFiles):
    grid = files.set('study', 'seeds', [18]).grid()
    config = planned(grid, 'm_long_upcycled_0.5_s18')
    assert config.callbacks.sparse_upcycling == {
        'source_path':
        f'{grid.study.folder}/checkpoints/m_long/latest-rank0.pt',
        'recipe': {
            'name': 'copy'
        },
        'seed': 18,
    }
    assert (config.seed, config.train_loader.dataset.shuffle_seed) == (18, 18)
    # The callback refuses to act on a model that was loaded.
    assert 'load_path' not in config
    assert 'load_weights_only' not in config
    # Runs that started with an empty one have it in their YAMLs.
    grid = files.set('upcycled', 'load_path', None).grid()
    again = planned(grid, 'm_long_upcycled_0.5_s18')
    assert again == {**config, 'load_path': None}


def test_a_loader_without_a_dataset_has_no_seed(files: StudyFiles):
    loader = {'name': 'finetuning'}
    grid = files.set('cpt', 'train_loader', loader).grid()
    assert planned(grid, CPT).train_loader == loader


@pytest.mark.parametrize(
    'optimizer,decays',
    [
        ('decoupled_lionw', True),
        ('decoupled_adamw', True),
        ('adalr_lion', True),
        ('clip_lion', True),
        ('adam', False),
    ],
)
def test_weight_decay_is_scaled_where_it_is_decoupled(
    files: StudyFiles,
    optimizer: str,
    decays: bool,
):
    files.set_all('optimizer.name', optimizer)
    for name in ('pretrain', 'arms.cpt'):
        files.set('study', f'models.m.{name}.lr', 4e-3)
    grid = files.grid()
    # Four times the YAML's learning rate.
    decay = 4e-4 if decays else 1e-4
    for name in (DENSE, CPT):
        config = planned(grid, name).optimizer
        assert config.lr == 4e-3
        assert config.weight_decay == pytest.approx(decay)
    assert planned(grid, UPCYCLED).optimizer.lr == 1e-3


def test_runs_of_a_sweep_have_their_learning_rates(files: StudyFiles):
    files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3])
    grid = files.grid()
    tried = planned(grid, SWEPT)
    assert tried.optimizer.lr == 2e-3
    assert tried.optimizer.weight_decay == pytest.approx(2e-4)
    assert tried.run_name == SWEPT
    assert tried.callbacks.sparse_upcycling.seed == 17
    # What waits for the sweep has no YAML yet; the others have.
    write_yamls(grid)
    assert not RunFiles(grid.study, UPCYCLED).train_yaml.exists()
    assert RunFiles(grid.study, UPCYCLED).eval_yaml.exists()
    # The other arm is not swept.
    assert planned(grid, CPT).optimizer.lr == 1e-3


def test_overrides_and_variables_arrive(files: StudyFiles):
    files.set('study', 'variables', {'tokenizer': 'another'})
    overrides = {
        'scheduler': {
            't_warmup': '5ba'
        },
        'train_loader': {
            'dataset': {
                'local': '${variables.tokenizer}/data'
            },
        },
        'eval_interval': 0,
    }
    files.set('study', 'models.m.arms.cpt.overrides', overrides)
    grid = files.grid()
    config = planned(grid, CPT)
    assert config.tokenizer.name == 'another'
    assert config.scheduler == {'name': 'cosine_with_warmup', 't_warmup': '5ba'}
    assert config.train_loader.dataset.local == 'another/data'
    assert config.eval_interval == 0
    assert config.variables.lr == 1e-3
    # Of this arm alone.
    assert planned(grid, UPCYCLED).scheduler.t_warmup == '10ba'
    assert 'eval_interval' not in planned(grid, UPCYCLED)
    assert planned(grid, UPCYCLED).tokenizer.name == 'another'


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
    """Full keys and values; MLflow's settings count as one."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f'{prefix}{name}'
        if isinstance(value, DictConfig) and key != 'loggers.mlflow':
            found |= flat(value, f'{key}.')
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(
    'file,phase,name',
    [
        ('dense', 'pretrain', DENSE),
        ('cpt', 'arms.cpt', CPT),
        ('upcycled', 'arms.upcycled', 'm_short_upcycled_0.5_s17'),
    ],
)
def test_what_a_study_sets_is_no_override(files, file, phase, name):
    files.set(file, 'save_filename', 'ba{batch}.pt')
    files.set(file, 'load_path', 'by_hand.pt')
    files.set('study', f'models.m.{phase}.lr', 2e-3)
    before, after = flat(files.contents[file]
                        ), flat(planned(files.grid(), name))
    changed = {
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }
    start = 'callbacks.sparse_upcycling.source_path'
    assert changed >= {'max_duration', 'save_folder', 'optimizer.lr'}
    assert file == 'dense' or {'seed', 'load_path'} <= changed
    assert file != 'upcycled' or start in changed
    for key in changed:
        overrides = OmegaConf.create()
        OmegaConf.update(overrides, key, before.get(key, after.get(key)))
        files.set('study', f'models.m.{phase}.overrides', overrides)
        match = f'^models.m.{phase}.overrides.{key}=.*: the study sets it '
        with pytest.raises(ConfigError, match=match):
            planned(files.grid(), name)


@pytest.mark.parametrize(
    'place',
    ['variables', 'models.m.arms.upcycled.overrides.variables'],
)
def test_a_variable_that_comes_to_nothing(files: StudyFiles, place: str):
    files.set('upcycled', 'variables.start', 'by_hand.pt')
    start = 'callbacks.sparse_upcycling.source_path'
    files.set('upcycled', start, '${variables.start}')
    OmegaConf.update(
        files.contents['study'],
        f'{place}.start',
        'mine.pt',
        force_add=True,
    )
    match = f"^{place}.start='mine.pt': it comes to nothing"
    with pytest.raises(ConfigError, match=match):
        write_yamls(files.grid())
    assert not (files.study().folder / 'yamls').exists()
    # It is something where anything else uses it.
    files.set('upcycled', 'train_loader.dataset.local', '${variables.start}')
    write_yamls(files.grid())


@pytest.mark.parametrize(
    'name,arm,fraction',
    [(DENSE, 'dense', '0'), (CPT, 'cpt', '0.5'), (UPCYCLED, 'upcycled', '1')],
)
def test_they_log_to_the_studys_mlflow(files, name, arm, fraction):
    files.set('study', 'tracking_uri', 'http://tracking')
    grid = files.grid()
    write_yamls(grid)
    mlflow = {
        'experiment_name': 'small',
        'tracking_uri': 'http://tracking',
        'tags': {
            'model': 'm',
            'duration': 'short',
            'arm': arm,
            'fraction': fraction,
        },
        'resume': True,
        'synchronous': True,
        'log_system_metrics': False,
        'log_duplicated_metric_every_n_steps': 1,
    }
    assert planned(grid, name).loggers == {'mlflow': mlflow}
    assert evaluated(grid, name).loggers == {'mlflow': mlflow}


def test_other_loggers_are_kept(files: StudyFiles):
    loggers = {
        'wandb': {
            'project': 'mine'
        },
        'mlflow': {
            'resume': False,
            'rename_metrics': {
                'a': 'b'
            },
            'tags': {
                'team': 'ours'
            },
        },
    }
    for file in ('cpt', 'eval'):
        files.set(file, 'loggers', loggers)
    grid = files.set('upcycled', 'loggers', None).grid()
    write_yamls(grid)
    for config in (planned(grid, CPT), evaluated(grid, CPT)):
        assert config.loggers.wandb == {'project': 'mine'}
        # With names of its own, metrics would not be found.
        assert 'rename_metrics' not in config.loggers.mlflow
        assert 'team' not in config.loggers.mlflow.tags
        assert config.loggers.mlflow.tags.arm == 'cpt'
        assert config.loggers.mlflow.resume is True
    # `loggers:` with nothing below it.
    assert planned(grid, UPCYCLED).loggers.mlflow.tags.arm == 'upcycled'


def test_the_model_is_evaluated_as_it_was_trained(files: StudyFiles):
    files.set('cpt', 'model.init_device', 'cpu')
    files.set('study', 'variables', {'tokenizer': 'another'})
    grid = files.grid()
    write_yamls(grid)
    for name, device in ((DENSE, 'mixed'), (CPT, 'cpu'), (UPCYCLED, 'mixed')):
        config = evaluated(grid, name)
        model: Any = OmegaConf.to_container(
            planned(grid, name),
            resolve=True,
        )
        expected = {**model['model'], 'init_device': device}
        # Resolved: it stands in another YAML, with other variables.
        unresolved: Any = OmegaConf.to_container(config)
        assert unresolved['models'] == [{
            'model_name': name,
            'load_path': f"{model['save_folder']}/latest-rank0.pt",
            'tokenizer': {
                'name': 'another',
                'kwargs': {
                    'model_max_length': 4
                },
            },
            'model': expected,
        }]


def test_the_rest_of_an_evaluation(files: StudyFiles):
    files.set('eval', 'models', [{'model_name': 'another'}])
    callbacks = {
        'icl_results': {
            'folder': 'elsewhere',
            'eval_gauntlet': 'mine.yaml'
        },
        'trim_icl_padding': {},
    }
    files.set('eval', 'callbacks', callbacks)
    grid = files.grid()
    write_yamls(grid)
    config = evaluated(grid, CPT)
    assert config.run_name == f'{CPT}_eval'
    assert config.max_seq_len == 4  # The YAML's is 2.
    assert config.icl_tasks == 'tasks.yaml'
    assert config.callbacks == {
        'icl_results': {
            'folder': str(grid.study.folder / 'answers' / CPT),
            'eval_gauntlet': 'mine.yaml',
            'overwrite': True,
        },
        'trim_icl_padding': {},
    }


def test_checkpoints_have_the_names_of_composers_default(files: StudyFiles):
    files.set_all('save_latest_filename', 'newest.pt')
    assert 'save_latest_filename' not in planned(files.grid(), CPT)
