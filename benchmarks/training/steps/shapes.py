"""What is trained: the quickstart's YAMLs, at two sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.planning.flops import ModelShape

__all__ = ['ARMS', 'SHAPES', 'Shape', 'flops_per_step', 'read_config']

_YAMLS = Path(__file__).parents[3] / 'yamls'
_LOADER_BEFORE = {
    'num_workers': 1,
    'prefetch_factor': 2,
    'persistent_workers': True,
}


@dataclass(frozen=True)
class Shape:
    """A model and its batch.

    Args:
        yaml: The train YAML, in ``yamls/``.
        overrides: What differs from it, by full keys.
    """

    yaml: str
    overrides: Mapping[str, Any]


def _sizes(d_model: int, vocab_size: int, seq_len: int, n: int) -> dict:
    return {
        'max_seq_len': seq_len,
        'global_train_batch_size': n,
        'device_train_microbatch_size': n,
        'model.d_model': d_model,
        'model.n_heads': 4,
        'model.n_layers': 4,
        'model.vocab_size': vocab_size,
        'model.ffn_config.ffn_hidden_size': 5 * d_model // 2,
    }


_LARGE = _sizes(d_model=128, vocab_size=2048, seq_len=256, n=16)
_SMALL = _sizes(d_model=64, vocab_size=512, seq_len=128, n=64)

SHAPES = {
    '1M, dense': Shape('quickstart_pretrain.yaml', _LARGE),
    '1M, mixture': Shape('quickstart_upcycle.yaml', _LARGE),
    '0.2M, dense': Shape('quickstart_pretrain.yaml', _SMALL),
    '0.2M, mixture': Shape('quickstart_upcycle.yaml', _SMALL),
}

# Who trains it: Foundry without what the YAMLs have for a CPU, as they say, and
# a loop of plain PyTorch.
ARMS = ('before', 'yaml', 'plain')


def read_config(shape: Shape, arm: str, folder: Path) -> DictConfig:
    """The YAML as it is trained here.

    What differs, beside the shape's own overrides: random tokens; no start
    from a dense checkpoint (experts are random); nothing is saved; and losses
    go to MLflow, as in a study.

    Args:
        shape: Whose.
        arm: One of ``ARMS``.
        folder: Of the run, with tokenizer and tokens.
    """
    config: Any = OmegaConf.load(_YAMLS / shape.yaml)
    for key, value in shape.overrides.items():
        OmegaConf.update(config, key, value)
    config.variables.folder = str(folder)
    config.train_loader.dataset.streams = {
        'tokens': {
            'local': str(folder),
            'split': 'train',
        },
    }
    config.callbacks.pop('sparse_upcycling', None)
    if arm == 'before':
        del config.callbacks.cpu_training
        config.train_loader.update(_LOADER_BEFORE)
    config.update({
        'max_duration': '1000ep',
        'save_folder': None,
        'autoresume': False,
        'progress_bar': False,
        'log_to_console': False,
        'loggers': {
            'mlflow': {
                'experiment_name': 'steps',
                'tracking_uri': str(folder / 'mlruns'),
                'synchronous': True,
                'log_system_metrics': False,
            },
        },
    })
    return config


def flops_per_step(config: DictConfig) -> float:
    """As Foundry counts: backward is twice forward, attention is whole."""
    container: Any = OmegaConf.to_container(config, resolve=True)
    shape = ModelShape.from_config(container['model'])
    n_tokens = config.global_train_batch_size * config.max_seq_len
    return 3.0 * n_tokens * shape.forward_flops_per_token(config.max_seq_len)
