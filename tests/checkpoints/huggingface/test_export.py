import copy
import json
from typing import Any

import pytest
import tiny
import torch
from composer.models import ComposerModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from foundry_upcycle.checkpoints.base import Checkpoint, flatten
from foundry_upcycle.checkpoints.huggingface.export import ExportedCheckpoint
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.errors import CheckpointError

TANH_GELU = {'name': 'gelu', 'approximate': 'tanh'}
QK_NORM = {'qk_gn': True, 'norm_type': 'rmsnorm', 'norm_eps': 1e-5}
RAW_WEIGHTS = {'moe_normalize_expert_weights': None, 'moe_top_k': 3}

# Architecture that is chosen -> changes to tiny.DENSE, to parts of it, and
# whether it is a mixture of experts.
Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], bool]
CASES: dict[str, Case] = {
    'llama': ('llama', {}, {}, {}, False),
    'tied': ('llama', {
        'tie_word_embeddings': True,
    }, {}, {}, False),
    'multi-head': (
        'llama',
        {},
        {
            'attn_type': 'multihead_attention',
            'kv_n_heads': None,
            'fused_qkv': False,
        },
        {
            'ffn_act_fn': None,
        },
        False,
    ),
    'multi-query': (
        'llama',
        {
            'norm_type': 'low_precision_rmsnorm',
        },
        {
            'attn_type': 'multiquery_attention',
            'kv_n_heads': None,
        },
        {},
        False,
    ),
    'mistral': ('mistral', {}, {
        'sliding_window_size': 4,
    }, {}, False),
    'qwen2': ('qwen2', {
        'attention_bias': True,
    }, {}, {}, False),
    'qwen3': ('qwen3', {}, QK_NORM, {}, False),
    'gemma': (
        'gemma',
        {
            'tie_word_embeddings': True,
            'logit_scale': 0.125,
        },
        {},
        {
            'ffn_act_fn': TANH_GELU,
        },
        False,
    ),
    'granite, tied': (
        'granite',
        {
            'tie_word_embeddings': True,
            'logit_scale': 0.3,
        },
        {},
        {},
        False,
    ),
    'granite': ('granite', {
        'logit_scale': 0.3,
    }, {}, {}, False),
    'mixtral': ('mixtral', {}, {}, {}, True),
    'mixtral, a head that scales': (
        'mixtral',
        {
            'tie_word_embeddings': True,
            'logit_scale': 0.3,
        },
        {},
        {},
        True,
    ),
    'mixtral, window': (
        'mixtral',
        {
            'tie_word_embeddings': True,
        },
        {
            'sliding_window_size': 4,
        },
        {},
        True,
    ),
    'qwen2_moe': ('qwen2_moe', {
        'attention_bias': True,
    }, {}, {}, True),
    'qwen2_moe, raw, some layers': (
        'qwen2_moe',
        {
            'attention_bias': True,
        },
        {},
        {
            **RAW_WEIGHTS, 'moe_layers': [0, 2]
        },
        True,
    ),
    'qwen3_moe': ('qwen3_moe', {}, QK_NORM, {}, True),
    'qwen3_moe, some layers': (
        'qwen3_moe',
        {},
        QK_NORM,
        {
            'moe_layers': [1],
        },
        True,
    ),
    'qwen3_moe, raw': ('qwen3_moe', {}, QK_NORM, RAW_WEIGHTS, True),
}


def build_mpt(name: str) -> ComposerModel:
    """A random model: experts that differ, a router that decides."""
    _, top, attn, ffn, is_moe = CASES[name]
    config = copy.deepcopy(tiny.DENSE)
    attn = {**config['attn_config'], **attn}
    attn = {key: value for key, value in attn.items() if value is not None}
    if is_moe:
        model = tiny.build_moe(ffn, attn_config=attn, **top)
    else:
        ffn = {**config['ffn_config'], **ffn}
        model = tiny.build_dense(attn_config=attn, ffn_config=ffn, **top)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            std = 1.0 if '.router.' in key else 0.05
            parameter += torch.randn_like(parameter) * std
    return model.eval()


def save_exported(exported: ExportedCheckpoint, folder: Any) -> None:
    tensors = {
        name: exported.read(name, 0, 0, info.shape[0]).contiguous()
        for name, info in exported.tensors.items()
    }
    folder.mkdir()
    save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(exported.config))


