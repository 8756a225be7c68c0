"""A study may start from checkpoints that are there."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from llmfoundry.utils.builders import build_composer_model
from omegaconf import OmegaConf
from small_study import leave_answers, leave_training, list_tasks, log
from study.report.synthetic import GAUNTLET, Measured, make_results
from study.report.test_report import lines_of
from study.study_files import CPT_STEP, GONE, UPCYCLED_STEP, YAMLS, StudyFiles
from study.test_quickstart import checkout, study  # noqa: F401
from study.test_runner import Machine
from tiny import save_dense

from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    UpcyclingWarning,
)
from foundry_upcycle.study import measured, runner
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, Place, Run
from foundry_upcycle.study.measured import read_study_results
from foundry_upcycle.study.overview import plan_lines
from foundry_upcycle.study.plan_files import require_unchanged, write_yamls
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.preflight import check_runs
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.runner import StudyRunner

# 100 and 200 steps of continued pretraining; 69 and 137 of upcycling.
BUDGETS = [100 * CPT_STEP, 200 * CPT_STEP]
DENSE, CPT = 'm_base', 'm_base_cpt_1.4112e07_s17'
UPCYCLED = 'm_base_upcycled_2.8224e07_s17'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    """The study of two budgets, of a checkpoint that saw 2.4e12 tokens."""
    files = StudyFiles(tmp_path)
    for key in ('durations', 'pretrain', 'fractions'):
        files.set('study', f'models.m.{key}', GONE)
    base = {'path': str(tmp_path / 'base.pt'), 'tokens': 2.4e12}
    files.set('study', 'models.m.checkpoints', {'base': base})
    return files.set('study', 'models.m.budgets', BUDGETS)


def save(files: StudyFiles, **changes: Any) -> Path:
    """Saves the model that ``cpt.yaml`` goes on with; ``changes`` to it."""
    config: Any = OmegaConf.to_container(files.contents['cpt'], resolve=True)
    model = {**config['model'], 'init_device': 'cpu', **changes}
    model |= {'loss_fn': 'torch_crossentropy'}
    model['attn_config'] = {
        'attn_impl': 'torch',
        **model.get('attn_config', {})
    }
    path = files.folder / 'base.pt'
    save_dense(
        build_composer_model(model.pop('name'), model, tokenizer=None),
        path,
    )
    return path


def train_yaml_of(grid: Grid, name: str) -> Any:
    return OmegaConf.load(RunFiles(grid.study, name).train_yaml)


def test_by_hand(files: StudyFiles):
    grid = files.grid()
    assert [(run.name, run.n_steps, run.needs) for run in grid.runs] == [
        (DENSE, 0, ()),
        (CPT, 100, (DENSE, )),
        ('m_base_upcycled_1.4112e07_s17', 69, (DENSE, )),
        ('m_base_cpt_2.8224e07_s17', 200, (DENSE, )),
        (UPCYCLED, 137, (DENSE, )),
    ]
    start = grid[DENSE]
    assert start.tokens == 2.4e12
    # A token of study_files.py, 1832 parameters and attention.
    assert start.flops == 2.4e12 * (6 * 1832 + 768)
    assert grid[UPCYCLED].flops == 137 * UPCYCLED_STEP
    assert grid.trainings == grid.runs[1:]
    assert grid.places[0] == Place('m', 'base')


@pytest.mark.parametrize(
    'spent',
    [{
        'tokens': 2400
    }, {
        'flops': 200.0 * CPT_STEP
    }],
)
def test_fractions_of_what_it_has_cost(files: StudyFiles, spent):
    # As in test_grid.py, where the study trains it for 200 steps.
    base = {'path': 'base.pt', **spent}
    files.set('study', 'models.m.checkpoints', {'base': base})
    files.set('study', 'models.m.budgets', GONE)
    files.set('study', 'models.m.fractions', [0.5, 1.0])
    grid = files.grid()
    assert (grid[DENSE].tokens, grid[DENSE].flops) == (2400, 200 * CPT_STEP)
    assert [(run.name, run.n_steps) for run in grid.trainings] == [
        ('m_base_cpt_0.5_s17', 100),
        ('m_base_upcycled_0.5_s17', 69),
        ('m_base_cpt_1_s17', 200),
        ('m_base_upcycled_1_s17', 137),
    ]


def test_budgets_of_a_pretraining(tmp_path: Path):
    files = StudyFiles(tmp_path).set('study', 'models.m.fractions', GONE)
    grid = files.set('study', 'models.m.budgets', BUDGETS).grid()
    for duration in ('short', 'long'):
        assert grid[f'm_{duration}_cpt_1.4112e07_s17'].n_steps == 100
        assert grid[f'm_{duration}_upcycled_2.8224e07_s17'].n_steps == 137


@pytest.mark.parametrize(
    'key,value,problem',
    [
        ('durations', {'short': '200ba'}, 'checkpoints=.*: it stands in place of '
         'durations and pretrain. Fix: remove it, or durations'),
        ('fractions', [0.1], 'budgets=.*: it stands in place of fractions'),
        ('budgets', [0], 'budgets=0: .*Fix: write FLOPs above 0'),
        ('budgets', [1e31], 'budgets=1e.31: it is not a number, too small, or abov'),
        ('budgets', [1e5], 'budgets=100000.0: it buys less than a step of .*/cpt'),
        ('budgets', [2e6], 'budgets=2000000.0: .* 14, costs -1.2% FLOPs'),
        ('paper', '436M', "paper='436M': the paper's points are at fractions"),
        ('checkpoints', {'a b': {}}, "checkpoints='a b': it cannot name runs"),
        ('checkpoints', {'base': 'base.pt'}, "base='base.pt': it is not a mapping"),
        ('checkpoints.base', {'tokens': 5}, 'base.path=None: it is missing'),
        ('checkpoints.base', {'path': 'a.pt'}, 'base={}: .*one of tokens and flo'),
        ('checkpoints.base.flops', 1e20, "base={'flops': .*'tokens': .*one of"),
        ('checkpoints.base.tokens', -1.0, 'base.tokens=-1.0: no model has been'),
        ('checkpoints.base.token', 5, 'base.token=5: there is no such setting'),
        ('checkpoints.base.path', 's3://bucket/base.pt', "path='s3://bucket/base"
         ".pt': .*in a store. Fix: copy it to a disk"),
        ('checkpoints.base.path', 'base.gguf', "path='base.gguf': .*Fix: run `fou"
         'ndry-upcycle import-hf base.gguf FOLDER`'),
        ('arms.cpt', GONE, r"arms=\['upcycled'\]: none goes on with the dense"),
        ('arms.cpt.overrides', {'model': {'n_layers': 3}}, '/upcycled.yaml: model'
         ': n_layers=2: in .*/cpt.yaml, .* it is 3'),
    ],
)  # yapf: disable
def test_what_can_not_be_used(files: StudyFiles, key, value, problem):
    if key == 'budgets':
        files.set_all('scheduler.t_warmup', GONE)
    with pytest.raises(ConfigError, match=problem):
        files.set('study', f'models.m.{key}', value).grid()


def test_a_folder_of_hugging_face(files: StudyFiles, tmp_path: Path):
    (tmp_path / 'config.json').touch()
    files.set('study', 'models.m.checkpoints.base.path', str(tmp_path))
    with pytest.raises(ConfigError, match=f'import-hf {tmp_path} FOLDER`'):
        files.grid()


def test_what_the_yamls_say(files: StudyFiles, tmp_path: Path):
    files.set('study', 'evaluation', 'eval.yaml')
    base = save(files)
    grid = files.grid()
    write_yamls(grid)
    cpt, upcycled = train_yaml_of(grid, CPT), train_yaml_of(grid, UPCYCLED)
    assert (cpt.load_path, cpt.load_weights_only) == (str(base), True)
    assert upcycled.callbacks.sparse_upcycling.source_path == str(base)
    assert 'load_path' not in upcycled
    assert cpt.loggers.mlflow.tags.FLOPs == '1.4112e07'
    evaluation = OmegaConf.load(RunFiles(grid.study, DENSE).eval_yaml)
    (model, ) = evaluation.models
    assert (model.model_name, model.load_path) == (DENSE, str(base))
    assert model.model == OmegaConf.to_container(
        files.contents['cpt'].model,
        resolve=True,
    ) | {
        'init_device': 'mixed',
        'max_seq_len': 4
    }
    assert not RunFiles(grid.study, DENSE).train_yaml.exists()


def test_the_plan_counts_what_is_to_be_trained(files: StudyFiles):
    header, start, *rows = plan_lines(files.grid())
    assert start.split() == [DENSE, '1.8k', '2.4e+12', '2.82e+16']
    fractions = header.index('fraction') + len('fraction')
    assert rows[0][:fractions].endswith(' 5.0e-10')
    # 300 steps of one and 206 of the other, in hours of study_files.py.
    flops = 300 * CPT_STEP + 206 * UPCYCLED_STEP
    total = next(row for row in rows if row.startswith('all')).split()
    assert total == ['all', f'{flops:.3g}', f'{flops / 28.224e6:.2g}']


def started(files: StudyFiles) -> Grid:
    """The study whose start is there and evaluated, and an arm begun."""
    save(files)
    grid = files.set('study', 'evaluation', 'eval.yaml').grid()
    write_yamls(grid)
    leave_training(grid, grid[CPT], n_saved=20, n_logged=25)
    return grid


def test_a_checkpoint_that_changed(files: StudyFiles):
    started(files)
    torch.manual_seed(5)
    base = save(files)
    with pytest.raises(ConfigError, match='(?s)m_base_cpt.* with other settings'
                       r'.*-\s+checkpoint: sha256.*\+\s+checkpoint: sha256'):
        write_yamls(files.grid())
    with pytest.raises(ConfigError, match='with other settings'):
        require_unchanged(measured.Measured(files.grid()))
    # So is one of another name.
    base.rename(base.with_name('other.pt'))
    files.set(
        'study',
        'models.m.checkpoints.base.path',
        str(base.with_name('other.pt')),
    )
    with pytest.raises(ConfigError,
                       match=r'(?s)with other set.*-load_path: .*b'):
        write_yamls(files.grid())


def test_a_checkpoint_that_is_gone(files: StudyFiles):
    before = started(files)
    base = files.folder / 'base.pt'
    written = train_yaml_of(before, CPT)
    base.rename(files.folder / 'moved.pt')
    match = f'^{re.escape(str(base))}: it is not there, and m_base_cpt.* started'
    with pytest.raises(CheckpointError, match=match):
        write_yamls(files.grid())
    # What it was is still known, and what was measured can be reported.
    require_unchanged(measured.Measured(files.grid()))
    assert train_yaml_of(before, CPT) == written
    base.symlink_to(files.folder / 'moved.pt')
    write_yamls(files.grid())


def test_a_start_that_changed_is_evaluated_anew(files: StudyFiles):
    save(files)
    grid = files.set('study', 'evaluation', 'eval.yaml').grid()
    write_yamls(grid)
    leave_answers(grid, grid[DENSE])
    torch.manual_seed(5)
    save(files)
    with pytest.warns(UpcyclingWarning, match='1 evaluations have other'):
        write_yamls(files.grid())
    assert not measured.Measured(files.grid()).is_evaluated(grid[DENSE])


def check(files: StudyFiles) -> None:
    grid = files.grid()
    write_yamls(grid)
    check_runs(grid)


@pytest.mark.parametrize(
    'changes,found',
    [
        ({'n_layers': 3}, 'n_layers=2: .*/base.pt was trained with 3'),
        ({'n_heads': 4}, 'n_heads=2: .*/base.pt was trained with 4'),
        ({'ffn_config': {'ffn_type': 'mptglu', 'ffn_hidden_size': 24}},
         'ffn_hidden_size=16: .*/base.pt was trained with 24'),
    ],
)  # yapf: disable
def test_arms_are_of_its_model(files: StudyFiles, changes, found):
    save(files)
    check(files)
    save(files, **changes)
    with pytest.raises(ConfigError, match=f'/cpt.yaml: model.*{found}'):
        check(files)


def test_what_composer_would_not_load(files: StudyFiles, tmp_path: Path):
    save(files)
    files.set('cpt', 'fsdp_config', {'state_dict_type': 'sharded'})
    with pytest.raises(ConfigError,
                       match="/cpt.yaml: fsdp_config.state_dict_typ"
                       "e='sharded': .* loads a sharded folder, .* is a file"):
        check(files)


def test_a_checkpoint_that_is_not_there(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)  # It may be planned before.
    with pytest.raises(CheckpointError, match='base.pt: there is no such file'):
        check_runs(grid)


def test_it_is_evaluated_and_never_trained(files: StudyFiles, monkeypatch):
    files.set('study', 'evaluation', 'eval.yaml')
    files.set('study', 'models.m.arms.upcycled.lr', [1e-4, 1e-3])
    monkeypatch.chdir(files.folder)
    for script in ('train.py', 'eval.py'):
        (files.folder / script).touch()
    save(files)
    grid = files.grid()
    machine = Machine(grid)
    monkeypatch.setattr(
        runner.Processes,
        'run',
        lambda _, *args, **kwargs: machine(*args, **kwargs),
    )
    monkeypatch.setattr(runner, 'check_runs', lambda _: None)
    assert StudyRunner(grid).run()
    swept = 'm_base_upcycled_1.4112e07_s17'
    assert list(machine.commands) == [
        f'{DENSE}_eval',
        f'{swept}_lr0.0001',
        f'{swept}_lr0.001',
        f'{swept}_lr0.001_eval',
        CPT,
        f'{CPT}_eval',
        'm_base_cpt_2.8224e07_s17',
        'm_base_cpt_2.8224e07_s17_eval',
        UPCYCLED,
        f'{UPCYCLED}_eval',
    ]
    machine.commands.clear()
    assert StudyRunner(files.grid()).run() and not machine.commands


def test_a_start_of_another_study_in_mlflow(files: StudyFiles):
    files.set('study', 'evaluation', 'eval.yaml')
    save(files)
    grid = files.grid()
    log(grid, f'{DENSE}_eval', {'metrics/eval/a/LanguageCrossEntropy': [3.0]})
    with pytest.raises(ConfigError,
                       match=f'has a run {DENSE}_eval in the exper'):
        runner._refuse_foreign_runs(measured.Measured(grid))


def test_the_report(files: StudyFiles, tmp_path: Path):
    files.set('study', 'seeds', [17, 18])
    files.set('study', 'evaluation', 'eval.yaml')
    files.set('eval', 'eval_gauntlet', GAUNTLET['eval_gauntlet'])
    grid = files.grid()

    def measure(run: Run) -> Measured:
        if run.place.arm is None:
            return Measured(0.0, {'prose': 2.0, 'web': 3.0}, (0.5, 0.5))
        better = 0.1 if run.place.arm == 'upcycled' else 0.0
        noise = 0.001 if run.place.seed == 18 else -0.001
        losses = {'prose': 2.25 + noise, 'web': 2.5 - better + noise}
        return Measured(2.5 - better + noise, losses, (0.5, 0.25 + better))

    lines = lines_of(make_results(grid, measure), tmp_path / 'report')
    text = '\n'.join(lines)
    assert 'nan' not in text and 'diverged' not in text
    assert '- m, base, 2.82e+07 FLOPs each, upcycled against cpt:' in lines
    # Steps of the start are not known; the rest is as measured.
    (start, ) = [line for line in lines if '| base | dense start |' in line]
    assert [cell.strip() for cell in start.split('|')[3:8]
           ] == ['-', '-', '-', '2.400e+12', '2.822e+16']
    # Forgotten of prose, learnt of the web, over the mean of the seeds.
    changes = text[text.index('### What it learnt'):]
    (row, ) = re.findall(r'\| base \| upcycled \| 2.8224e07 \|(.*)', changes)
    assert [cell.split()[0]
            for cell in row.split('|')[:2]] == ['+0.250', '-0.600']
    assert 'a budget is the FLOPs of the second phase' in text


def test_a_started_study_of_fractions_keeps_its_yamls(tmp_path: Path):
    # What an earlier version planned must not have changed.
    grid = StudyFiles(tmp_path).grid()
    write_yamls(grid)
    tags = train_yaml_of(grid, 'm_short_cpt_0.5_s17').loggers.mlflow.tags
    assert yaml.safe_load(OmegaConf.to_yaml(tags)) == {
        'model': 'm',
        'duration': 'short',
        'arm': 'cpt',
        'fraction': '0.5',
    }
    assert list_tasks(grid)[0].kind == 'train'


@pytest.mark.slow
@pytest.mark.usefixtures('checkout')
def test_a_whole_study():
    """Real data, trainer and evaluation, of a model that is there."""
    quickstart = yaml.safe_load(
        (YAMLS / 'study_quickstart_tiny.yaml').read_text()
    )
    tiny = quickstart['models']['tiny']
    config: Any = OmegaConf.merge(
        OmegaConf.load(YAMLS / 'quickstart_cpt.yaml'),
        tiny['arms']['cpt']['overrides'],
    )
    model = OmegaConf.to_container(config.model, resolve=True)
    save_dense(
        build_composer_model(model.pop('name'), model, tokenizer=None),
        'base.pt',
    )
    for key in ('durations', 'pretrain', 'fractions'):
        del tiny[key]
    tiny['checkpoints'] = {'base': {'path': 'base.pt', 'flops': 1e15}}
    # Some 60 steps of 0.6 GFLOPs.
    tiny['budgets'] = [4.0e10]
    for arm in tiny['arms'].values():
        arm['yaml'] = str(YAMLS / arm['yaml'])
    quickstart['evaluation'] = str(YAMLS / quickstart['evaluation'])
    Path('study.yaml').write_text(yaml.safe_dump(quickstart))
    study('run', 'study.yaml')
    assert '5 of 5 tasks, 100% of' in study('status', 'study.yaml')
    grid = plan_grid(read_study('study.yaml'))
    results = read_study_results(measured.Measured(grid)).results
    start, cpt, upcycled = (results[run.name] for run in grid.runs)
    # Both begin with what the checkpoint computes, on the same batch.
    assert upcycled.train_loss[0] == pytest.approx(cpt.train_loss[0], abs=1e-4)
    before = start.evaluation.losses
    assert grid.evaluation is not None
    assert before.keys() == grid.evaluation.held_out_texts
    for arm in (cpt, upcycled):
        assert all(
            arm.evaluation.losses[text] < before[text] for text in before
        )
    study('report', 'study.yaml')
    text = (grid.study.folder / 'report/report.md').read_text()
    assert 'FLOPs each, upcycled against cpt:' in text
    torch.save({}, 'base.pt')
    with pytest.raises(subprocess.CalledProcessError) as failed:
        study('run', 'study.yaml')
    assert 'with other settings' in failed.value.stderr
