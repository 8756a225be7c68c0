"""The peer: lm-evaluation-harness. Run it with the Python of its environment.

    .venv-lm-eval/bin/python benchmarks/evaluation/ask_lm_eval.py \
        MODEL DATA OUT BATCH_SIZE TASK...

MODEL is a Hugging Face folder, DATA what `foundry-upcycle gauntlet prepare`
wrote, TASK a file of lm_eval_tasks/ without its `.yaml`. For each, OUT/TASK.jsonl
gets the samples that lm-eval logs, and the tokens that it took each request for.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

_TASKS = Path(__file__).resolve().parent / 'lm_eval_tasks'


def ask(
    model: str,
    out: Path,
    batch_size: int,
    tasks: list[str],
) -> None:
    """Evaluates, in float32 on the CPU, and writes the samples."""
    lm = HFLM(model, dtype='float32', device='cpu', batch_size=batch_size)
    results = lm_eval.simple_evaluate(
        lm,
        tasks=[f'foundry_{task}' for task in tasks],
        num_fewshot=0,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(
            include_path=str(_TASKS),
            include_defaults=False,
        ),
    )
    assert results is not None  # It is None on ranks other than the first.
    for task in tasks:
        samples = results['samples'][f'foundry_{task}']
        with open(out / f'{task}.jsonl', 'w', encoding='utf-8') as file:
            for sample in samples:
                file.write(json.dumps(_line(lm, sample)) + '\n')


def _line(lm: HFLM, sample: dict[str, Any]) -> dict[str, Any]:
    # In `arguments` are the context and the continuation of each request.
    tokens = [lm._encode_pair(*pair) for pair in sample['arguments']]
    return {**sample, 'tokens': tokens}


if __name__ == '__main__':
    _model, _data, _out, _batch_size, *_tasks = sys.argv[1:]
    _model, _out = os.path.abspath(_model), os.path.abspath(_out)
    os.chdir(_data)  # The paths in the tasks' YAMLs are relative to it.
    ask(_model, Path(_out), int(_batch_size), _tasks)
