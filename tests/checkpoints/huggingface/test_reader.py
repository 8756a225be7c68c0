import copy
import json
import os
import struct
from typing import Any

import pytest
import tiny
import torch
from composer.models import ComposerModel
from llmfoundry.models.mpt import MPTConfig
from llmfoundry.utils.builders import build_composer_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from foundry_upcycle.checkpoints.base import flatten
from foundry_upcycle.checkpoints.exactness import check_same_function
from foundry_upcycle.checkpoints.huggingface.architectures import ARCHITECTURES
from foundry_upcycle.checkpoints.huggingface.export import ExportedCheckpoint
from foundry_upcycle.checkpoints.huggingface.reader import (
    HuggingFaceReader,
    is_huggingface_folder,
    read_config,
    weight_files,
)
from foundry_upcycle.errors import CheckpointError, ConfigError

# D = 72 = 9 heads * 8.
SIZES: dict[str, Any] = {
    'vocab_size': tiny.VOCAB,
    'hidden_size': 72,
    'intermediate_size': 40,
    'num_hidden_layers': 2,
    'num_attention_heads': 9,
    'num_key_value_heads': 3,
    'max_position_embeddings': 64,
    'head_dim': 8,
    'pad_token_id': None,
    'bos_token_id': None,
    'eos_token_id': None,
}
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 16,
}
# As in the smaller Granite 3 models, but for none being a power of 2.
MULTIPLIERS = {
    'embedding_multiplier': 12.3,
    'attention_multiplier': 0.0147,
    'residual_multiplier': 0.22,
    'logits_scaling': 7.9,
}
EXPERTS = {'num_experts': 4, 'moe_intermediate_size': 24}
# What each model has beside SIZES; it begins with the architecture.
MODELS: dict[str, dict[str, Any]] = {
    'llama': {},
    'llama, tied': {
        'tie_word_embeddings': True,
    },
    'llama, one key-value head': {
        'num_key_value_heads': 1,
    },
    'llama, no grouping': {
        'num_key_value_heads': 9,
    },
    'llama, llama3 rope': {
        'rope_scaling': LLAMA3,
        'rope_theta': 500.0,
    },
    'llama, linear rope': {
        'rope_scaling': {
            'type': 'linear',
            'factor': 2.0,
        },
    },
    'llama, large heads': {
        'head_dim': 16,
    },
    'llama, gelu': {
        'hidden_act': 'gelu',
    },
    'llama, quick gelu': {
        'hidden_act': 'quick_gelu',
    },
    'mistral': {
        'sliding_window': 5,
    },
    'mistral, no window': {
        'sliding_window': None,
        'rms_norm_eps': 0.1,
    },
    'qwen2': {},
    'qwen2, window': {
        'use_sliding_window': True,
        'sliding_window': 5,
        'max_window_layers': 0,
    },
    'qwen3': {
        'rms_norm_eps': 0.01,
    },
    'qwen3, large heads, tied': {
        'head_dim': 16,
        'tie_word_embeddings': True,
    },
    'phi3': {
        'sliding_window': 5,
    },
    'phi3, no window, tied': {
        'tie_word_embeddings': True,
        'num_key_value_heads': 9,
    },
    'granite': {
        **MULTIPLIERS,
        'tie_word_embeddings': True,
    },
    'granite, untied': MULTIPLIERS,
    'smollm3': {
        'num_hidden_layers': 5,
        'no_rope_layers': [1, 0, 1, 1, 0],
        'tie_word_embeddings': True,
        'rope_theta': 500.0,
    },
    'gemma': {},
    'gemma, untied': {
        'tie_word_embeddings': False,
    },
    'mixtral': {
        'num_local_experts': 4,
        'num_experts_per_tok': 2,
    },
    'qwen2_moe': EXPERTS,
    'qwen3_moe': {
        **EXPERTS,
        'num_experts_per_tok': 2,
        'norm_topk_prob': True,
    },
    'qwen3_moe, some layers': {
        **EXPERTS,
        'intermediate_size': 24,
        'num_hidden_layers': 4,
        'decoder_sparse_step': 2,
        'mlp_only_layers': [3],
        'num_experts_per_tok': 2,
    },
    'qwen3_moe, not renormalised': {
        **EXPERTS,
        'num_experts_per_tok': 3,
        'norm_topk_prob': False,
    },
}


