"""Mixture of experts in, a cheaper model out, offline."""

from typing import Any, Mapping, Optional

import torch

from foundry_upcycle.checkpoints.base import (
    Checkpoint,
    dtype_name,
    flatten,
    nest,
)
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.shrunk import (
    Kept,
    KeptExpert,
    ShrunkCheckpoint,
)
from foundry_upcycle.config import FileFormat, ShrinkingConfig
from foundry_upcycle.conversion.calibration import Calibration
from foundry_upcycle.conversion.manifest import Provenance
from foundry_upcycle.conversion.save_view import save_view
from foundry_upcycle.conversion.selection import select
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.planning.shrunk import dense_ffn

__all__ = ['as_shrunk', 'shrink', 'shrunk_again']


def shrink(
    source: str,
    out: str,
    config: ShrinkingConfig,
    calibration: Optional[str] = None,
    file_format: FileFormat = 'pt',
    dtype: Optional[torch.dtype] = None,
    overwrite: bool = False,
    allow_overflow: bool = False,
    tokenizer: Optional[str] = None,
    with_tokenizer: bool = True,
) -> str:
    """Makes a mixture of fewer experts, or a dense model, of a mixture.

    Args:
        source: The mixture: a Composer checkpoint or a Hugging Face folder.
        out: The ``.pt`` file, or the folder, to write.
        config: What it is to become.
        calibration: What ``calibrate`` wrote for this mixture.
        file_format: See ``save_view``.
        dtype: Of all that is written; None keeps that of the source.
        overwrite: Whether ``out`` may exist.
        allow_overflow: Whether weights that are too large for ``dtype`` may
            become infinite.
        tokenizer: See ``export_hf``.
        with_tokenizer: Whether the output holds a tokenizer.

    Returns:
        What was made, in words.

    Raises:
        CheckpointError: The source is no mixture that can be shrunk, the
            calibration is not of it, or ``out`` can't be written. What was at
            ``out`` is still there.
        ConfigError: A setting can't be used, or no dense model can hold the
            result.
    """
    checkpoint = open_checkpoint(source)
    checkpoint.narrowing.allow_overflow = allow_overflow
    if isinstance(checkpoint, HuggingFaceReader):
        checkpoint.require_exact(dtype)
    mixture = Mixture.of(checkpoint)
    statistics = Calibration.read(calibration) if calibration else None
    if calibration and statistics:
        statistics.check_model(calibration, mixture)
    kept = select(mixture, config, statistics)
    view = as_shrunk(mixture, kept, config.dense is not None, dtype)
    settings = {
        'experts': config.experts,
        'dense': config.dense,
        'keep': config.keep,
        'by': config.by,
        'calibration': calibration,
        'format': file_format,
        'dtype': dtype and dtype_name(dtype),
        'allow_overflow': allow_overflow,
        'tokenizer': tokenizer if with_tokenizer else False,
        # What verify makes it of again.
        'kept': {
            layer: [[*expert]
                    for expert in experts]
            for layer, experts in kept.items()
        },
    }
    save_view(
        view,
        out,
        file_format,
        Provenance('shrink', source, settings, checkpoint.files),
        dtype,
        None,
        overwrite,
        tokenizer,
        with_tokenizer,
    )
    if config.dense is None:
        return f'{config.experts} experts, top-{mixture.top_k}'
    hidden = view.model_config['ffn_config.ffn_hidden_size']
    return f'a dense model, ffn_hidden_size {hidden}'


def as_shrunk(
    mixture: Mixture,
    kept: Kept,
    is_dense: bool,
    dtype: Optional[torch.dtype] = None,
) -> ShrunkCheckpoint:
    """A mixture seen as what it shrinks to, with that model's config.

    Args:
        mixture: The mixture.
        kept: What is left of each layer.
        is_dense: Whether it becomes dense, its experts side by side.
        dtype: See ``ShrunkCheckpoint``.

    Raises:
        CheckpointError: The tensors are not those of the config.
        ConfigError: No dense model can hold the result.
    """
    config = nest(mixture.source.model_config)
    n = len(next(iter(kept.values())))
    if is_dense:
        config['ffn_config'] = dense_ffn(
            config['ffn_config'],
            mixture.mlp_type,
            mixture.hidden_size,
            n,
            len(mixture.ffns) < config['n_layers'],
        )
    else:
        config['ffn_config']['moe_num_experts'] = n
    return ShrunkCheckpoint(mixture, kept, flatten(config), dtype)


def shrunk_again(
    source: Checkpoint,
    out: str,
    settings: Mapping[str, Any],
) -> ShrunkCheckpoint:
    """What ``shrink`` made, by the settings in its manifest.

    Args:
        source: The mixture.
        out: Path of what was made, for messages.
        settings: In the manifest.

    Raises:
        CheckpointError: ``source`` can't be shrunk so.
    """
    mixture = Mixture.of(source)
    try:
        kept = {
            int(layer): [KeptExpert(*expert)
                         for expert in experts]
            for layer, experts in settings['kept'].items()
        }
        name, is_dense = settings['dtype'], settings['dense'] is not None
        dtype = name and getattr(torch, name)
        members = {
            e
            for experts in kept.values()
            for k in experts
            for e in k[0]
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            out,
            f'what its manifest says of shrink is damaged ({error!r}).',
            'shrink again.',
        ) from error
    if kept.keys() != {*mixture.ffns} or max(members) >= mixture.n_experts:
        raise CheckpointError(
            out,
            f'it was made of a mixture of other layers or experts than '
            f'{source.path}.',
            'name the mixture first that it was made of.',
        )
    return as_shrunk(mixture, kept, is_dense, dtype)
