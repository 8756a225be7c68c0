"""The harness brings what it needs: vLLM's environment has no more."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# What runs inside vLLM: its plugin, and scripts of their own.
OF_VLLM = {'strategy.py', 'generate.py', 'cpu_experts.py'}
FORBIDDEN = {
    'composer',
    'foundry_upcycle',
    'llmfoundry',
    'torch',
    'transformers',
    'vllm',
}
PROGRAM = '''
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
'''


def modules_of_the_harness() -> list[str]:
    files = (ROOT / 'benchmarks' / 'inference').rglob('*.py')
    return sorted(
        '.'.join(file.relative_to(ROOT).with_suffix('').parts
                ).removesuffix('.__init__', )
        for file in files
        if file.name not in OF_VLLM
    )


def test_nothing_of_training_or_of_vllm_is_imported():
    modules = modules_of_the_harness()
    result = subprocess.run(
        [sys.executable, '-c', PROGRAM, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    imported = set(json.loads(result.stdout))
    assert {'benchmarks.inference.run.runner', *modules} <= imported
    assert not {name.partition('.')[0] for name in imported} & FORBIDDEN
