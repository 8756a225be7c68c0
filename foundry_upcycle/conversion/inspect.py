"""What a checkpoint is, in a few lines."""

import os
from typing import Any, Mapping

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, dtype_name
from foundry_upcycle.checkpoints.huggingface.gguf_container import is_gguf
from foundry_upcycle.checkpoints.huggingface.reader import (
    is_huggingface_folder,
    read_config,
)
from foundry_upcycle.checkpoints.names import parse_router_name
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.conversion.calibration import Calibration, is_calibration
from foundry_upcycle.conversion.manifest import (
    chain_of_manifests,
    find_manifest,
)
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.planning.top_k import read_top_k

__all__ = ['describe']


def describe(path: str) -> list[tuple[str, str]]:
    """What ``inspect`` prints: a label and a line of each fact.

    Raises:
        CheckpointError: It can't be read.
        ConfigError: MPT can't express the Hugging Face model.
    """
    if is_calibration(path):
        return Calibration.read(path).describe(path)
    checkpoint = open_checkpoint(path)
    dtypes = {dtype_name(info.dtype) for info in checkpoint.tensors.values()}
    total = sum(_numel(info.shape) for info in checkpoint.tensors.values())
    n_bytes = sum(info.n_bytes for info in checkpoint.tensors.values())
    return [
        ('path', path),
        ('format', _format(path)),
        ('model', _model(checkpoint)),
        (
            'parameters',
            f'{total / 1e6:,.2f}M in {len(checkpoint.tensors)} tensors, '
            f'{n_bytes / 2**30:,.2f} GiB, {", ".join(sorted(dtypes))}',
        ),
        *_shape(checkpoint),
        *_origins(path),
    ]


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _format(path: str) -> str:
    if is_huggingface_folder(path):
        name = read_config(path).get('model_type')
        return f'Hugging Face folder ({name}, safetensors)'
    if os.path.isdir(path):
        return 'Composer, sharded (DCP) folder'
    return 'GGUF file' if is_gguf(path) else 'Composer, .pt file'


def _model(checkpoint: Checkpoint) -> str:
    routers = [
        info.shape
        for name, info in checkpoint.tensors.items()
        if parse_router_name(name) is not None
    ]
    if not routers:
        return 'dense'
    E = routers[0][0]
    top_k = checkpoint.model_config.get('ffn_config.moe_top_k', '?')
    if isinstance(top_k, Mapping):
        top_k = read_top_k(top_k, E)
    n_layers = checkpoint.model_config.get('n_layers', len(routers))
    of_all = f' of {n_layers}' if n_layers != len(routers) else ''
    return (
        f'mixture of experts: {E} experts, top-{top_k}, in {len(routers)}'
        f'{of_all} layers'
    )


def _shape(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    try:
        config = require_mpt(checkpoint)
    except CheckpointError as error:
        return [('layers', f'not known: {error}')]
    tied = 'tied' if config['tie_word_embeddings'] else 'untied'
    kv = config['attn_config.kv_n_heads']
    rope = config['attn_config.rope']
    theta = config['attn_config.rope_theta']
    return [
        (
            'layers',
            f'{config["n_layers"]}, d_model {config["d_model"]}, ffn '
            f'{config["ffn_config.ffn_hidden_size"]}',
        ),
        (
            'attention',
            f'{config["n_heads"]} heads, {kv} for keys and values, '
            f'{f"rope theta {theta}" if rope else "no rope"}, max_seq_len '
            f'{config["max_seq_len"]}',
        ),
        ('vocabulary', f'{config["vocab_size"]}, {tied} embeddings'),
    ]


def _short(value: Any) -> Any:
    # Of each layer, what shrink kept.
    return '...' if isinstance(value, dict) and len(value) > 1 else value


def _origins(path: str) -> list[tuple[str, str]]:
    facts = []
    for manifest in chain_of_manifests(path):
        settings = ', '.join(
            f'{key}={_short(value)}'
            for key, value in manifest['settings'].items()
        )
        source = manifest['source']
        facts += [
            (
                'made by',
                f'{manifest["command"]} ({settings}) of foundry_upcycle '
                f'{manifest["versions"]["foundry_upcycle"]}, '
                f'{manifest["created"][:10]}',
            ),
            ('from', source['path']),
            *(('sha256', f'{digest}  {name}')
              for name, digest in source['sha256'].items()),
        ]
    return facts or [('made by', f'not known: {find_manifest(path)[1]}')]
