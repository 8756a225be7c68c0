"""Parameters and FLOPs of an MPT model, from its ``model:`` config alone.

The conventions are LLM Foundry's (``n_active_params``, ``flops_per_batch``), so
a plan made before a run agrees with what the run's ``speed_monitor`` logs.

Dimension legend: D d_model, F ffn hidden size, E experts, K experts a token.
"""

from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping

from foundry_upcycle.config import (
    is_number,
    is_whole,
    partial_moe_layers,
    resolve_ffn_hidden_size,
)
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.top_k import read_top_k, refuse_varying_top_k

__all__ = ['MAX_SIZE', 'N_MATRICES', 'ModelShape', 'require_experts']

# What no size of a model or a batch exceeds. With it, nothing that is counted
# leaves the range of a float.
MAX_SIZE = 2**31 - 1

# (D, F) matrices in one feed-forward layer or expert.
N_MATRICES = {'mlp': 2, 'glu': 3}
_DENSE_FFN_TYPES = {'mptmlp': 'mlp', 'mptglu': 'glu'}

# What each mixture of experts takes where ffn_config doesn't say.
_MOE_DEFAULTS: dict[str, dict[str, Any]] = {
    'upcycled_dmoe': {
        'mlp_type': 'glu',
        'moe_num_experts': 8,
        'moe_top_k': 2
    },
    'torch_dmoe': {},
    'mb_dmoe': {
        'mlp_type': 'mlp',
        'moe_num_experts': 1,
        'moe_top_k': 1
    },
}

# What ``model.name`` may be.
_MODELS = ('mpt_causal_lm', 'upcycled_mpt')

# What is counted with: its default, where null stands for it, too, if that is
# None; and its kind.
_Settings = Mapping[str, tuple[Any, str]]
_MODEL: _Settings = {
    'attention_bias': (None, 'true or false'),
    'd_model': (2048, 'size'),
    'expansion_ratio': (4, 'number'),
    'head_dim': (None, 'size'),
    'learned_pos_emb': (True, 'true or false'),
    'max_seq_len': (2048, 'size'),
    'n_heads': (16, 'size'),
    'n_layers': (24, 'number of layers'),
    'no_bias': (False, 'true or false'),
    'tie_word_embeddings': (True, 'true or false'),
    'vocab_size': (50368, 'size'),
}
_ATTENTION: _Settings = {
    'alibi': (False, 'true or false'),
    'kv_n_heads': (None, 'size'),
    'qk_gn': (False, 'true or false'),
    'qk_ln': (False, 'true or false'),
    'rope': (False, 'true or false'),
}
_FFN: _Settings = {
    'ffn_hidden_size': (None, 'size'),
    'moe_num_experts': (None, 'size'),
}
# Far more than any model has: building them would take hours.
_MAX_LAYERS = 10_000
_FITS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    'size': (
        lambda value: is_whole(value) and 0 < value <= MAX_SIZE,
        f'a number above 0, without decimals, up to {MAX_SIZE:,}',
    ),
    'number of layers': (
        lambda value: is_whole(value) and 0 < value <= _MAX_LAYERS,
        f'a number above 0, without decimals, up to {_MAX_LAYERS:,}',
    ),
    'number': (
        lambda value: is_number(value) and 0 < value <= MAX_SIZE,
        f'a number above 0, up to {MAX_SIZE:,}',
    ),
    # Some write 1 and 0.
    'true or false': (
        lambda value: isinstance(value, int) and value in (0, 1),
        'true or false',
    ),
}

# What a block may override of attn_config that no count depends on.
_FREE_OVERRIDES = {'attn_temperature_tuning', 'nope', 'sliding_window_size'}

_RMS_NORMS = ('rmsnorm', 'low_precision_rmsnorm', 'triton_rmsnorm')
_LAYER_NORMS = ('layernorm', 'low_precision_layernorm')


