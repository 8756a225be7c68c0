"""What the metadata of GGUF files says of the model."""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import SIZES, finish, write_gguf
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_config import write_configs
from foundry_upcycle.errors import CheckpointError, UpcyclingWarning

# Of Llama-3.2-1B, with shorter heads.
ROPE = {
    'rope_type': 'llama3',
    'factor': 32.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
}
LLAMA3 = {'rope_theta': 500000.0, 'max_position_embeddings': 131072}


def rope_factors(**changes: Any) -> np.ndarray:
    """What transformers divides each frequency by, in float32."""
    sizes = {**SIZES, **LLAMA3, 'head_dim': 64}
    plain = LlamaConfig(**sizes)
    scaled = LlamaConfig(**sizes, rope_scaling={**ROPE, **changes})
    before, _ = ROPE_INIT_FUNCTIONS['default'](plain, 'cpu')
    after, _ = ROPE_INIT_FUNCTIONS['llama3'](scaled, 'cpu')
    return (before / after).numpy()


def read(folder: Path, **changes: Any) -> GGUFReader:
    write_gguf(folder / 'tiny.gguf', **changes)
    return GGUFReader(str(folder / 'tiny.gguf'))


def read_llama3(folder: Path, factors: np.ndarray, **changes: Any):
    return read(
        folder,
        sizes={
            **LLAMA3, 'head_dim': 64
        },
        tensors={'rope_freqs.weight': factors},
        **changes,
    )


@pytest.mark.parametrize('factor', [8.0, 32.0])
def test_llama3_rope_is_recovered(tmp_path: Path, factor: float):
    factors = rope_factors(factor=factor)
    # Long waves, short ones and some between.
    assert factors[0] == 1 and factors[-1] == factor
    assert ((factors > 1) & (factors < factor)).sum() > 2
    reader = read_llama3(tmp_path, factors)
    assert reader.section['attn_config']['rope_hf_config'] == {
        'type': 'llama3',
        **{
            key: value
            for key, value in ROPE.items() if key != 'rope_type'
        },
        'factor': factor,
    }
    write_configs(reader.hf_config, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['rope_scaling'] == {**ROPE, 'factor': factor}


def test_factors_of_1_scale_nothing(tmp_path: Path):
    reader = read_llama3(tmp_path, np.ones(32, np.float32))
    assert reader.hf_config['rope_scaling'] is None


@pytest.mark.parametrize(
    'factors',
    [
        rope_factors(original_max_position_embeddings=4096),
        rope_factors(high_freq_factor=8.0),
        # One of 32 differs by 1 / 10000.
        rope_factors() + np.eye(32, dtype=np.float32)[3] * 1e-4,
        rope_factors()[:31],
        np.full(32, np.nan, np.float32),
        np.zeros(32, np.float32),
    ],
)
def test_other_factors_are_refused(tmp_path: Path, factors: np.ndarray):
    with pytest.raises(CheckpointError,
                       match='factors of rope_freqs.weight ar'):
        read_llama3(tmp_path, factors)


def test_scaled_twice_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match='llama.rope.scaling.factor does'):
        read_llama3(tmp_path, rope_factors(), llama__rope__scaling__factor=2.0)


@pytest.mark.parametrize(
    'changes,is_warned_of',
    [
        ({
            'sizes': LLAMA3,
        }, True),
        # Llama 3 itself, and a long one with another base.
        ({
            'sizes': {
                **LLAMA3, 'max_position_embeddings': 8192
            },
        }, False),
        ({
            'sizes': {
                **LLAMA3, 'rope_theta': 1e6
            },
        }, False),
    ],
)
def test_a_llama_3_1_without_its_factors(
    tmp_path: Path,
    changes: dict[str, Any],
    is_warned_of: bool,
    recwarn: pytest.WarningsRecorder,
):
    read(tmp_path, **changes)
    found = [w for w in recwarn if w.category is UpcyclingWarning]
    assert len(found) == is_warned_of
    if is_warned_of:
        assert '131072 positions and no rope_freqs' in str(found[0].message)


def test_a_missing_base_is_llama_cpps(tmp_path: Path):
    reader = read(tmp_path, llama__rope__freq_base=None)
    assert reader.section['attn_config']['rope_theta'] == 10000


@pytest.mark.parametrize(
    'changes,match',
    [
        ({
            'architecture': 'qwen2',
            'qwen2__rope__scaling__type': 'yarn'
        }, "qwen2.rope.scaling.type is 'yarn', a scaling of .* Fix: give the"),
        ({
            'llama__expert_count': 8
        }, 'llama.expert_count is 8, and mixtures of experts are not read f'),
        ({
            'llama__attention__sliding_window': 4096
        }, 'llama.attention.sliding_window is 4096, and nothing is known'),
        ({
            'llama__rope__dimension_count': 8
        }, 'rope.dimension_count is 8, and the heads have 16 dimensions'),
        ({
            'llama__attention__head_count': None
        }, 'it has no llama.attention.head_count. Fix'),
        ({
            'llama__attention__head_count_kv': [2, 4]
        }, r'head_count_kv is \[2, 4\], and MPT has one for all layers'),
        ({
            'llama__block_count': 'two'
        }, "llama.block_count is 'two', which is not a number"),
        ({
            'llama__embedding_length': 0
        }, 'llama.embedding_length is 0, which is no size'),
        ({
            'llama__rope__freq_base': math.inf
        }, 'llama.rope.freq_base is inf, which is not a number above 0'),
        ({
            'tokenizer__ggml__eos_token_id': 9999
        }, 'eos_token_id is 9999, and there are 269 rows of token_embd'),
        ({
            'general__type': 'adapter'
        }, "general.type is 'adapter': it holds no language model"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], match: str):
    with pytest.raises(CheckpointError, match=match):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    'architecture,match',
    [
        ('gemma2', 'it has norms after atten.* Fix: use a model of llama, '),
        ('deepseek2', 'carried over: it has latent attention'),
        ('qwen3moe', 'of GGUF files only .* Fix: give .* Hugging Face folder'),
        ('bert', 'this architecture is not known. Fix: use a model of llama'),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, match: str):
    finish(gguf.GGUFWriter(tmp_path / 'm.gguf', architecture))
    with pytest.raises(CheckpointError,
                       match=f"is '{architecture}'; .*{match}"):
        GGUFReader(str(tmp_path / 'm.gguf'))


def test_config_has_the_files_values(tmp_path: Path):
    write_configs(read(tmp_path).hf_config, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    # The float32 next to 1e-5, as a float64.
    assert config['rms_norm_eps'] == 9.999999747378752e-06
    assert config['rope_theta'] == 5000.0
    assert config['architectures'] == ['LlamaForCausalLM']
    assert config['torch_dtype'] == str(torch.float32).removeprefix('torch.')
    generation = (tmp_path / 'generation_config.json').read_text()
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
