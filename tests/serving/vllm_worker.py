r"""Generates and scores with vLLM, in its own environment.

    .venv-vllm/bin/python tests/serving/vllm_worker.py \
        FOLDER PROMPTS OUT [FOLDER PROMPTS OUT ...]

PROMPTS is a JSON file `{"prompts": [[token id, ...], ...], "max_tokens": n}`.
OUT becomes `{"tokens": ..., "logprobs": ...}`: of each prompt the `max_tokens`
tokens that greedy decoding appends, and the log-probabilities of its own
tokens from the second on.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# vLLM reads these when it is imported. Nothing is fetched, and the engine
# runs in this process, so that an error in it ends the process.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('VLLM_ENABLE_V1_MULTIPROCESSING', '0')
os.environ.setdefault('VLLM_NO_USAGE_STATS', '1')
# GiB; by default it takes a large part of the machine's memory.
os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')

from vllm import LLM, SamplingParams  # noqa: E402

__all__ = ['main']


def main(folder: str, prompts_file: str, out_file: str) -> None:
    """See the module's docstring."""
    request = json.loads(Path(prompts_file).read_text())
    prompts, max_tokens = request['prompts'], request['max_tokens']
    llm = LLM(
        model=folder,
        dtype='float32',
        enforce_eager=True,
        max_model_len=max(map(len, prompts)) + max_tokens,
        # A prompt that is cached is not scored.
        enable_prefix_caching=False,
        # The prompts are token ids; tiny test models have no tokenizer.
        skip_tokenizer_init=True,
    )
    outputs = llm.generate(
        [{
            'prompt_token_ids': prompt
        } for prompt in prompts],
        SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            # Else a sequence may end before its last token.
            ignore_eos=True,
            prompt_logprobs=0,
            detokenize=False,
        ),
    )
    result = {
        'tokens': [list(output.outputs[0].token_ids) for output in outputs],
        'logprobs': [
            _logprobs_of_prompt(prompt, output)
            for prompt, output in zip(prompts, outputs)
        ],
    }
    Path(out_file).write_text(json.dumps(result))


def _logprobs_of_prompt(prompt: list[int], output: Any) -> list[float]:
    # Nothing precedes the first token: its entry is None.
    return [
        scores[token].logprob
        for token, scores in zip(prompt[1:], output.prompt_logprobs[1:])
    ]


# Processes that vLLM spawns import this file too.
if __name__ == '__main__':
    for start in range(1, len(sys.argv), 3):
        main(*sys.argv[start:start + 3])