class Held(Checkpoint):
    """Tensors in memory."""
    path = 'held'

    def __init__(self, source: Checkpoint, **changes: Any):
        self._source = source
        self.tensors = {**source.tensors, **changes}
        self.tensors = {k: v for k, v in self.tensors.items() if v}
        self.model_config = source.model_config

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return self._source.read(name, dim, start, stop)


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp('dense') / 'dense.pt'
    return open_checkpoint(tiny.save_dense(tiny.build_dense(), path))


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_transformers_computes_the_same_logits(name, tmp_path):
    model = build_mpt(name)
    source = open_checkpoint(tiny.save_dense(model, tmp_path / 'mpt.pt'))
    exported = ExportedCheckpoint(source)
    assert exported.config['model_type'] == CASES[name][0]
    assert exported.config['torch_dtype'] == 'float32'
    save_exported(exported, tmp_path / 'hf')
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / 'hf',
        attn_implementation='eager',
        output_loading_info=True,
    )
    assert not any(info.values()), info
    batch = tiny.make_batch()
    torch.testing.assert_close(
        loaded.eval()(batch['input_ids']).logits,
        model.model(batch['input_ids']).logits,
        atol=1e-4 if CASES[name][-1] else 1e-5,
        rtol=1e-5,
    )


# Wq, Wk and Wv of multi-head come back fused, a head that scales apart from the
# embedding, and an untied Granite's head scaled.
CHANGED = {'multi-head', 'mixtral, a head that scales', 'granite'}


@pytest.mark.parametrize('name', [n for n in CASES if n not in CHANGED])
def test_an_export_is_read_back(name, tmp_path):
    model = build_mpt(name)
    source = open_checkpoint(tiny.save_dense(model, tmp_path / 'mpt.pt'))
    save_exported(ExportedCheckpoint(source), tmp_path / 'hf')
    reader = HuggingFaceReader(str(tmp_path / 'hf'))
    assert reader.tensors == source.tensors
    for key, (shape, _) in source.tensors.items():
        tensor, expected = (
            c.read(key, 0, 0, shape[0]) for c in (reader, source)
        )
        if name == 'gemma':
            # Multiplied and divided by sqrt(D) = 8, exact, and norms shifted.
            torch.testing.assert_close(tensor, expected, atol=2e-7, rtol=0)
        else:
            assert torch.equal(tensor, expected), key


def test_names_are_in_the_order_of_the_model(dense):
    names = [*ExportedCheckpoint(dense).tensors]
    assert names[0] == 'model.embed_tokens.weight'
    assert names[-2:] == ['model.norm.weight', 'lm_head.weight']
    assert names[1:4] == [
        'model.layers.0.input_layernorm.weight',
        'model.layers.0.self_attn.q_proj.weight',
        'model.layers.0.self_attn.k_proj.weight',
    ]


def test_the_smallest_common_dtype_is_written(dense):
    name = 'model.transformer.norm_f.weight'
    info = dense.tensors[name]._replace(dtype=torch.bfloat16)
    held = Held(dense, **{name: info})
    assert ExportedCheckpoint(held).config['torch_dtype'] == 'float32'
    half = {
        k: v._replace(dtype=torch.bfloat16)
        for k, v in dense.tensors.items()
    }
    held = Held(dense, **half)
    assert ExportedCheckpoint(held).config['torch_dtype'] == 'bfloat16'


def test_a_source_without_config_is_refused(dense):
    held = Held(dense)
    held.model_config = {}
    with pytest.raises(CheckpointError, match='held: it carries no model conf'):
        ExportedCheckpoint(held)


@pytest.mark.parametrize(
    'name,shape,message',
    [
        (
            'model.transformer.norm_f.weight',
            None,
            r'norm_f.weight has shape None, .* describes \(64,\)',
        ),
        (
            'model.transformer.blocks.0.attn.Wqkv.weight',
            (129, 64),
            r'Wqkv.weight has shape \(129, 64\), .* describes \(128, 64\)',
        ),
        (
            'model.transformer.wpe.weight',
            (32, 64),
            r'wpe.weight has shape \(32, 64\), .* describes None',
        ),
    ],
)
def test_other_tensors_are_refused(dense, name, shape, message):
    info = dense.tensors['model.transformer.norm_f.weight']
    held = Held(dense, **{name: shape and info._replace(shape=shape)})
    with pytest.raises(CheckpointError, match=message):
        ExportedCheckpoint(held)


def test_the_config_of_the_source_is_kept(dense):
    exported = ExportedCheckpoint(dense, 'mistral')
    assert exported.model_config == flatten(dense.model_config)
    assert exported.config['architectures'] == ['MistralForCausalLM']
    assert exported.config['sliding_window'] is None
