"""The peer: lm-evaluation-harness. Run it with the Python of its environment.

    .venv-lm-eval/bin/python benchmarks/evaluation/ask_lm_eval.py \
        MODEL DATA OUT TASK... [--url URL]

MODEL is a Hugging Face folder, DATA what `foundry-upcycle gauntlet prepare`
wrote, TASK a file of lm_eval_tasks/ without its `.yaml`. For each, OUT/TASK.jsonl
gets the samples that lm-eval logs, and the tokens that it took each request for.

With a URL it asks a server that answers as vLLM does, and takes of MODEL only
the tokenizer. That server may be without one: it gets and gives token ids.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Optional

import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

_TASKS = Path(__file__).resolve().parent / 'lm_eval_tasks'


def ask(
    lm: TemplateLM,
    out: Path,
    tasks: list[str],
    records: Optional[int],
) -> None:
    """Evaluates, and writes the samples."""
    results = lm_eval.simple_evaluate(
        lm,
        tasks=[f'foundry_{task}' for task in tasks],
        num_fewshot=0,
        limit=records,
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


def _line(lm: TemplateLM, sample: dict[str, Any]) -> dict[str, Any]:
    # In `arguments` are the context and the continuation of each request.
    tokens = [lm._encode_pair(*pair) for pair in sample['arguments']]
    return {**sample, 'tokens': tokens}


def _model(args: argparse.Namespace) -> TemplateLM:
    """A model in float32 on the CPU, or one that a server has."""
    if args.url is None:
        # It takes torch, which a server's client does without.
        from lm_eval.models.huggingface import HFLM
        return HFLM(
            str(args.model),
            dtype='float32',
            device='cpu',
            batch_size=args.batch_size,
        )
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class TokenServer(LocalCompletionsAPI):
        """A server without a tokenizer."""

        def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            payload = super()._create_payload(*args, **kwargs)
            return {
                **payload,
                'detokenize': False,
                'return_token_ids': True,
                'return_tokens_as_token_ids': True,
            }

    return TokenServer(
        base_url=args.url,
        model=args.served_name,
        tokenizer=str(args.model),
        tokenizer_backend='huggingface',
        num_concurrent=args.batch_size,
        max_length=args.max_length,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('tasks', nargs='+')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--records', type=int, help='the first so many')
    parser.add_argument('--url', help='of completions')
    parser.add_argument('--served-name', help='of the model, at the URL')
    parser.add_argument(
        '--max-length',
        type=int,
        default=2048,
        help='tokens that the server takes',
    )
    return parser.parse_args()


if __name__ == '__main__':
    _args = _parse()
    _args.model, _args.out = _args.model.absolute(), _args.out.absolute()
    _lm = _model(_args)
    os.chdir(_args.data)  # The paths in the tasks' YAMLs are relative to it.
    ask(_lm, _args.out, _args.tasks, _args.records)
