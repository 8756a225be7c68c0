"""A peer: what one writes without a tool. Both models are in memory at once.

    python benchmarks/conversion/load_everything.py SOURCE OUT DTYPE

SOURCE is a Hugging Face folder of a Llama, OUT one of a Mixtral: 8 experts,
top-2, each expert the dense FFN.
"""

import sys

import torch
from measure import measure
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.modeling_utils import no_init_weights
from transformers.models.mixtral.modeling_mixtral import MixtralForCausalLM

# What the two configs call the same.
_SETTINGS = (
    'bos_token_id',
    'eos_token_id',
    'head_dim',
    'hidden_size',
    'intermediate_size',
    'max_position_embeddings',
    'num_attention_heads',
    'num_hidden_layers',
    'num_key_value_heads',
    'rms_norm_eps',
    'rope_theta',
    'tie_word_embeddings',
    'vocab_size',
)
_EXPERT_NAMES = {'gate_proj': 'w1', 'down_proj': 'w2', 'up_proj': 'w3'}


@torch.no_grad()
def load_everything(source: str, out: str, dtype: torch.dtype) -> None:
    """Upcycles ``source`` to ``out`` the short way."""
    dense = AutoModelForCausalLM.from_pretrained(source, torch_dtype=dtype)
    config = MixtralConfig(
        num_local_experts=8,
        num_experts_per_tok=2,
        **{name: getattr(dense.config, name)
           for name in _SETTINGS},
    )
    torch.set_default_dtype(dtype)
    with no_init_weights():  # All is overwritten; drawing takes longer.
        mixture = MixtralForCausalLM(config)
    target = mixture.state_dict()
    for name, tensor in dense.state_dict().items():
        layer, _, projection = name.partition('.mlp.')
        if not projection:
            target[name].copy_(tensor)
            continue
        expert_name = _EXPERT_NAMES[projection.removesuffix('.weight')]
        moe = f'{layer}.block_sparse_moe'
        target[f'{moe}.gate.weight'].normal_(std=0.02)
        for expert in range(8):
            target[f'{moe}.experts.{expert}.{expert_name}.weight'].copy_(tensor)
    mixture.save_pretrained(out)


if __name__ == '__main__':
    path, output, dtype_name = sys.argv[1:]
    measure(lambda: load_everything(path, output, getattr(torch, dtype_name)))
