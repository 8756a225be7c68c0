"""The code on docs/python.md runs as it stands there."""

import re
from pathlib import Path

import tiny_hf

PAGE = Path(__file__).parent.parent / 'docs' / 'python.md'


def test_the_code_on_the_page_runs(tmp_path, monkeypatch, capsys):
    tiny_hf.save_llama(tmp_path / 'dense')
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    names = {'FOLDER': 'dense', 'OUT': 'out'}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert names['router_ED'].shape == (8, tiny_hf.LLAMA['hidden_size'])
    assert tiny_hf.load('out').config.model_type == 'mixtral'
    assert capsys.readouterr().out.strip()
