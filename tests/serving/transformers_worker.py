r"""Computes logits with transformers 5, in the environment of vLLM.

    .venv-vllm/bin/python tests/serving/transformers_worker.py \
        FOLDER PROMPTS OUT [FOLDER PROMPTS OUT ...]

PROMPTS is a JSON file `{"prompts": [[token id, ...], ...]}`. OUT becomes
`{"version": ..., "info": ..., "logits": ...}`: transformers' version, the
weights that it missed or did not expect by kind, and the logits of each
prompt.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import torch  # noqa: E402
import transformers  # noqa: E402

__all__ = ['main']


@torch.no_grad()
def main(folder: str, prompts_file: str, out_file: str) -> None:
    """See the module's docstring."""
    prompts = json.loads(Path(prompts_file).read_text())['prompts']
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
    )
    model.eval()
    result = {
        'version':
        transformers.__version__,
        # Sets of names, and messages.
        'info': {
            kind: sorted(map(str, found))
            for kind, found in info.items()
        },
        'logits': [
            model(torch.tensor([prompt])).logits[0].tolist()
            for prompt in prompts
        ],
    }
    Path(out_file).write_text(json.dumps(result))


if __name__ == '__main__':
    for start in range(1, len(sys.argv), 3):
        main(*sys.argv[start:start + 3])
