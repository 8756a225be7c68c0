"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from foundry_upcycle.checkpoints.huggingface.gguf import unpack_gguf
from foundry_upcycle.errors import CheckpointError

N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 16
NORM_EPS = float(np.float32(1e-5))

# Ġ is the space, as in all byte-level vocabularies.
MERGES = ['t h', 'th e', 'Ġ the', '1 2', '12 3', 'a b', 'ab c', 'x ab']
SPECIAL = ['<|endoftext|>', '<|start|>', '<|end|>']
USER_DEFINED = ['<tool>']
# A token that no merge makes.
WHOLE = ['xyz']
TOKENS = [
    *SPECIAL,
    *USER_DEFINED,
    *sorted(ByteLevel.alphabet()),
    *(merge.replace(' ', '') for merge in MERGES),
    *WHOLE,
]
TOKEN_TYPES = [3] * 3 + [4] + [1] * (len(TOKENS) - 4)

SIZES = {
    'vocab_size': len(TOKENS),
    'hidden_size': N_HEADS * HEAD_DIM,
    'intermediate_size': 96,
    'num_hidden_layers': 2,
    'num_attention_heads': N_HEADS,
    'num_key_value_heads': N_KV_HEADS,
    'max_position_embeddings': 64,
    'rms_norm_eps': NORM_EPS,
    'rope_theta': 5000.0,
}

# Module of transformers -> of GGUF.
LAYER_NAMES = {
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
}
NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    **{
        f'model.layers.{i}.{hf}': f'blk.{i}.{name}'
        for i in range(2)
        for hf, name in LAYER_NAMES.items()
    },
}


