"""Tiny models and batches that the tests share."""

import copy
from typing import Any

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from composer.optim import DecoupledSGDW
from composer.utils import dist
from llmfoundry.utils.builders import build_composer_model
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

VOCAB = 128
SEQ = 32
HIDDEN = 96

DENSE: dict[str, Any] = {
    'd_model': 64,
    'n_heads': 4,
    'n_layers': 3,
    'max_seq_len': SEQ,
    'vocab_size': VOCAB,
    'no_bias': True,
    'tie_word_embeddings': False,
    'norm_type': 'rmsnorm',
    'loss_fn': 'torch_crossentropy',
    'attn_config': {
        'attn_type': 'grouped_query_attention',
        'attn_impl': 'torch',
        'kv_n_heads': 2,
        'rope': True,
        'rope_impl': 'hf',
    },
    'ffn_config': {
        'ffn_type': 'mptglu',
        'ffn_hidden_size': HIDDEN,
        'ffn_act_fn': {
            'name': 'silu',
        },
    },
}


def dense_config(**changes: Any) -> dict[str, Any]:
    """The dense model; ``changes`` replace top-level keys."""
    return {**copy.deepcopy(DENSE), **changes}


def moe_config(ffn: dict[str, Any] | None = None, **changes: Any) -> dict:
    """The dense model with experts; ``ffn`` updates ``ffn_config``."""
    config = dense_config(**changes)
    config['ffn_config'] = {
        **config['ffn_config'],
        'ffn_type': 'upcycled_dmoe',
        'moe_num_experts': 8,
        'moe_top_k': 2,
        **(ffn or {}),
    }
    return config


def build_dense(seed: int = 0, **changes: Any) -> ComposerModel:
    torch.manual_seed(seed)
    return build_composer_model(
        'mpt_causal_lm',
        dense_config(**changes),
        tokenizer=None,
    )


def build_moe(
    ffn: dict[str, Any] | None = None,
    seed: int = 1,
    **changes: Any,
) -> ComposerModel:
    torch.manual_seed(seed)
    return build_composer_model(
        'upcycled_mpt',
        moe_config(ffn, **changes),
        tokenizer=None,
    )


def save_dense(model: ComposerModel, path: Any) -> str:
    """Saves weights and config as Composer's ``save_weights_only`` does."""
    state = {
        'model': model.state_dict(),
        'integrations': {
            'huggingface': model.get_metadata(),
        },
    }
    torch.save({'state': state}, path)
    return str(path)


def make_batch(seed: int = 0, size: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (size, SEQ), generator=generator)
    return {'input_ids': ids, 'labels': ids.clone()}


def make_samples(n: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    batch = make_batch(seed, n)
    return [{k: v[i] for k, v in batch.items()} for i in range(n)]


def make_trainer(
    model: ComposerModel,
    samples: list[dict[str, torch.Tensor]] | None = None,
    batch_size: int = 4,
    duration: str = '4ba',
    lr: float = 0.1,
    **kwargs: Any,
) -> Trainer:
    """A real Composer trainer on the CPU, in fp32, with plain SGD."""
    samples = make_samples(16) if samples is None else samples
    loader = DataLoader(
        samples,
        batch_size=batch_size,
        sampler=dist.get_sampler(samples),
    )
    return Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=duration,
        optimizers=DecoupledSGDW(model.parameters(), lr=lr),
        precision='fp32',
        device='cpu',
        progress_bar=False,
        **kwargs,
    )


def train_and_save_dense(folder: Any) -> str:
    """Trains the dense model for a step; returns its full checkpoint."""
    trainer = make_trainer(
        build_dense(),
        duration='1ba',
        save_folder=str(folder),
        save_filename='dense.pt',
    )
    trainer.fit()
    trainer.close()
    return f'{folder}/dense.pt'


def logged(log: InMemoryLogger, prefix: str) -> dict[str, list[float]]:
    """Logged values of the metrics whose names start with ``prefix``."""
    found = {}
    for name, values in log.data.items():
        if name.startswith(prefix):
            found[name] = [float(value) for _, value in values]
    return found


def full_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole parameters, wherever they are; a collective under FSDP."""
    state = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix('module.')
        data = parameter.detach()
        full = data.full_tensor() if isinstance(data, DTensor) else data
        state[name] = full.clone()
    return state
