"""Tiny Hugging Face folders that the tests share."""

import json
import tempfile
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from composer.models import ComposerModel
from llmfoundry.utils.builders import build_composer_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB = 128

LLAMA: dict[str, Any] = {
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'vocab_size': VOCAB,
    'max_position_embeddings': 64,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 0,
}


def build(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model, its norms away from 1."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**LLAMA, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def build_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    return build('llama', seed, **changes)


def save(folder: Any, model: PreTrainedModel) -> PreTrainedModel:
    """Saves a model and a tokenizer of its vocabulary."""
    model.save_pretrained(folder)
    save_tokenizer(folder, model.config.vocab_size)
    return model


def save_llama(folder: Any, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    return save(folder, build_llama(seed, **changes))


def save_tokenizer(folder: Any, vocab_size: int = VOCAB) -> None:
    words = ['<pad>', '<s>', '</s>', *(f'w{i}' for i in range(vocab_size - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({
            word: i
            for i, word in enumerate(words)
        }, '<pad>'),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
    ).save_pretrained(folder)


def save_tokenizer_5(folder: Path, vocab_size: int = VOCAB) -> None:
    """The same tokenizer, as transformers 5.19 saves it.

    It has two chat templates, and its last token is a special one.
    """
    with tempfile.TemporaryDirectory() as of_4:
        save_tokenizer(of_4, vocab_size)
        tokenizer = json.loads(Path(of_4, 'tokenizer.json').read_text())
    last = {'id': vocab_size - 1, 'content': f'w{vocab_size - 4}'}
    tokenizer['added_tokens'].append({
        **tokenizer['added_tokens'][0],
        **last,
    })
    (folder / 'special_tokens_map.json').unlink(missing_ok=True)
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({
            'backend': 'tokenizers',
            'bos_token': '<s>',
            'eos_token': '</s>',
            'extra_special_tokens': [last['content']],
            # What transformers writes where there is no limit.
            'model_max_length': int(1e30),
            'pad_token': '<pad>',
            'tokenizer_class': 'TokenizersBackend',
        }),
    )
    (folder / 'chat_template.jinja').write_text('chat {{ messages }}\n')
    others = folder / 'additional_chat_templates'
    others.mkdir()
    (others / 'rag.jinja').write_text('rag {{ messages }}')


def load(folder: Any, **kwargs: Any) -> Any:
    """What transformers makes of a folder; raises on a missing weight."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        **kwargs,
    )
    assert not any(info.values()), info
    return model.eval()


def build_from_section(
    model_yaml: Path,
    weights: Path,
    name: Optional[str] = None,
    **ffn: Any,
) -> ComposerModel:
    """Builds the model of what ``import_hf`` wrote, as a run would.

    Args:
        model_yaml: Its YAML.
        weights: A Composer file.
        name: Another model class.
        ffn: Changes ``ffn_config``.
    """
    section = dict(yaml.safe_load(model_yaml.read_text())['model'])
    own_name = section.pop('name')
    section['ffn_config'].update(ffn)
    model = build_composer_model(
        name or own_name,
        {
            **section, 'loss_fn': 'torch_crossentropy'
        },
        tokenizer=None,
    )
    content = torch.load(weights, weights_only=True)
    model.load_state_dict(content['state']['model'])
    return model.eval()


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (2, 24), generator=generator)
    with torch.no_grad():
        return model(ids).logits
