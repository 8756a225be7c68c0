"""Conversions start without the training stack, which takes ten seconds."""

import json
import subprocess
import sys

import tiny
import tiny_hf

PROGRAM = '''
import json
import sys
from foundry_upcycle.cli.app import app

heavy = ('composer', 'llmfoundry', 'streaming', 'transformers')
found = {}
for command in json.loads(sys.argv[1]):
    app(command, standalone_mode=False)
    found[' '.join(command[:1])] = [m for m in heavy if m in sys.modules]
print(json.dumps(found))
'''


def test_no_conversion_loads_llm_foundry(tmp_path):
    dense = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    tiny_hf.save_llama(tmp_path / 'llama')
    llama = str(tmp_path / 'llama')
    moe = str(tmp_path / 'moe.pt')
    commands = [
        ['inspect', dense],
        ['convert', dense, moe, '--no-tokenizer'],
        ['import-hf', llama,
         str(tmp_path / 'imported'), '--no-tokenizer'],
        ['export-hf', moe,
         str(tmp_path / 'exported'), '--no-tokenizer'],
    ]
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM,
         json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert found['inspect'] == found['convert'] == []
    # What a Hugging Face model is follows from transformers' own defaults.
    assert found['import-hf'] == found['export-hf'] == ['transformers']
