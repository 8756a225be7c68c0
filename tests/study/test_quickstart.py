import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from foundry_upcycle.study import quickstart, quickstart_plan
from foundry_upcycle.study.quickstart import main
from foundry_upcycle.study.quickstart_plan import SIZES, Size, plan_training
from foundry_upcycle.study.runner import StageError


@pytest.mark.parametrize('name', SIZES)
def test_arms_cost_the_same(name: str):
    plans = plan_training(SIZES[name])
    cpt, upcycle = plans['cpt'], plans['upcycle']
    assert upcycle.flops == pytest.approx(cpt.flops, rel=0.01)
    assert upcycle.tokens < cpt.tokens
    assert upcycle.tokens_per_step == cpt.tokens_per_step
    assert upcycle.shape.n_experts == 8 and upcycle.shape.top_k == 2


def test_arms_continue_the_same_model():
    plans = plan_training(SIZES['full'])
    assert plans['pretrain'].shape == plans['cpt'].shape
    assert plans['pretrain'].shape.n_expert_params == (
        plans['upcycle'].shape.n_expert_params
    )


def test_yamls_hold_the_numbers_of_the_full_size():
    for name, plan in plan_training(SIZES['full']).items():
        config = OmegaConf.load(plan.yaml)
        assert config.run_name == name
        assert config.max_duration == f'{plan.n_steps}ba'
        warmup = f'{SIZES["full"].warmup_steps}ba'
        assert config.scheduler.t_warmup == warmup


def test_flops_that_whole_steps_cannot_match():
    size = Size(
        pretrain_steps=5,
        cpt_steps=5,
        warmup_steps=1,
        pretrain_chars=1,
        part_chars=1,
        n_held_out=1,
        n_examples=1,
    )
    with pytest.raises(ValueError, match=r'cpt_steps=5: the nearest 4 steps'):
        plan_training(size)


def test_a_failed_stage_is_the_exit_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
):

    def fail(*args) -> None:
        raise StageError('the end of the log')

    monkeypatch.setattr(quickstart, '_prepare', fail)
    assert main(['--size', 'tiny', '--folder', str(tmp_path)]) == 1
    assert 'the end of the log' in capsys.readouterr().err


@pytest.mark.parametrize(
    'yaml,stage',
    [
        ('yamls/quickstart_cpt.yaml', 'cpt'),
        ('eval_gauntlet/quickstart.yaml', 'pretrain'),
        ('eval_gauntlet/quickstart_tasks.yaml', 'pretrain'),
    ],
)
def test_a_changed_yaml_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    yaml: str,
    stage: str,
):
    project = tmp_path / 'project'
    for name in ('yamls', 'eval_gauntlet'):
        shutil.copytree(quickstart.PROJECT / name, project / name)
    monkeypatch.setattr(quickstart_plan, 'PROJECT', project)
    monkeypatch.setattr(
        quickstart,
        '_GAUNTLET_YAMLS',
        tuple(sorted((project / 'eval_gauntlet').iterdir())),
    )
    trained = []
    for name in ('_prepare', '_report'):
        monkeypatch.setattr(quickstart, name, lambda *_: None)
    monkeypatch.setattr(
        quickstart,
        '_train',
        lambda _, plan: trained.append(plan.name),
    )
    for _ in range(2):
        quickstart.run_quickstart('tiny', tmp_path / 'run')
    assert trained == ['pretrain', 'cpt', 'upcycle']
    with (project / yaml).open('a') as file:
        file.write('# changed\n')
    label = f'{Path(yaml).name}=[0-9a-f]{{12}}'
    with pytest.raises(
            StageError,
            match=f'{stage} has finished with .*{label}.*, now .*{label}',
    ):
        quickstart.run_quickstart('tiny', tmp_path / 'run')


def test_tiny_quickstart(tmp_path: Path):
    command = [
        sys.executable,
        '-m',
        'foundry_upcycle.study.quickstart',
        '--size',
        'tiny',
        '--folder',
        str(tmp_path),
    ]
    subprocess.run(command, check=True, timeout=900)
    report = (tmp_path / 'report.md').read_text()
    cells = {
        line.split('|')[1].strip(): line.split('|')[2:-1]
        for line in report.splitlines()
        if line.startswith('|')
    }
    _, cpt, upcycled = map(float, cells['training FLOPs'])
    assert upcycled == pytest.approx(cpt, rel=0.01)
    assert cells['loss, held-out domain']
    for name in ('loss', 'expert_load'):
        assert (tmp_path / 'figures' / f'{name}.png').stat().st_size > 10_000
    # Run again: every stage is skipped, the report is written anew.
    again = subprocess.run(
        command,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert again.stdout.count('finished before') == 4
    markers = sorted((tmp_path / 'stages').iterdir())
    assert [marker.stem for marker in markers] == [
        'cpt',
        'prepare',
        'pretrain',
        'upcycle',
    ]
    assert all(json.loads(marker.read_text())['seconds'] for marker in markers)
