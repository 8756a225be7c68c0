"""Dense checkpoint in, mixture of experts out, offline."""

from typing import Any, Optional, Sequence

import torch

from foundry_upcycle.checkpoints.base import (
    Checkpoint,
    dtype_name,
    flatten,
    nest,
)
from foundry_upcycle.checkpoints.huggingface.reader import (
    HuggingFaceReader,
    is_huggingface_folder,
)
from foundry_upcycle.checkpoints.names import dense_mlp_type
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.plan import refuse_mixture
from foundry_upcycle.checkpoints.settings import config_of, require_mpt
from foundry_upcycle.checkpoints.shapes import parameter_shapes
from foundry_upcycle.checkpoints.upcycled import UpcycledCheckpoint
from foundry_upcycle.config import (
    FileFormat,
    UpcyclingConfig,
    partial_moe_layers,
)
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save_view import save_view
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['as_mixture', 'convert']


def convert(
    config: UpcyclingConfig,
    out: str,
    file_format: FileFormat,
    moe_num_experts: int = 8,
    moe_top_k: int = 2,
    dtype: Optional[torch.dtype] = None,
    like: Optional[str] = None,
    overwrite: bool = False,
    moe_layers: Optional[Sequence[int]] = None,
    allow_overflow: bool = False,
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
) -> None:
    """Upcycles ``config.source_path`` into a checkpoint of its own.

    What ``sparse_upcycling`` does while a run starts, done beforehand.

    Args:
        config: Source, recipe, routers and seed.
        out: The ``.pt`` file, or the folder, to write.
        file_format: ``pt`` or ``dcp`` (a sharded folder) for ``load_path``, or
            ``safetensors``: the Hugging Face folder that ``export_hf`` would
            make of them.
        moe_num_experts: Experts E of each layer.
        moe_top_k: Experts K a token goes to.
        dtype: Of all that is written; None keeps that of the source.
        like: See ``export_hf``; for a Hugging Face folder only.
        overwrite: Whether ``out`` may exist.
        moe_layers: Blocks that become mixtures, from 0; None: all of them.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.
        tokenizer: See ``export_hf``.
        with_tokenizer: Whether the output holds a tokenizer.

    Raises:
        CheckpointError: The source can't be upcycled, or ``out`` not be
            written. What was at ``out`` is still there.
        ConfigError: A setting can't be used, or a Hugging Face folder can't
            hold the model.
    """
    dense = open_checkpoint(config.source_path)
    dense.narrowing.allow_overflow = allow_overflow
    if isinstance(dense, HuggingFaceReader) and file_format != 'safetensors':
        dense.require_exact(dtype)
    mixture = as_mixture(
        dense,
        config,
        moe_num_experts,
        moe_top_k,
        dtype,
        moe_layers,
    )
    settings = {
        'recipe': dict(config.recipe),
        'moe_num_experts': moe_num_experts,
        'moe_top_k': moe_top_k,
        'moe_layers': moe_layers and [*moe_layers],
        'router_init_std': config.router_init_std,
        'seed': config.seed,
        'format': file_format,
        'dtype': dtype and dtype_name(dtype),
        'like': like,
        'allow_overflow': allow_overflow,
        'tokenizer': tokenizer if with_tokenizer else False,
    }
    provenance = Provenance(
        'convert',
        config.source_path,
        settings,
        dense.files,
    )
    is_folder = is_huggingface_folder(config.source_path)
    if file_format == 'safetensors' and like is None and is_folder:
        like = config.source_path
    save_view(
        mixture,
        out,
        file_format,
        provenance,
        dtype,
        like,
        overwrite,
        tokenizer,
        with_tokenizer,
    )


def as_mixture(
    dense: Checkpoint,
    config: UpcyclingConfig,
    moe_num_experts: int,
    moe_top_k: int,
    dtype: Optional[torch.dtype] = None,
    moe_layers: Optional[Sequence[int]] = None,
) -> UpcycledCheckpoint:
    """``dense`` seen as a mixture of experts, with its config.

    Raises:
        CheckpointError: ``dense`` carries no config, has not the tensors of it,
            or can't be upcycled.
        ConfigError: E, K or ``moe_layers`` can't be used.
    """
    n_layers = require_mpt(dense)['n_layers']
    refuse_mixture(dense)
    mlp_type = dense_mlp_type(dense.tensors)
    layers = partial_moe_layers(moe_layers, n_layers)
    with config_of(dense):
        model_config = _model_config(
            dense,
            mlp_type,
            moe_num_experts,
            moe_top_k,
        )
        if layers is not None:
            model_config['ffn_config.moe_layers'] = [*layers]
        shapes = parameter_shapes(model_config)
    return UpcycledCheckpoint(dense, shapes, config, model_config, dtype)


def _model_config(
    dense: Checkpoint,
    mlp_type: str,
    E: int,
    K: int,
) -> dict[str, Any]:
    config = nest(dense.model_config)
    ffn = config.get('ffn_config') or {}
    name = 'model.transformer.blocks.0.ffn.down_proj.weight'
    if name not in dense.tensors:
        raise CheckpointError(
            dense.path,
            f'it has no {name}.',
            'start from an MPT with ffn_type mptglu or mptmlp.',
        )
    down = dense.tensors[name].shape
    mixture = {
        'ffn_hidden_size': down[1],
        'ffn_act_fn': ffn.get('ffn_act_fn'),
        'mlp_type': mlp_type,
        'moe_num_experts': E,
        'moe_top_k': K,
        'moe_normalize_expert_weights': 1,
    }
    # Refuses what the layer can't be, with the layer's own words.
    build_upcycled_dmoe(
        d_model=down[0],
        expansion_ratio=1,
        bias=False,
        device='meta',
        **mixture,
    )
    config['ffn_config'] = {'ffn_type': 'upcycled_dmoe', **mixture}
    return flatten(config)
