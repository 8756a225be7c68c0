"""``python -m benchmarks.inference``: commands and their exit status."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from tiny_serving import (
    SHIPPED,
    STUDIES,
    StandIn,
    write_real_models,
    write_study,
)

from benchmarks.inference import __main__ as command
from benchmarks.inference.engine.machine import this_machine
from benchmarks.inference.run.runner import Runner
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.servers import list_servers

ROOT = Path(__file__).parents[3]


def study_in(folder: Path, *changes: tuple[str, Any]) -> str:
    out = ('folder', str(folder / 'out'))
    return str(write_study(folder, [out, ('top_k', [2]), *changes]))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """What `run` measures with, instead of vLLM."""
    stand_in = StandIn()
    monkeypatch.setattr(
        'benchmarks.inference.run.measure.VllmBackend',
        lambda study: stand_in,
    )
    return stand_in


def test_run_until_nothing_remains(
    tmp_path: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
):
    path = study_in(tmp_path)
    stand_in.broken.add('tiny dense base')
    assert command.main(['run', path]) == 1
    assert '3 remain' in capsys.readouterr().out
    stand_in.broken.clear()
    assert command.main(['run', path]) == 0
    assert ' points done, 0 remain' in capsys.readouterr().out
    assert command.main(['run', '--full-grid', path]) == 0
    # 2 servers, 2 runs, 4 rates and unbounded.
    assert '20 points done, 0 remain' in capsys.readouterr().out


def test_report_of_what_was_measured(
    tmp_path: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
):
    path = study_in(tmp_path)
    assert command.main(['report', path]) == 1
    assert 'there is no points/*/point.json in it.' in capsys.readouterr().err
    command.main(['run', path])
    capsys.readouterr()
    assert command.main(['report', path]) == 0
    written = tmp_path / 'out/report/report.md'
    assert capsys.readouterr().out == f'{written}\n'
    assert written.is_file()


def test_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = study_in(tmp_path)
    assert command.main(['plan', path]) == 0
    server = list_servers(read_study(path))[0]
    out = capsys.readouterr().out
    assert Point(server, 0.5, 0).id in out
    assert Point(server, 1.0, 0).id not in out
    assert command.main(['plan', '--full-grid', path]) == 0
    assert Point(server, 1.0, 0).id in capsys.readouterr().out


@pytest.mark.parametrize(('vllm', 'status'), [('0.32.0+cpu', 0), (None, 1)])
def test_doctor(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    vllm: Optional[str],
    status: int,
):
    machine = replace(this_machine(), vllm=vllm, memory_gib=64.0)
    monkeypatch.setattr(
        'benchmarks.inference.engine.machine.this_machine',
        lambda: machine,
    )
    path = study_in(tmp_path, ('variants', ['base', 'draft_speculation']))
    # Skipped with a reason is no failure; without vLLM nothing runs.
    assert command.main(['doctor', path]) == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('  ')[0] for line in lines[-3:]] == [
        'tiny dense base',
        'tiny moe E=8 K=2 base',
        'tiny moe E=8 K=2 draft_speculation',
    ]


def test_errors_take_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert command.main(['plan', study_in(tmp_path, ('runs', 0))]) == 1
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err == (
        'benchmarks.inference: runs=0: it is out of range. Fix: set it to a '
        'number of at least 1.\n'
    )


def test_without_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # The Python of the tests has none beside it.
    assert not Path(sys.executable).with_name('vllm').is_file()
    assert command.main(['run', study_in(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert 'no such command. Fix: run `make install-vllm`' in error
    assert error.count('\n') == 1


def test_interrupted(
    tmp_path: Path,
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
):

    def interrupt(point: Point) -> None:
        raise KeyboardInterrupt

    stand_in.before = interrupt
    assert command.main(['run', study_in(tmp_path)]) == 130
    assert 'interrupted. Run it again' in capsys.readouterr().err
    assert stand_in.events[-1] == 'end tiny dense base run 1'


@pytest.mark.parametrize('words', [[], ['measure'], ['plan']])
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        command.main(words)
    assert error.value.code == 2
    assert 'usage: python -m benchmarks.inference' in capsys.readouterr().err


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_studies_can_be_planned(name: str, tmp_path: Path):
    """As it is called, in another process: it needs nothing of tests."""
    path = STUDIES / f'{name}.yaml'
    write_real_models(tmp_path)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != 'PYTHONPATH'
    } | {
        'PYTHONPATH': str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, '-m', 'benchmarks.inference', 'plan',
         str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(f'{name}: ')


def test_runner_and_command_agree(tmp_path: Path, stand_in: StandIn):
    path = study_in(tmp_path)
    command.main(['run', path])
    again = StandIn()
    assert Runner(read_study(path), again, say=lambda _: None).run()
    assert again.events == []
