"""Saves a tokenizer, or says what one does, in the environment of vLLM.

    .venv-vllm/bin/python tests/serving/tokenizer_worker.py save FROM TO
    .venv-vllm/bin/python tests/serving/tokenizer_worker.py load FOLDER

FROM is a folder of transformers 4. `load` prints JSON.
"""

import json
import os
import sys

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import transformers  # noqa: E402

__all__ = ['load', 'save']


def save(source: str, out: str) -> None:
    """Saves the tokenizer, with a special token more and two templates."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source,
        extra_special_tokens=['w124'],
    )
    tokenizer.chat_template = {
        'default': 'chat {{ messages }}\n',
        'rag': 'rag {{ messages }}',
    }
    tokenizer.save_pretrained(out)


def load(folder: str) -> None:
    """Prints version, tokens of a text, ids and templates."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(folder)
    found = {
        'version': transformers.__version__,
        'text': tokenizer('w0 w124').input_ids,
        'special': sorted(tokenizer.all_special_ids),
        'eos': [tokenizer.eos_token_id, generation.eos_token_id],
        'templates': tokenizer.chat_template,
    }
    print(json.dumps(found))


if __name__ == '__main__':
    {'save': save, 'load': load}[sys.argv[1]](*sys.argv[2:])
