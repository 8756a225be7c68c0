"""Dense models to convert: real MPTs of several sizes, with random weights.

    python benchmarks/conversion/sources.py SIZE FOLDER DTYPE...

convert.py calls it where a source is missing.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from llmfoundry.utils.builders import build_composer_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from foundry_upcycle.conversion.export_hf import export_hf

_YAMLS = Path(__file__).parents[2] / 'yamls'


def model_section(size: str) -> dict[str, Any]:
    """The model of a train YAML; `430m` and `1b` are the paper's."""
    file = 'pretrain_1b.yaml' if size == '1b' else 'pretrain_430m.yaml'
    section = yaml.safe_load((_YAMLS / file).read_text())['model']
    section = copy.deepcopy(section)
    section.update(
        init_device='cpu',
        loss_fn='torch_crossentropy',
        max_seq_len=4096,
    )
    section['attn_config']['attn_impl'] = 'torch'
    # d_model, layers, heads, hidden size, vocabulary
    smaller = {
        'tiny': (64, 2, 4, 128, 256),
        '30m': (384, 6, 8, 960, 32000),
        '120m': (768, 12, 12, 1920, 32000),
    }
    if size in smaller:
        D, n_layers, n_heads, F, n_tokens = smaller[size]
        section.update(
            d_model=D,
            n_layers=n_layers,
            n_heads=n_heads,
            vocab_size=n_tokens,
        )
        section['ffn_config']['ffn_hidden_size'] = F
    return section


def make_sources(size: str, folder: Path, dtypes: list[str]) -> None:
    """Writes `dense.pt` as Composer does, and `llama-DTYPE` folders of it.

    The folders have a tokenizer, because mergekit wants one.

    Args:
        size: Of the model.
        folder: Where to write.
        dtypes: Of the Hugging Face folders; the `.pt` file is in float32.
    """
    torch.manual_seed(0)
    section = model_section(size)
    model = build_composer_model(section.pop('name'), section, tokenizer=None)
    state = {
        'model': model.state_dict(),
        'integrations': {
            'huggingface': model.get_metadata(),
        },
    }
    torch.save({'state': state}, folder / 'dense.pt')
    for dtype in dtypes:
        out = folder / f'llama-{dtype}'
        export_hf(
            str(folder / 'dense.pt'),
            str(out),
            dtype=getattr(torch, dtype),
        )
        words = {'<s>': 0, '</s>': 1}
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, '<s>')),
            bos_token='<s>',
            eos_token='</s>',
        ).save_pretrained(out)


if __name__ == '__main__':
    make_sources(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