def build_hf(name: str) -> PreTrainedModel:
    """A random model, none of whose weights is 0 or 1 or small."""
    torch.manual_seed(0)
    model_type = name.split(',')[0]
    config = AutoConfig.for_model(
        ARCHITECTURES[model_type].config_of or model_type,
        **SIZES | MODELS[name],
    )
    model = AutoModelForCausalLM.from_config(
        config,
        attn_implementation='eager',
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            std = 1.0 if key.endswith('gate.weight') else 0.2
            parameter += torch.randn_like(parameter) * std
    # A SmolLM3 is a Llama that rotates some layers by nothing.
    for layer, rope in enumerate(MODELS[name].get('no_rope_layers', ())):
        if not rope:
            model.model.layers[layer].self_attn.register_forward_pre_hook(
                rotate_by_nothing,
                with_kwargs=True,
            )
    return model.eval()


def rotate_by_nothing(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    cos, sin = kwargs['position_embeddings']
    still = (torch.ones_like(cos), torch.zeros_like(sin))
    return args, {**kwargs, 'position_embeddings': still}


def save_hf(name: str, folder: Any, **kwargs: Any) -> PreTrainedModel:
    model = build_hf(name)
    model.save_pretrained(folder, safe_serialization=True, **kwargs)
    edit_config(folder, model_type=name.split(',')[0])
    return model


def build_mpt(reader: HuggingFaceReader) -> ComposerModel:
    """Foundry's model of the folder's section, with its weights."""
    section = copy.deepcopy(reader.section)
    is_moe = section['ffn_config'].get('ffn_type') == 'upcycled_dmoe'
    model = build_composer_model(
        'upcycled_mpt' if is_moe else 'mpt_causal_lm',
        {
            **section, 'loss_fn': 'torch_crossentropy'
        },
        tokenizer=None,
    )
    model.load_state_dict({
        name: reader.read(name, 0, 0, info.shape[0])
        for name, info in reader.tensors.items()
    })
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    save_hf('llama', tmp_path)
    return tmp_path


def edit_config(folder: Any, **changes: Any) -> None:
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Any, changes: dict[str, Any]) -> None:
    """Replaces tensors; None removes one."""
    path = folder / 'model.safetensors'
    tensors = {**load_file(path), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path)


# The shared expert of this one adds something.
CARRIED = [name for name in MODELS if name != 'qwen2_moe']


@pytest.mark.parametrize('name', CARRIED)
@torch.no_grad()
def test_logits_are_those_of_transformers(name, tmp_path):
    model = save_hf(name, tmp_path)
    reader = HuggingFaceReader(str(tmp_path))
    mpt = build_mpt(reader)
    check_same_function(reader, mpt.config.to_dict())
    batch = tiny.make_batch()
    logits = mpt.model(batch['input_ids']).logits
    expected = model(batch['input_ids']).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', CARRIED)
def test_config_is_what_composer_would_save(name, tmp_path):
    save_hf(name, tmp_path)
    reader = HuggingFaceReader(str(tmp_path))
    expected = MPTConfig(**copy.deepcopy(reader.section)).to_dict()
    # In its order, too.
    found = [*reader.model_config.items()]
    assert found == [*flatten(expected).items()]


@pytest.mark.parametrize('name', CARRIED)
def test_export_gives_the_same_bits_back(name, tmp_path):
    model = save_hf(name, tmp_path)
    reader = HuggingFaceReader(str(tmp_path))
    like = read_config(str(tmp_path))
    exported = ExportedCheckpoint(reader, like['model_type'], like)
    stored = load_file(tmp_path / 'model.safetensors')
    assert exported.tensors.keys() == stored.keys()
    for key, expected in stored.items():
        tensor = exported.read(key, 0, 0, expected.shape[0])
        if reader.is_computed:
            # Multiplied and divided, which rounds.
            torch.testing.assert_close(tensor, expected, atol=2e-7, rtol=2e-7)
        else:
            assert torch.equal(tensor, expected), key
    wanted = model.config.to_dict()
    same = {'hidden_size', 'head_dim', 'rope_theta', 'hidden_act'}
    same |= {'num_key_value_heads', 'tie_word_embeddings', 'rms_norm_eps'}
    same &= wanted.keys()
    assert all(exported.config[key] == wanted[key] for key in same)
    for key in MULTIPLIERS.keys() & wanted.keys():
        assert exported.config[key] == pytest.approx(wanted[key], rel=1e-12)


@pytest.mark.parametrize('name', ['gemma', 'granite'])
def test_bfloat16_comes_back_with_the_same_bits(name, tmp_path):
    model = build_hf(name).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    reader = HuggingFaceReader(str(tmp_path))
    dtypes = {name: info.dtype for name, info in reader.tensors.items()}
    block = 'model.transformer.blocks.0.'
    assert dtypes['model.transformer.wte.weight'] == torch.float32
    carried = 'ffn.up_proj.weight'
    assert dtypes[block + carried] == torch.bfloat16
    computed = {'gemma': 'norm_1.weight', 'granite': 'attn.Wqkv.weight'}[name]
    assert dtypes[block + computed] == torch.float32
    # The keys and values, too, though they are only carried over.
    rows = reader.read(block + computed, 0, 71, 72)
    assert rows.dtype == torch.float32
    exported = ExportedCheckpoint(reader, name, read_config(str(tmp_path)))
    for key, expected in load_file(tmp_path / 'model.safetensors').items():
        tensor = exported.read(key, 0, 0, expected.shape[0])
        assert torch.equal(tensor.to(torch.bfloat16), expected), key


@pytest.mark.parametrize('name', ['qwen2', 'phi3', 'granite', 'mixtral'])
def test_slices_are_those_of_the_whole(name, tmp_path):
    save_hf(name, tmp_path / 'one')
    save_hf(name, tmp_path / 'many', max_shard_size='20KB')
    assert len(weight_files(str(tmp_path / 'many'))) > 4
    one = HuggingFaceReader(str(tmp_path / 'one'))
    many = HuggingFaceReader(str(tmp_path / 'many'))
    assert one.tensors == many.tensors
    like = read_config(str(tmp_path / 'one'))
    exported = ExportedCheckpoint(one, name, like)
    others = ExportedCheckpoint(many, name, like)
    for view, other in ((one, many), (exported, others)):
        for key, (shape, dtype) in view.tensors.items():
            whole = view.read(key, 0, 0, shape[0])
            assert (whole.shape, whole.dtype) == (shape, dtype)
            for dim, size in enumerate(shape):
                third = size // 3
                for start, stop in ((0, 1), (third - 1, size - third), (1, 1)):
                    part = whole.narrow(dim, start, stop - start)
                    for checkpoint in (view, other):
                        found = checkpoint.read(key, dim, start, stop)
                        assert torch.equal(found, part), (key, dim, start)


def test_rows_cover_a_tensor_once(folder):
    reader = HuggingFaceReader(str(folder))
    name = 'model.transformer.blocks.1.attn.Wqkv.weight'
    blocks = [*reader.rows(name, 0, 120)]
    assert torch.equal(torch.cat(blocks), reader.read(name, 0, 0, 120))


def test_files_of_a_folder(folder, tmp_path):
    assert is_huggingface_folder(str(folder))
    assert not is_huggingface_folder(str(folder / 'nowhere'))
    assert weight_files(str(folder)) == ['config.json', 'model.safetensors']


def test_buffers_of_old_transformers_are_skipped(folder):
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    edit_tensors(folder, {name: torch.ones(4)})
    assert len(HuggingFaceReader(str(folder)).tensors) == 17


def build_own(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == 'mixture':
        return tiny.build_moe().model
    if kind == 'dense':
        return tiny.build_dense(tie_word_embeddings=True).model
    config = MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=tiny.VOCAB)
    return MptForCausalLM(config)


@pytest.mark.parametrize('kind', ['dense', 'mixture', 'of transformers'])
@torch.no_grad()
def test_mpts_own_folders(kind, tmp_path):
    model = build_own(kind).eval()
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path)
    reader = HuggingFaceReader(str(tmp_path))
    mpt = build_mpt(reader)
    check_same_function(reader, mpt.config.to_dict())
    ids = tiny.make_batch()['input_ids']
    torch.testing.assert_close(
        mpt.model(ids).logits,
        model(ids).logits,
        atol=0 if kind == 'dense' else 1e-5,
        rtol=0,
    )
    edit_tensors(tmp_path, {'transformer.norm_f.weight': None})
    with pytest.raises(CheckpointError, match='has no transformer.norm_f.we'):
        HuggingFaceReader(str(tmp_path))
    edit_config(tmp_path, norm_type='batchnorm')
    with pytest.raises(ConfigError, match="'mpt': LLM Foundry cannot build"):
        HuggingFaceReader(str(tmp_path))


