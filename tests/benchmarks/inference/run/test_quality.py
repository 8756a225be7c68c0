"""Quality of answers, asked of a stub of vLLM that counts.

To its mixtures the texts, which count too, hold no surprise: the next number is
what they find likeliest, with -0.5. Its dense models look for the number after.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from stubbed_vllm import use_stub
from tiny_quality import GREEDY, TEXT, changes_in, write_models
from tiny_serving import REMOVED, write_study

from benchmarks.inference import __main__ as command
from benchmarks.inference.report.answers import read_answers
from benchmarks.inference.report.records import Arm

DENSE, MOE = Arm(1, 1), Arm(8, 2)


def prepare(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *changes: tuple[str, Any],
) -> str:
    """A study of a dense model and a mixture, of one rate."""
    use_stub(folder, monkeypatch)
    write_models(folder)
    return str(
        write_study(
            folder,
            [
                *changes_in(folder),
                ('sizes tiny others', REMOVED),
                ('top_k', [2]),
                ('runs', 1),
                (
                    'rates', {
                        'step': 1,
                        'start': 1,
                        'stop': 1,
                        'unbounded': False
                    }
                ),
                # Nineteen numbers in pieces of ten, eight of them new.
                ('engine max_model_len', 11),
                ('workload input_tokens', 4),
                *changes,
            ],
        ),
    )


def test_what_servers_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = prepare(tmp_path, monkeypatch)
    assert command.main(['run', study]) == 0
    found, missing = read_answers(tmp_path / 'out')
    dense, moe = found['tiny'][DENSE], found['tiny'][MOE]
    assert not missing
    n = len(TEXT['prompt']) - 1
    assert moe.tokens == dense.tokens == (n, n)
    assert moe.nll == (0.5 * n, 0.5 * n)
    assert dense.nll == (2.0 * n, 2.0 * n)
    assert moe.n_bytes == (40, 40)
    assert moe.likeliest == (tuple(range(1, n + 1)), ) * 2
    assert dense.likeliest == (tuple(range(2, n + 2)), ) * 2
    length = GREEDY['input_tokens']
    assert moe.greedy == ((length, length + 1, length + 2, length + 3), )
    assert (moe.reference, moe.baseline) == (MOE, DENSE)
    assert command.main(['report', study]) == 0
    report = (tmp_path / 'out/report/report.md').read_text()
    assert 'quality_tiny.png' in report and '### Quality and cost' in report


def test_a_server_is_asked_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Also where its points were measured before there was such a section."""
    study = prepare(tmp_path, monkeypatch, ('quality', REMOVED))
    assert command.main(['run', study]) == 0
    assert not (tmp_path / 'out/quality').exists()
    points = {p: p.read_bytes() for p in tmp_path.glob('out/points/*/*.json')}
    study = prepare_again(tmp_path)
    assert command.main(['run', study]) == 0
    records = {
        path: path.read_bytes()
        for path in tmp_path.glob('out/quality/*/quality.json')
    }
    assert len(records) == 2
    assert command.main(['run', study]) == 0
    assert all(path.read_bytes() == was for path, was in records.items())
    assert all(path.read_bytes() == was for path, was in points.items())


def prepare_again(folder: Path) -> str:
    """The study of ``prepare``, with its section ``quality``."""
    path = folder / 'study.yaml'
    content = yaml.safe_load(path.read_text())
    content['quality'] = dict(changes_in(folder))['quality']
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_broken_answer_fails_and_is_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    study = prepare(tmp_path, monkeypatch)
    monkeypatch.setenv('STUB_VLLM', 'no scores')
    assert command.main(['run', study]) == 1
    out = capsys.readouterr().out
    assert 'tiny dense base quality: failed: quality=' in out
    assert '9 scores of 10 tokens' in out
    assert out.endswith('2 points done, 2 remain\n')
    found, missing = read_answers(tmp_path / 'out')
    assert not found
    assert [m.status for m in missing] == ['failed', 'failed']
    # What was measured of speed is reported, with why the rest is not there.
    assert command.main(['report', study]) == 0
    report = (tmp_path / 'out/report/report.md').read_text()
    assert 'Not asked for quality:' in report
    monkeypatch.delenv('STUB_VLLM')
    assert command.main(['run', study]) == 0
    record, *_ = tmp_path.glob('out/quality/*/quality.json')
    assert json.loads(record.read_text())['status'] == 'done'
