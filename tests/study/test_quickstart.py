"""The whole quickstart, tiny: the real trainer, real text, a real report."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.measured import Measured, read_study_results
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import saved_checkpoint, shrunk_checkpoint

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name('foundry-upcycle')
YAML = 'yamls/study_quickstart_tiny.yaml'


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder like the project's root, with the tiny data."""
    for name in ('train.py', 'eval.py', 'yamls'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    make_data = [
        sys.executable,
        '-m',
        'foundry_upcycle.data.quickstart',
        'runs/quickstart_tiny',
        '--size',
        'tiny',
    ]
    subprocess.run(make_data, check=True, timeout=300)
    return tmp_path


def study(*args: str) -> str:
    return subprocess.run(
        [COMMAND, 'study', *args],
        check=True,
        timeout=900,
        capture_output=True,
        text=True,
    ).stdout


def interrupt_at_step(step: int, yaml: str = YAML, name: str = '') -> None:
    """Starts the study and ends it as Ctrl-C on a cluster would."""
    process = subprocess.Popen(
        [COMMAND, 'study', 'run', yaml],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if f'{name}] step {step}/' in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


def test_tiny_quickstart(checkout: Path):
    interrupt_at_step(50)
    grid = plan_grid(read_study(YAML))
    dense, cpt, upcycled = grid.runs
    # It had saved at steps 20 and 40.
    assert Measured(grid).n_steps(dense) in (40, 60)
    assert ' started ' in study('status', YAML)
    shown = study('run', YAML)
    assert shown.startswith('[1/6 tiny_short] goes on')
    assert 'step 10/120' not in shown
    assert '6 of 6 tasks, 100% of' in study('status', YAML)

    results = read_study_results(Measured(grid))
    assert len(results.by_place) == 3
    starts = {
        run.name: results.results[run.name].train_loss[0]
        for run in (dense, cpt, upcycled)
    }
    # Both go on from the dense model, on the same batch.
    assert starts[cpt.name] < starts[dense.name] - 0.5
    assert starts[upcycled.name] == pytest.approx(starts[cpt.name], abs=1e-4)
    assert upcycled.flops == pytest.approx(cpt.flops, rel=0.01)
    load = results.results[upcycled.name].expert_load
    assert load is not None and load.layers == (0, 1)
    for result in results.by_place.values():
        assert result.evaluation is not None
        assert result.evaluation.losses.keys() == {
            'headers', 'documentation', 'python'
        }
        assert len(result.evaluation.tasks.tasks) == 4
        assert result.seconds is not None and result.seconds > 0

    # All is done: no process starts.
    again = study('run', YAML)
    assert again.count('done') == 6 and 'starts' not in again
    folder = checkout / 'runs' / 'quickstart_tiny'
    assert f'wrote {grid.study.folder}' in study('report', YAML)
    page = (folder / 'report' / 'report.html').read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 4
    assert (folder / 'report' / 'report.md').stat().st_size > 1000


@pytest.mark.slow
def test_resumed_equals_uninterrupted(checkout: Path):
    grid = plan_grid(read_study(YAML))
    interrupt_at_step(50)
    study('run', YAML)
    resumed = read_study_results(Measured(grid)).results
    os.rename('runs/quickstart_tiny', 'runs/resumed')
    data = json.loads(Path('runs/resumed/data.json').read_text())
    assert data['seq_len'] == 128
    Path('runs/quickstart_tiny').mkdir()
    for name in ('data', 'tokenizer', 'tasks', 'data.json'):
        os.rename(f'runs/resumed/{name}', f'runs/quickstart_tiny/{name}')
    study('run', YAML)
    whole = read_study_results(Measured(grid)).results
    for run in grid.runs:
        resumed_loss = resumed[run.name].train_loss
        assert resumed_loss.tolist() == whole[run.name].train_loss.tolist()


HEALED = 'healed.yaml'


def write_healed(fraction: float = 1.0) -> None:
    """The tiny study, with arms that are shrunk, and one that is then healed."""
    content: Any = OmegaConf.to_container(OmegaConf.load(YAML))
    model = content['models']['tiny']
    model['fractions'] = [fraction]
    overrides = copy.deepcopy(model['pretrain']['overrides'])
    overrides['save_interval'] = '5ba'
    del overrides['model']['ffn_config']  # It follows from the mixture's.
    shrink = {
        'arm': 'upcycled',
        'dense': 'concat',
        'keep': 2,
        'by': 'load',
        'calibrate': 'runs/quickstart_tiny/data/headers/train',
        'tokens': 256,
        'heal': 0.25,
    }
    arms = model['arms']
    for name, start in (
        ('healed', shrink),
        ('shrunk', {'arm': 'upcycled', 'dense': 'mean', 'heal': 0}),
    ):
        arms[name] = {
            'yaml': 'quickstart_heal.yaml',
            'overrides': overrides,
            'shrink': start,
        }
    for phase in (model['pretrain'], *arms.values()):
        phase['yaml'] = f'yamls/{phase["yaml"]}'
    content['evaluation'] = f'yamls/{content["evaluation"]}'
    OmegaConf.save(content, HEALED)


@pytest.mark.slow
def test_shrunk_and_healed(checkout: Path):
    write_healed()
    grid = plan_grid(read_study(HEALED))
    name = 'tiny_short_healed_1_s17'
    interrupt_at_step(10, HEALED, name)
    # It had saved at steps 5 and 10.
    assert Measured(grid).n_steps(grid[name]) in (5, 10)
    shrunk = Path(shrunk_checkpoint(grid, grid[name]))
    before = shrunk.stat().st_mtime
    study('run', HEALED)
    # It went on with what it had started from.
    assert shrunk.stat().st_mtime == before
    assert '12 of 12 tasks, 100% of' in study('status', HEALED)
    source = saved_checkpoint(grid, grid['tiny_short_upcycled_0.75_s17'])
    assert verify(source, str(shrunk)).passed
    results = read_study_results(Measured(grid))
    found = {place.arm: r for place, r in results.by_place.items()}
    assert found.keys() == {None, 'cpt', 'upcycled', 'healed', 'shrunk'}
    for arm in ('upcycled', 'healed', 'shrunk'):
        assert found[arm].run.flops == pytest.approx(
            found['cpt'].run.flops,
            rel=0.01,
        )
    assert 'loss/train/kl' in RunFiles(grid.study, name).log.read_text()
    # It starts from what has been shrunk, which has learnt something.
    start = results.results['tiny_short'].train_loss[0]
    assert found['healed'].train_loss[0] < start - 0.5
    assert all(result.evaluation for result in found.values())
    study('report', HEALED)
    report = (grid.study.folder / 'report' / 'report.md').read_text()
    assert '| short | healed | 1 |' in report