@dataclass(frozen=True)
class ModelShape:
    """The sizes that determine an MPT model's parameters and FLOPs.

    Args:
        d_model: Width D of the residual stream.
        n_layers: Number of blocks.
        n_moe_layers: How many of them are mixtures of experts.
        vocab_size: Rows of the token embedding, padding included.
        tie_word_embeddings: Whether input and output embedding are one matrix.
        n_position_params: Parameters of a learned position embedding, else 0.
        n_norm_params: Parameters of one norm.
        n_attn_params: Parameters of one attention layer, biases and norms of
            queries and keys included.
        n_expert_params: Parameters of one expert; of the whole feed-forward
            layer where it is dense.
        n_router_params: Parameters of one router, 0 in a dense model.
        n_experts: Experts E in a mixture, 1 in a dense model.
        top_k: Experts K a token visits there, 1 in a dense model; the most of
            them where K varies in training, as in evaluation.
        mean_top_k: The mean of K in training, of which FLOPs are.
    """

    d_model: int
    n_layers: int
    n_moe_layers: int
    vocab_size: int
    tie_word_embeddings: bool
    n_position_params: int
    n_norm_params: int
    n_attn_params: int
    n_expert_params: int
    n_router_params: int
    n_experts: int
    top_k: int
    mean_top_k: float

    @classmethod
    def from_config(cls, model: Mapping[str, Any]) -> 'ModelShape':
        """Reads the ``model:`` section of a training YAML.

        Keys that are absent take the defaults of Foundry's ``MPTConfig``; a
        section without a ``name`` is taken for an MPT's.

        Args:
            model: The section, as a mapping. Keys that do not change a count
                (``init_device``, ``loss_fn``, ...) are ignored.

        Raises:
            ConfigError: The model has something that is not counted here, or
                lacks a key that has no default.
        """
        attn, ffn = (
            _section(model, f'{key}_config') for key in ('attn', 'ffn')
        )
        _refuse_uncounted(model, attn)
        sizes = _checked(model, 'model', _MODEL)
        d_model, no_bias = sizes['d_model'], sizes['no_bias']
        of_attn = _checked(attn, 'model.attn_config', _ATTENTION)
        has_positions = (
            sizes['learned_pos_emb']
            and not (of_attn['rope'] or of_attn['alibi'])
        )
        return cls(
            d_model=d_model,
            n_layers=sizes['n_layers'],
            vocab_size=sizes['vocab_size'],
            tie_word_embeddings=bool(sizes['tie_word_embeddings']),
            n_position_params=sizes['max_seq_len'] *
            d_model if has_positions else 0,
            n_norm_params=d_model * _norm_vectors(model, 'model', no_bias),
            n_attn_params=_attention_params(sizes, attn, of_attn),
            **_ffn_sizes(sizes, ffn),
        )

    def upcycled(self, n_experts: int, top_k: int) -> 'ModelShape':
        """Of the mixture that a dense model becomes, in every block.

        Raises:
            ConfigError: It is a mixture already, or there are no such experts.
        """
        if self.n_moe_layers:
            raise ConfigError(
                'model',
                f'{self.n_experts} experts, top-{self.top_k}',
                'it is a mixture of experts already.',
                'name the dense model.',
            )
        require_experts(n_experts, top_k)
        return replace(
            self,
            n_moe_layers=self.n_layers,
            n_router_params=n_experts * self.d_model,
            n_experts=n_experts,
            top_k=top_k,
            mean_top_k=top_k,
        )

    @property
    def evaluated(self) -> 'ModelShape':
        """As it is out of training, where K is the largest that occurs."""
        return replace(self, mean_top_k=self.top_k)

    @property
    def n_total_params(self) -> int:
        """All parameters, tied embeddings once."""
        return self._n_params(experts=self.n_experts)

    @property
    def n_active_params(self) -> int:
        """Parameters one token meets: K experts, and no lookup table.

        Where K varies in training, they are its mean's.

        As Foundry counts, an untied input embedding is left out (a lookup has
        no multiplications) while a tied one stays as the output projection,
        and a learned position embedding stays too. Foundry counts every expert
        of ``torch_dmoe`` as active; here it is K of them.
        """
        lookup = 0 if self.tie_word_embeddings else self._n_embedding_params
        return self._n_params(experts=self.mean_top_k) - lookup

    def forward_flops_per_token(self, seq_len: int) -> int:
        """FLOPs of one forward pass, a token of a sequence of ``seq_len``.

        2 * active parameters for the matrix products, plus 4 * layers * D *
        seq_len for attention scores and their product with the values. Equals
        Foundry's ``flops_per_batch`` / (3 * tokens).

        Left out: the half of attention that a causal mask lets a kernel skip
        (counted in full here), softmax, norms, activations, rotary embedding,
        top-k and the movement of tokens to experts. Attention's width is taken
        as D, which an explicit ``head_dim`` can make wrong. Norm weights and
        biases are counted at 2 FLOPs each like every other parameter.
        """
        attention = 4 * self.n_layers * self.d_model * seq_len
        return 2 * self.n_active_params + attention

    def training_flops_per_token(self, seq_len: int) -> int:
        """FLOPs of forward and backward: 3 * forward.

        With n active parameters this is 6 * n + 12 * layers * D * seq_len: the
        backward pass costs two forward passes. Left out beyond the forward
        pass's omissions: recomputation under activation checkpointing, the
        auxiliary losses, the optimizer step.
        """
        return 3 * self.forward_flops_per_token(seq_len)

    @property
    def _n_embedding_params(self) -> int:
        return self.vocab_size * self.d_model

    def _n_params(self, experts: float) -> int:
        block = (
            self.n_attn_params + self.n_expert_params + 2 * self.n_norm_params
        )
        # What mixtures have instead of one feed-forward layer each.
        more = round(self.n_moe_layers * self.n_expert_params * experts)
        more += self.n_moe_layers * (
            self.n_router_params - self.n_expert_params
        )
        embeddings = 1 if self.tie_word_embeddings else 2
        return (
            embeddings * self._n_embedding_params + self.n_position_params +
            self.n_layers * block + more + self.n_norm_params
        )