def build(architecture: str, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    if architecture == 'llama':
        config = LlamaConfig(**SIZES, tie_word_embeddings=tied)
        model = LlamaForCausalLM(config)
    else:
        config = Qwen2Config(**SIZES, tie_word_embeddings=tied)
        model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the halves of each head are interleaved."""
    halves = weight.reshape(n_heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    architecture: str = 'llama',
    tied: bool = True,
    tensors: Any = (),
    **changes: Any,
) -> PreTrainedModel:
    """Writes a random model and a tokenizer.

    Args:
        file: Where.
        architecture: Of the model.
        tied: Whether the embedding is the output layer.
        tensors: Names of tensors to add.
        changes: Metadata, their dots written as `__`; None leaves one out.
    """
    model = build(architecture, tied)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name('tiny')
    fields = {
        'block_count': 2,
        'context_length': 64,
        'embedding_length': SIZES['hidden_size'],
        'feed_forward_length': 96,
        'attention.head_count': N_HEADS,
        'attention.head_count_kv': N_KV_HEADS,
        'attention.layer_norm_rms_epsilon': NORM_EPS,
        'rope.freq_base': 5000.0,
        'rope.dimension_count': HEAD_DIM,
    }
    fields = {f'{architecture}.{name}': value for name, value in fields.items()}
    fields |= {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'smollm',
        'tokenizer.ggml.tokens': TOKENS,
        'tokenizer.ggml.token_type': TOKEN_TYPES,
        'tokenizer.ggml.merges': MERGES,
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.padding_token_id': 2,
        'tokenizer.ggml.unknown_token_id': 0,
    }
    fields |= {name.replace('__', '.'): v for name, v in changes.items()}
    for name, value in fields.items():
        add_field(writer, name, value)
    for name, tensor in model.state_dict().items():
        if tied and name == 'lm_head.weight':
            continue
        module, kind = name.rsplit('.', 1)
        array = tensor.numpy()
        if architecture == 'llama' and module.endswith(('q_proj', 'k_proj')):
            is_query = module.endswith('q_proj')
            array = permuted(array, N_HEADS if is_query else N_KV_HEADS)
        writer.add_tensor(f'{NAMES[module]}.{kind}', array)
    for name in tensors:
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def add_field(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value is not None:
        writer.add_array(name, value)


def unpack(tmp_path: Path, **changes: Any) -> Any:
    """Writes a file, unpacks it, and loads the tokenizer."""
    write_gguf(tmp_path / 'tiny.gguf', **changes)
    unpack_gguf(str(tmp_path / 'tiny.gguf'), str(tmp_path / 'hf'))
    return AutoTokenizer.from_pretrained(tmp_path / 'hf')


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('architecture', ['llama', 'qwen2'])
def test_model_computes_the_same(
    tmp_path: Path,
    architecture: str,
    tied: bool,
):
    file = tmp_path / 'tiny.gguf'
    original = write_gguf(file, architecture, tied)
    unpack_gguf(str(file), str(tmp_path / 'hf'))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
    tokens = torch.randint(0, len(TOKENS), (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).logits,
            original(tokens).logits,
            rtol=0,
            atol=0,
        )
    assert model.config.model_type == architecture
    assert model.config.tie_word_embeddings == tied
    assert model.config.torch_dtype == torch.float32


def test_quantised_weights_become_what_they_stand_for(tmp_path: Path):
    file = tmp_path / 'tiny.gguf'
    weight = np.linspace(-1, 1, 64, dtype=np.float32)[None].repeat(64, 0)
    kind = gguf.GGMLQuantizationType.Q8_0
    quantised = gguf.quantize(weight, kind)
    write_gguf(file)
    # Of the file just written, with one tensor in its place.
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / 'q8.gguf', 'llama')
    for name, field in reader.fields.items():
        if not name.startswith('GGUF.') and name != 'general.architecture':
            add_field(writer, name, field.contents())
    for tensor in reader.tensors:
        if tensor.name == 'blk.0.attn_v.weight':
            writer.add_tensor(tensor.name, quantised[:32], raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unpack_gguf(str(tmp_path / 'q8.gguf'), str(tmp_path / 'hf'))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
    found = model.model.layers[0].self_attn.v_proj.weight.detach().numpy()
    np.testing.assert_array_equal(found, gguf.dequantize(quantised, kind)[:32])
    # A block of 32 values in 8 bits: steps of its largest / 127.
    np.testing.assert_allclose(found, weight[:32], atol=1 / 127)


def test_config_has_the_files_values(tmp_path: Path):
    unpack(tmp_path)
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    # The float32 next to 1e-5, as a float64.
    assert config['rms_norm_eps'] == 9.999999747378752e-06
    assert config['rope_theta'] == 5000.0
    generation = (tmp_path / 'hf' / 'generation_config.json').read_text()
    for found in (config, json.loads(generation)):
        ids = [found[f'{kind}_token_id'] for kind in ('bos', 'eos', 'pad')]
        assert ids == [1, 2, 2]
    # transformers' own keys and no others, or later readers would warn.
    assert {*config} <= {
        *LlamaConfig().to_dict(),
        'architectures',
        'torch_dtype',
        'transformers_version',
    }


def test_tokenizer_is_the_files(tmp_path: Path):
    template = '{% for m in messages %}<|start|>{{ m.content }}{% endfor %}'
    changes = {'tokenizer__chat_template': template}
    tokenizer = unpack(tmp_path, **changes)
    assert tokenizer.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    assert len(tokenizer) == len(TOKENS)
    assert tokenizer.special_tokens_map == {
        'bos_token': '<|start|>',
        'eos_token': '<|end|>',
        'pad_token': '<|end|>',
        'unk_token': '<|endoftext|>',
    }
    assert tokenizer.model_input_names == ['input_ids', 'attention_mask']
    assert tokenizer.model_max_length == 64
    assert tokenizer.clean_up_tokenization_spaces is False
    messages = [{'role': 'user', 'content': 'abc'}]
    ids = tokenizer.apply_chat_template(messages)
    assert tokenizer.convert_ids_to_tokens(ids) == ['<|start|>', 'abc']
    assert sorted(path.name for path in (tmp_path / 'hf').iterdir()) == [
        'config.json',
        'generation_config.json',
        'model.safetensors',
        'special_tokens_map.json',
        'tokenizer.json',
        'tokenizer_config.json',
    ]


@pytest.mark.parametrize('pre', ['smollm', 'gpt-2', 'llama-bpe', 'qwen2'])
def test_text_survives(tmp_path: Path, pre: str):
    tokenizer = unpack(tmp_path, tokenizer__ggml__pre=pre)
    for text in (
            'the abc, the 123\n\n',
            '  two spaces\t and a tab ',
            'def f(x):\n    return x + 12  # é — 漢字 😀\r\n',
            " a , b . it's",
            '<|start|>the <tool>abc<|end|>\n',
    ):
        ids = tokenizer(text, add_special_tokens=False)['input_ids']
        assert tokenizer.decode(ids) == text


# Worked by hand from MERGES and the words that each name stands for.
@pytest.mark.parametrize(
    'pre,text,expected',
    [
        ('smollm', 'the the', ['the', 'Ġthe']),
        ('smollm', '<|end|>ab<tool>', ['<|end|>', 'ab', '<tool>']),
        # Each digit is a word; the space before one is left alone.
        ('smollm', ' 123', ['Ġ', '1', '2', '3']),
        # A number is one word, its space included; no merge is `Ġ 1`.
        ('gpt-2', ' 1231', ['Ġ', '123', '1']),
        # Three digits at most: 312, 312; without that limit 3, 123, 12.
        ('llama-bpe', '312312', ['3', '12', '3', '12']),
        ('gpt-2', '312312', ['3', '123', '12']),
        ('qwen2', ' 123', ['Ġ', '1', '2', '3']),
        # A word that is a token stays whole, though no merge makes it.
        ('llama-bpe', 'xyz', ['xyz']),
        ('gpt-2', 'xyz', ['x', 'y', 'z']),
        # é of two code points becomes one, of two bytes.
        ('qwen2', 'e\u0301', ['Ã', '©']),
        ('gpt-2', 'e\u0301', ['e', 'Ì', 'ģ']),
    ],
)
def test_words_end_where_they_did(
    tmp_path: Path,
    pre: str,
    text: str,
    expected: list[str],
):
    tokenizer = unpack(tmp_path, tokenizer__ggml__pre=pre)
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    assert tokenizer.convert_ids_to_tokens(ids) == expected


@pytest.mark.parametrize(
    'pre,add_bos,expected',
    [
        ('smollm', None, False),
        ('smollm', True, True),
        # llama.cpp's default for this one.
        ('llama-bpe', None, True),
        ('llama-bpe', False, False),
    ],
)
def test_bos(tmp_path: Path, pre: str, add_bos: Any, expected: bool):
    changes = {'tokenizer__ggml__pre': pre}
    changes['tokenizer__ggml__add_bos_token'] = add_bos
    tokenizer = unpack(tmp_path, **changes)
    ids = tokenizer('ab')['input_ids']
    tokens = ['<|start|>', 'ab'] if expected else ['ab']
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == 'ab'


@pytest.mark.parametrize(
    'changes,match',
    [
        ({
            'architecture': 'qwen2',
            'qwen2__rope__scaling__type': 'yarn'
        }, "qwen2.rope.scaling.type is 'yarn', which transformers does not"),
        ({
            'llama__expert_count': 8
        }, 'llama.expert_count is 8, which transformers does not read.* Fix: '),
        ({
            'llama__rope__dimension_count': 8
        }, 'rope.dimension_count is 8, and the heads have 16 dimensions'),
        ({
            'llama__attention__head_count': None
        }, 'it has no llama.attention.head_count'),
        ({
            'tokenizer__ggml__model': None
        }, 'it has no tokenizer.ggml.model'),
        ({
            'tokenizer__ggml__model': 'llama'
        }, "tokenizer is of the kind 'llama'; only byte-level .* Fix: give"),
        ({
            'tokenizer__ggml__pre': 'tekken'
        }, "pre is 'tekken'; known are gpt-2, smollm, llama-bpe, qwen2"),
        ({
            'tokenizer__ggml__add_eos_token': True
        }, 'add_eos_token is True, which is for embeddings'),
        ({
            'tokenizer__ggml__eos_token_id': 9999
        }, 'eos_token_id is 9999, and there are '),
        ({
            'tokenizer__ggml__merges': ['a missing']
        }, 'its tokens and merges do not fit together .*missing'),
        ({
            'tensors': ['rope_freqs.weight']
        }, r"no place for its tensors \['rope_freqs.weight'\]"),
        ({
            'llama__block_count': 3
        }, r"found none for \['model.layers.2.input_layernorm.weight'"),
        ({
            'llama__feed_forward_length': 97
        }, 'transformers could not load it'),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], match: str):
    with pytest.raises(CheckpointError, match=match):
        unpack(tmp_path, **changes)
    assert not (tmp_path / 'hf').exists()


def test_unknown_architecture(tmp_path: Path):
    file = tmp_path / 'm.gguf'
    writer = gguf.GGUFWriter(file, 'mamba')
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
            CheckpointError,
            match="architecture is 'mamba'.* Fix: use a model of llama, qwen2",
    ):
        unpack_gguf(str(file), str(tmp_path / 'hf'))


@pytest.mark.parametrize('kept', [0, 3, 100, 0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, kept: float):
    file = tmp_path / 'tiny.gguf'
    write_gguf(file)
    content = file.read_bytes()
    n_bytes = kept if isinstance(kept, int) else int(kept * len(content))
    file.write_bytes(content[:n_bytes])
    with pytest.raises(CheckpointError, match='it is not a GGUF file, or dam'):
        unpack_gguf(str(file), str(tmp_path / 'hf'))


@pytest.mark.parametrize('content', [b'x' * 1000, None])
def test_not_a_gguf_file(tmp_path: Path, content: Any):
    file = tmp_path / 'model.gguf'
    if content:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match='it is not a GGUF file, or dam'):
        unpack_gguf(str(file), str(tmp_path / 'hf'))


def test_package_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(CheckpointError, match='Fix: run `pip install gguf`'):
        unpack_gguf('model.gguf', str(tmp_path / 'hf'))
