"""What of Hugging Face has no counterpart in MPT, and why.

Of an architecture that is not listed nothing is said but that it is not known.
"""

__all__ = ['REFUSED', 'RELATIVES']

_POST_NORMS = 'it has norms after attention and feed-forward'
_PARALLEL = 'attention and feed-forward run side by side, from one input'
_PARTLY_ROTATED = 'only a part of each head is rotated'
_PAIRS = 'rope rotates neighbouring channels'
_BIASES = 'its feed-forward layers have biases, which experts do not hold'
_SHARED = 'it has a shared expert beside those that are chosen'
_LATENT = 'it has latent attention (keys and values from a small vector)'
_RECURRENT = 'some of its layers are recurrent'
_PACKED = 'its experts are stored packed, which is not read'
_RELU2 = 'its activation is the square of relu'

# Well-known architectures, and what MPT can't compute of them.
RELATIVES = {
    'afmoe': f'{_POST_NORMS}, and gates on attention',
    'apertus': 'its activation, xIELU, has parameters of its own',
    'arcee': _RELU2,
    'bitnet': 'it has norms inside attention and feed-forward',
    'bloom': _BIASES,
    'cohere': _PARALLEL,
    'cohere2': _PARALLEL,
    'dbrx': _PACKED,
    'deepseek_v2': f'{_LATENT}, and shared experts',
    'deepseek_v3': f'{_LATENT}, and shared experts',
    'ernie4_5': _PAIRS,
    'exaone4': _POST_NORMS,
    'falcon': _PARALLEL,
    'falcon_h1': _RECURRENT,
    'gemma2': f'{_POST_NORMS}, and soft-capping',
    'gemma3': f'{_POST_NORMS}, and layers that differ in attention window',
    'gemma3_text': f'{_POST_NORMS}, and layers that differ in attention window',
    'gemma3n': f'{_POST_NORMS}, and embeddings of each layer',
    'gemma4': _POST_NORMS,
    'glm': f'{_PARTLY_ROTATED}, and {_PAIRS}',
    'glm4': f'{_POST_NORMS}, and {_PARTLY_ROTATED}',
    'gpt2': _BIASES,
    'gpt_bigcode': _BIASES,
    'gpt_neo': _BIASES,
    'gpt_neox': f'{_PARTLY_ROTATED}, and {_BIASES}',
    'gpt_oss': 'attention has sinks, and its experts have biases',
    'gptj': f'{_PARALLEL}, and {_PARTLY_ROTATED}',
    'granitemoe': _PACKED,
    'granitemoehybrid': _RECURRENT,
    'granitemoeshared': _SHARED,
    'helium': _PAIRS,
    'hunyuan_v1_dense': 'queries and keys are normalised after rope, not before',
    'jamba': _RECURRENT,
    'lfm2': 'most of its layers are short convolutions',
    'lfm2_moe': 'most of its layers are short convolutions',
    'llama4': 'it has interleaved chunked attention, and a shared expert',
    'llama4_text': 'it has interleaved chunked attention, and a shared expert',
    'mamba': _RECURRENT,
    'mamba2': _RECURRENT,
    'minicpm3': _LATENT,
    'ministral': 'its layers differ in attention window, which is carried over '
                 'only where all are alike',
    'ministral3': 'queries are scaled by their position',
    'mistral3': 'it is a model of images and text',
    'nemotron': f'{_PARTLY_ROTATED}, and {_RELU2}',
    'nemotron_h': _RECURRENT,
    'olmo': 'its norms have no weights, and those of an MPT would be trained',
    'olmo2': f'{_POST_NORMS}, none before',
    'olmo3': f'{_POST_NORMS}, none before',
    'olmoe': 'queries and keys are normalised over all heads together',
    'opt': _BIASES,
    'phi': f'{_PARALLEL}, and {_PARTLY_ROTATED}',
    'phimoe': 'its experts are weighed by SparseMixer, not by a softmax',
    'qwen3_5': 'three of four layers are linear attention',
    'qwen3_next': 'three of four layers are linear attention',
    'recurrent_gemma': _RECURRENT,
    'rwkv': _RECURRENT,
    'stablelm': f'{_PARTLY_ROTATED}, and LayerNorms have biases where linear '
                'layers have none',
    'starcoder2': _BIASES,
    'zamba2': _RECURRENT,
}  # yapf: disable

# Keys whose other values MPT can't express: the one it can, and the feature.
REFUSED = {
    'attention_bias': (False, 'the attention output projection has a bias'),
    'mlp_bias': (False, 'the feed-forward layers have biases'),
    'partial_rotary_factor': (1, _PARTLY_ROTATED),
    'attn_logit_softcapping': (None, 'attention logits are capped'),
    'final_logit_softcapping': (None, 'logits are capped'),
    'quantization_config': (None, 'the weights are quantised'),
}
