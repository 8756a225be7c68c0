"""Held-out tokens as lines, for the serving harness."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from streaming import MDSWriter

from benchmarks.inference.engine.texts import read_texts
from foundry_upcycle.data.token_lines import main


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp('model')
    return tiny.save_dense(tiny.build_dense(), folder / 'dense.pt')


def test_sequences_of_a_stream(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    sequences = [list(range(k, k + 8)) for k in range(5)]
    columns = {'tokens': 'ndarray:uint16'}
    with MDSWriter(out=str(tmp_path / 'mds'), columns=columns) as writer:
        for sequence in sequences:
            writer.write({'tokens': np.array(sequence, dtype=np.uint16)})
    out = tmp_path / 'out.jsonl'
    # The last token has none after it to score.
    words = [model, str(tmp_path / 'mds'), str(out), '--tokens', '17']
    assert main(words) == 0
    assert capsys.readouterr().out == '2 sequences\n'
    found = [json.loads(line)['prompt'] for line in out.open()]
    assert found == sequences[:2]
    # They are what the harness reads.
    assert len(read_texts(out, tmp_path, tiny.VOCAB)) == 2


def test_no_text(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / 'out.jsonl'
    assert main([model, str(tmp_path / 'none'), str(out)]) == 1
    assert 'there is no such file or folder' in capsys.readouterr().err
    assert not out.exists()