@pytest.mark.parametrize('bias', ['attention_bias', 'mlp_bias'])
def test_biases_are_left_out_where_all_are_zero(bias, tmp_path):
    MODELS['llama, biases'] = {bias: True}
    try:
        model = save_hf('llama, biases', tmp_path)
    finally:
        del MODELS['llama, biases']
    with pytest.raises(ConfigError, match=f'{bias}=True'):
        HuggingFaceReader(str(tmp_path))
    biases = [n for n, _ in model.named_parameters() if n.endswith('bias')]
    stored = load_file(tmp_path / 'model.safetensors')
    zeros = {name: torch.zeros_like(stored[name]) for name in biases}
    edit_tensors(tmp_path, zeros)
    plain = HuggingFaceReader(str(tmp_path))
    assert not [name for name in plain.tensors if name.endswith('bias')]
    with torch.no_grad():
        for name in biases:
            model.get_parameter(name).zero_()
        ids = tiny.make_batch()['input_ids']
        expected = model(ids).logits
        found = build_mpt(plain).model(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_shared_expert_that_adds_something_is_refused(tmp_path):
    save_hf('qwen2_moe', tmp_path)
    with pytest.raises(CheckpointError, match='mlp.shared_expert.* be lost'):
        HuggingFaceReader(str(tmp_path))


def test_a_stored_head_must_be_the_embedding_if_tied(tmp_path):
    save_hf('llama, tied', tmp_path)
    embedding = load_file(tmp_path / 'model.safetensors')
    head = embedding['model.embed_tokens.weight'].clone()
    for stored in (head, head.bfloat16(), head.double()):
        edit_tensors(tmp_path, {'lm_head.weight': stored})
        reader = HuggingFaceReader(str(tmp_path))
        assert 'model.lm_head.weight' not in reader.tensors
    head[-1, -1] += 1
    edit_tensors(tmp_path, {'lm_head.weight': head})
    message = 'lm_head.weight differs from .*says that they are tied'
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(tmp_path))
    edit_tensors(tmp_path, {'lm_head.weight': head[:-1].contiguous()})
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(tmp_path))


