"""What Foundry would refuse is refused before anything is trained."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import YAMLS, small_grid, write_study
from study.study_files import GONE, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.preflight import check_runs

# Foundry's other implementation needs flash-attn.
ROPE = {'rope': True, 'rope_impl': 'hf'}


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(*_: Any) -> None:
        raise AssertionError('it wants something from the network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def check(grid: Grid) -> None:
    write_yamls(grid)
    check_runs(grid)


def with_arm(folder: Path, overrides: dict[str, object]) -> Grid:
    models = yaml.safe_load(write_study(folder).read_text())['models']
    models['m']['arms']['cpt']['overrides'] = overrides
    return small_grid(folder, models=models, evaluation=None)


def with_evaluation(folder: Path, **changes: Any) -> Grid:
    content = yaml.safe_load((YAMLS / 'eval_quickstart.yaml').read_text())
    path = folder / 'eval.yaml'
    path.write_text(yaml.safe_dump({**content, **changes}))
    return small_grid(folder, evaluation=str(path))


def test_an_experiment_that_composer_would_call_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv('DATABRICKS_TOKEN', 'secret')
    grid = small_grid(tmp_path, evaluation=None)
    with pytest.raises(ConfigError, match="^name='small': it names an experim"):
        check(grid)
    check(small_grid(tmp_path, evaluation=None, name='/Shared/small'))


@pytest.mark.parametrize(
    'name',
    ['430m', '1b', 'overtrained', 'quickstart', 'quickstart_tiny'],
)
def test_our_studies_pass(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
    name: str,
):
    study = read_study(YAMLS / f'study_{name}.yaml')
    results = tmp_path / 'results'
    # Its tasks are not there.
    study = replace(
        study,
        folder=results,
        tracking_uri=str(results / 'mlruns'),
        evaluation=None,
    )
    grid = plan_grid(study)
    write_yamls(grid)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    check_runs(grid)
    assert sorted(tmp_path.rglob('*')) == before


def test_what_foundry_takes_passes(files: StudyFiles):
    clipping = {'clipping_type': 'norm', 'clipping_threshold': 1.0}
    files.set_all('algorithms', {'gradient_clipping': clipping})
    callbacks = files.contents['upcycled'].callbacks
    callbacks.speed_monitor = {'window_size': 5}
    callbacks.dataset_swap = {'dataset_index': 0}
    files.set_all('loggers', {'tensorboard': {}})
    files.set_all('model.master_weights_dtype', 'bf16')
    files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3])
    check(files.grid())


@pytest.mark.parametrize('file', ['dense', 'cpt', 'upcycled'])
@pytest.mark.parametrize(
    'key,value,part',
    [
        ('model.ffn_config.ffn_hiden', 5, 'model: .*ffn_hiden'),
        ('model.loss_fn', 'crossentropi', 'model: '),
        ('model.attn_config', {'attn_impl': 'flsh'}, 'model: .*attn_impl=flsh'),
        ('model.attn_config', {'rope_thetaa': 5}, 'model: .*rope_thetaa'),
        ('optimizer.name', 'decoupled_lionww', 'optimizer: .*decoupled_lionww'),
        ('optimizer.name', GONE, "optimizer: KeyError: 'name'"),
        ('optimizer.wait_decay', 0.1, "optimizer: .*'wait_decay'"),
        ('scheduler.name', 'cosin', "scheduler: .*'cosin'"),
        ('scheduler.t_warmupp', '5ba', "scheduler: .*'t_warmupp'"),
        ('algorithms', {'clipping': {}}, "algorithm clipping: .*'clipping'"),
        ('callbacks.speedmonitor', {}, "callback speedmonitor: .*'speedmonitor"),
        ('callbacks.lr_monitor', {'a': 5}, 'callback lr_monitor: TypeError'),
        ('callbacks.dataset_swap', {}, "callback dataset_swap: .*'dataset_index"),
        ('loggers', {'tensorbord': {}}, "logger tensorbord: .*'tensorbord'"),
        ('train_loader.name', 'texd', "loader: .*'texd'"),
        ('eval_loader', {'name': 'texd'}, "loader: .*'texd'"),
        ('code_paths', ['absent.py'], 'code_paths: absent.py: FileNotFound'),
    ],
)  # yapf: disable
def test_what_foundry_would_refuse(files: StudyFiles, file, key, value, part):
    # Of its YAML alone, and its first run is checked.
    run = {
        'dense': 'm_short',
        'cpt': 'm_short_cpt_0.5_s17',
        'upcycled': 'm_short_upcycled_0.5_s17',
    }[file]
    if key.startswith('callbacks') and file != 'upcycled':
        files.set(file, 'callbacks', {})
    with pytest.raises(
            ConfigError,
            match=f"(?s)study='[^']*/yamls/{run}.yaml': LLM Foundry refuses its "
            f'{part}.*Fix: change the YAML that it is planned from, or the over',
    ):
        check(files.set(file, key, value).grid())


def test_a_sweep_is_checked_by_its_first_run(files: StudyFiles):
    files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3])
    files.set('upcycled', 'scheduler.name', 'cosin')
    with pytest.raises(ConfigError, match='_0.5_s17_lr0.001.yaml.*its schedul'):
        check(files.grid())


def test_code_may_bring_callbacks(files: StudyFiles, tmp_path: Path):
    code = tmp_path / 'code.py'
    code.write_text(
        'from composer import Callback\n'
        'from llmfoundry.registry import callbacks\n'
        'callbacks.register("of_this_test", func=Callback)\n',
    )
    files.set('upcycled', 'callbacks.of_this_test', {})
    with pytest.raises(ConfigError, match='refuses its callback of_this_test'):
        check(files.grid())
    check(files.set('upcycled', 'code_paths', [str(code)]).grid())


@pytest.mark.parametrize(
    'key,value,found,expected',
    [
        ('model.n_heads', 4, 'model.n_heads=4', '2'),
        ('model.norm_eps', 1e-6, 'model.norm_eps=1e-06', '1e-05'),
        ('model.attn_config', {**ROPE, 'rope_theta': 5e5},
         'model.attn_config.rope_theta=500000.0', '10000'),
        ('model.ffn_config.ffn_act_fn', {'name': 'silu'},
         "model.ffn_config.ffn_act_fn={'name': 'silu'}", "{'name': 'gelu'"),
    ],
)  # yapf: disable
@pytest.mark.parametrize('arm', ['cpt', 'upcycled'])
def test_an_arm_that_computes_another_function(
    files: StudyFiles,
    arm: str,
    key: str,
    value: Any,
    found: str,
    expected: str,
):
    files.set_all('model.attn_config', ROPE)
    check(files.grid())
    files.set(arm, key, value)
    with pytest.raises(ConfigError) as caught:
        check(files.grid())
    assert f'/{arm}.yaml: {found}: ' in str(caught.value)
    assert f'/dense.yaml was trained with {expected}' in str(caught.value)


def test_a_dense_arm_has_the_same_kind_of_layers(files: StudyFiles):
    # 2 * 8 * 24 parameters, as many as 3 * 8 * 16.
    mlp = {'ffn_type': 'mptmlp', 'ffn_hidden_size': 24}
    files.set('cpt', 'model.ffn_config', mlp)
    with pytest.raises(
            ConfigError,
            match="/cpt.yaml: model.ffn_config.ffn_type='mptmlp': .*/dense.yaml "
            "was trained with 'mptglu'",
    ):
        check(files.grid())


def test_what_only_training_asks_of_a_model_may_differ(files: StudyFiles):
    files.set('cpt', 'model.init_device', 'cpu')
    files.set('cpt', 'model.loss_fn', 'torch_crossentropy')
    files.set('cpt', 'model.attn_config', {'attn_impl': 'torch'})
    files.set('upcycled', 'model.resid_pdrop', 0.1)
    check(files.grid())


def test_a_misspelt_setting_of_the_last_arm(tmp_path: Path):
    grid = with_arm(tmp_path, {'eval_intervall': '1ba'})
    match = 'study=.*m_short_cpt_0.4_s17.yaml.: LLM Foundry refuses.*intervall'
    with pytest.raises(ConfigError, match=match):
        check(grid)


@pytest.mark.parametrize(
    'changes,problem',
    [
        ({'precison': 'fp32'}, 'it: .*precison'),
        ({'callbacks': {'trim_padding': {}}}, 'its callback trim_padding: '),
        ({'callbacks': {'icl_results': {'folders': 'a'}}},
         "its callback icl_results: TypeError: .*'folders'"),
        ({'loggers': {'wanbd': {}}}, "its logger wanbd: .*'wanbd'"),
        ({'eval_loaders': [{'name': 'texd', 'label': 'prose'}]},
         "its loader: .*'texd'"),
    ],
)  # yapf: disable
def test_what_foundry_would_refuse_of_the_evaluation(
    tmp_path: Path,
    changes: dict[str, Any],
    problem: str,
):
    grid = with_evaluation(tmp_path, **changes)
    match = f'(?s)study=.*m_short_eval.yaml.: LLM Foundry refuses {problem}'
    with pytest.raises(ConfigError, match=match):
        check(grid)


def test_tasks_that_are_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match='icl_tasks=.*there is no such file'):
        check(small_grid(tmp_path))