def require_experts(n_experts: int, top_k: int) -> None:
    """Refuses what is no mixture.

    Raises:
        ConfigError: There are fewer than 2 experts, or not as many as a token
            is to visit.
    """
    if not 2 <= n_experts <= MAX_SIZE:
        raise ConfigError(
            'moe_num_experts',
            n_experts,
            'a mixture has two experts or more.',
            'write how many, such as 8.',
        )
    if not 1 <= top_k <= n_experts:
        raise ConfigError(
            'moe_top_k',
            top_k,
            f'there are {n_experts} experts.',
            'write how many of them a token visits.',
        )


def _section(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = model.get(key)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(
            f'model.{key}',
            section,
            'it is not a mapping of keys to values.',
            'write its keys indented below it.',
        )
    return section


def _checked(
    section: Mapping[str, Any],
    prefix: str,
    settings: _Settings,
) -> dict[str, Any]:
    """What is counted with, of a section: its values, or their defaults."""
    found = {}
    for key, (default, kind) in settings.items():
        value = found[key] = section.get(key, default)
        fits, meaning = _FITS[kind]
        if not (value is None and default is None or fits(value)):
            raise ConfigError(
                f'{prefix}.{key}',
                value,
                'it is not a size.'
                if kind != 'true or false' else 'it is neither true nor false.',
                f'write {meaning}.',
            )
    return found


def _refuse_uncounted(
    model: Mapping[str, Any],
    attn: Mapping[str, Any],
) -> None:
    name = model.get('name')
    if name is not None and not (isinstance(name, str) and name in _MODELS):
        raise ConfigError(
            'model.name',
            name,
            'its parameters are not counted here.',
            f"count those of {' or '.join(_MODELS)}.",
        )
    overrides = model.get('block_overrides')
    uncounted = {
        'attn_config.kv_dim': attn.get('kv_dim'),
        'block_overrides': not _leave_parameters(overrides) and overrides,
    }
    for key, value in uncounted.items():
        if value:
            raise ConfigError(
                f'model.{key}',
                value,
                'its parameters are not counted here.',
                'remove it, or build the model and read its '
                'n_total_params and n_active_params.',
            )


def _leave_parameters(block_overrides: Any) -> bool:
    """Whether what some blocks override adds and takes away no parameters."""
    try:
        return all(
            override.keys() <= {'attn_config'}
            and override['attn_config'].keys() <= _FREE_OVERRIDES
            for override in block_overrides['overrides'].values()
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _lookup(table: Mapping[str, Any], key: str, value: Any) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ConfigError(
            key,
            value,
            'its parameters are not counted here.',
            f'set it to one of {sorted(table)}.',
        )
    return table[value]


def _norm_vectors(
    section: Mapping[str, Any],
    prefix: str,
    no_bias: bool,
) -> int:
    # Foundry's no_bias strips the bias from norms as well.
    vectors = dict.fromkeys(_RMS_NORMS, 1)
    vectors.update(dict.fromkeys(_LAYER_NORMS, 1 if no_bias else 2))
    norm_type = section.get('norm_type', 'low_precision_layernorm')
    if isinstance(norm_type, str):
        norm_type = norm_type.lower()
    return _lookup(vectors, f'{prefix}.norm_type', norm_type)


def _normalized_channels(
    of_attn: Mapping[str, Any],
    head_dim: int,
    n_heads: int,
) -> int:
    """Channels that norms of queries and keys have a weight for."""
    if of_attn['qk_ln']:
        return n_heads * head_dim
    return 2 * head_dim if of_attn['qk_gn'] else 0


def _attention_params(
    sizes: Mapping[str, Any],
    attn: Mapping[str, Any],
    of_attn: Mapping[str, Any],
) -> int:
    """Wqkv, out_proj and norms; ``fused_qkv`` splits the same in three."""
    d_model, n_heads = sizes['d_model'], sizes['n_heads']
    kv_n_heads = _lookup(
        {
            'multihead_attention': n_heads,
            'multiquery_attention': 1,
            'grouped_query_attention': of_attn['kv_n_heads'],
        },
        'model.attn_config.attn_type',
        attn.get('attn_type', 'multihead_attention'),
    )
    if kv_n_heads is None:
        raise ConfigError(
            'model.attn_config.kv_n_heads',
            None,
            'grouped_query_attention has no default for it.',
            'set it to the number of key and value heads.',
        )
    head_dim = sizes['head_dim'] or d_model // n_heads
    qkv_dim = (n_heads + 2 * kv_n_heads) * head_dim
    no_bias, attention_bias = sizes['no_bias'], sizes['attention_bias']
    if attention_bias is None:
        attention_bias = not no_bias
    channels = _normalized_channels(of_attn, head_dim, n_heads + kv_n_heads)
    norms = channels and channels * _norm_vectors(
        attn,
        'model.attn_config',
        no_bias,
    )
    return (
        d_model * qkv_dim + n_heads * head_dim * d_model + norms +
        (qkv_dim if attention_bias else 0) + (0 if no_bias else d_model)
    )


def _ffn_sizes(
    sizes: Mapping[str, Any],
    ffn: Mapping[str, Any],
) -> dict[str, Any]:
    d_model, no_bias = sizes['d_model'], sizes['no_bias']
    of_ffn = _checked(ffn, 'model.ffn_config', _FFN)
    ffn_type = ffn.get('ffn_type', 'mptmlp')
    hidden = of_ffn['ffn_hidden_size']
    if hidden is None:
        hidden = resolve_ffn_hidden_size(d_model, sizes['expansion_ratio'])
    if isinstance(ffn_type, str) and ffn_type in _MOE_DEFAULTS:
        n_moe_layers = _n_moe_layers(sizes['n_layers'], ffn, ffn_type)
        has_dense = n_moe_layers < sizes['n_layers']
        if not no_bias and (has_dense or ffn_type == 'mb_dmoe'):
            raise ConfigError(
                'model.no_bias',
                no_bias,
                f'the biases of {ffn_type}, or of feed-forward layers beside '
                'it, are not counted here.',
                'set it to true.',
            )
        return {
            'n_moe_layers': n_moe_layers,
            **_moe_sizes(ffn, ffn_type, d_model, hidden),
        }
    mlp_type = _lookup(
        _DENSE_FFN_TYPES,
        'model.ffn_config.ffn_type',
        ffn_type,
    )
    n_matrices = N_MATRICES[mlp_type]
    # One bias of size D, on the way down, and one of size F for each way up.
    biases = 0 if no_bias else d_model + (n_matrices - 1) * hidden
    return {
        'n_moe_layers': 0,
        'n_expert_params': n_matrices * d_model * hidden + biases,
        'n_router_params': 0,
        'n_experts': 1,
        'top_k': 1,
        'mean_top_k': 1,
    }


def _n_moe_layers(
    n_layers: int,
    ffn: Mapping[str, Any],
    ffn_type: str,
) -> int:
    given = ffn.get('moe_layers')
    if given is not None and ffn_type != 'upcycled_dmoe':
        raise ConfigError(
            'model.ffn_config.moe_layers',
            given,
            f'{ffn_type} is a mixture of experts in every block.',
            'set ffn_type: upcycled_dmoe, or remove moe_layers.',
        )
    layers = partial_moe_layers(given, n_layers)
    return n_layers if layers is None else len(layers)


def _moe_sizes(
    ffn: Mapping[str, Any],
    ffn_type: str,
    d_model: int,
    hidden: int,
) -> dict[str, Any]:
    keys = ('mlp_type', 'moe_num_experts', 'moe_top_k')
    defaults = _MOE_DEFAULTS[ffn_type]
    sizes: dict[str, Any] = {
        key: ffn.get(key, defaults.get(key))
        for key in keys
    }
    for key, size in sizes.items():
        if size is None:
            raise ConfigError(
                f'model.ffn_config.{key}',
                None,
                f'{ffn_type} has no default for it.',
                'set it.',
            )
    n_matrices = _lookup(
        N_MATRICES,
        'model.ffn_config.mlp_type',
        sizes['mlp_type'],
    )
    n_experts = sizes['moe_num_experts']
    if ffn_type != 'upcycled_dmoe':
        refuse_varying_top_k(sizes['moe_top_k'], ffn_type)
    top_k = read_top_k(sizes['moe_top_k'], n_experts)
    return {
        'n_expert_params': n_matrices * d_model * hidden,
        'n_router_params': n_experts * d_model,
        'n_experts': n_experts,
        'top_k': top_k.largest,
        'mean_top_k': top_k.mean,
    }