@pytest.mark.parametrize(
    'changes,message',
    [
        (
            {
                'lm_head.weight': None,
            },
            'has no lm_head.weight.*tie_word_embeddings: true',
        ),
        (
            {
                'model.norm.weight': None,
            },
            'has no model.norm.weight.*config.json',
        ),
        (
            {
                'model.norm.weight': torch.ones(71),
            },
            r'model.norm.weight has shape \(71,\), config.json says \(72,\)',
        ),
        (
            {
                'model.layers.0.self_attn.o_proj.bias': torch.ones(72),
            },
            'layers.0.self_attn.o_proj.bias would be lost',
        ),
        (
            {
                'model.norm.weight': torch.ones(72, dtype=torch.float8_e4m3fn),
            },
            'model.norm.weight has dtype F8_E4M3: the model is quantised',
        ),
        (
            {
                'model.norm.weight': torch.ones(72, dtype=torch.int8),
            },
            'model.norm.weight has dtype I8: the model is quantised',
        ),
        (
            {
                'model.layers.1.self_attn.k_proj.weight':
                torch.ones(24, 72, dtype=torch.float16),
            },
            r'q_proj.*one tensor in MPT, .*different dtypes \(float16, float32',
        ),
    ],
)
def test_other_tensors_are_refused(folder, changes, message):
    edit_tensors(folder, changes)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(folder))


def test_a_number_of_layers_without_end_is_refused_at_once(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['num_hidden_layers'] = 10**12
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match='json says 1000000000000 layers'):
        HuggingFaceReader(str(folder))


def test_the_packed_layout_of_transformers_5_is_refused(tmp_path):
    save_hf('mixtral', tmp_path)
    packed = {'model.layers.0.mlp.experts.gate_up_proj': torch.ones(4, 80, 72)}
    edit_tensors(tmp_path, packed)
    with pytest.raises(CheckpointError, match='gate_up_proj would be lost'):
        HuggingFaceReader(str(tmp_path))


@pytest.mark.parametrize(
    'content,message',
    [
        (b'', 'model.safetensors: it is truncated or not a safetensors file'),
        (b'x' * 99, 'truncated or not a safetensors file'),
        (struct.pack('<Q', 2**62) + b'{}', 'not a safetensors file.*header'),
    ],
)
def test_a_damaged_file_is_refused(folder, content, message):
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(folder))


def test_a_truncated_file_is_refused(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match='it is truncated'):
        HuggingFaceReader(str(folder))


def test_a_header_with_absurd_sizes_is_refused(folder):
    header = json.dumps({
        'x': {
            'dtype': 'F32',
            'shape': [2**31, 2**31],
            'data_offsets': [0, 2**63],
        },
    }).encode()
    content = struct.pack('<Q', len(header)) + header + b'0' * 64
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError, match='not a safetensors file'):
        HuggingFaceReader(str(folder))


def test_a_file_that_vanishes_is_named(folder):
    reader = HuggingFaceReader(str(folder))
    os.remove(folder / 'model.safetensors')
    with pytest.raises(CheckpointError,
                       match='safetensors: it changed.*removed'):
        reader.read('model.transformer.norm_f.weight', 0, 0, 1)


def test_pickles_are_refused(folder):
    path = folder / 'model.safetensors'
    path.rename(folder / 'pytorch_model.bin')
    message = r'only pickles \(pytorch_model.bin\).*safe_serialization=True'
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(folder))
    os.remove(folder / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='neither model.safetensors nor'):
        HuggingFaceReader(str(folder))


@pytest.mark.parametrize(
    'content,message',
    [
        ('', 'not JSON'),
        ('[1]', 'no mapping'),
        ('{"a": ', 'not JSON'),
        ('[' * 100_000, 'nest deeper'),
    ],
    ids=['empty', 'list', 'cut', 'deep'],
)
def test_a_damaged_config_is_refused(folder, content, message):
    (folder / 'config.json').write_text(content)
    with pytest.raises(CheckpointError, match=f'config.json: .*{message}'):
        HuggingFaceReader(str(folder))


def edit_index(folder: Any, **changes: Any) -> None:
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    index['weight_map'].update(changes)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize('file', ['../x', '/etc/passwd', '..', 'a/b', '', 3])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path, file):
    save_hf('llama', tmp_path, max_shard_size='20KB')
    edit_index(tmp_path, **{'model.norm.weight': file})
    message = 'model.norm.weight is said to be in .*not a file of this folder'
    with pytest.raises(CheckpointError, match=message):
        weight_files(str(tmp_path))


def test_an_index_must_be_that_of_the_shards(tmp_path):
    save_hf('llama', tmp_path, max_shard_size='20KB')
    shards = weight_files(str(tmp_path))[2:]
    absent = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    edit_index(tmp_path, **{absent: shards[0]})
    HuggingFaceReader(str(tmp_path))
    edit_index(tmp_path, **{'x': shards[0]})
    message = f'it says that x is in {shards[0]}, and it is in None'
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceReader(str(tmp_path))
    os.remove(tmp_path / shards[1])
    with pytest.raises(CheckpointError, match='it is missing'):
        HuggingFaceReader(str(tmp_path))
    (tmp_path / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(CheckpointError, match='it has no weight_map'):
        HuggingFaceReader(str(tmp_path))


def test_an_index_may_list_a_head_that_is_the_embedding(tmp_path):
    save_hf('llama, tied', tmp_path, max_shard_size='20KB')
    edit_index(tmp_path, **{'lm_head.weight': weight_files(str(tmp_path))[2]})
    HuggingFaceReader(str(tmp_path))
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match='it has no lm_head.weight'):
        HuggingFaceReader(str(tmp_path))


def test_the_config_must_be_that_of_the_weights(folder):
    edit_config(folder, num_hidden_layers=2**60)
    with pytest.raises(CheckpointError, match=f'says {2**60} layers'):
        HuggingFaceReader(str(folder))
    edit_config(folder, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match='has no model.layers.2.input'):
        HuggingFaceReader(str(folder))


@pytest.mark.parametrize(
    'content,message',
    [(None, 'it is missing'), ('{', 'not JSON'), (b'\xff', 'not JSON')],
)
def test_a_bad_config_is_refused(tmp_path, content, message):
    if isinstance(content, str):
        (tmp_path / 'config.json').write_text(content)
    elif content:
        (tmp_path / 'config.json').write_bytes(content)
    with pytest.raises(CheckpointError, match=f'config.json: .*{message}'):
        read_config(str(tmp_path))
