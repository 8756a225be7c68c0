"""A small study's YAMLs, whose FLOPs can be counted by hand."""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.study.config import Study, read_study
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.plan_runs import plan_grid

__all__ = ['CPT_STEP', 'GONE', 'UPCYCLED_STEP', 'YAMLS', 'StudyFiles']

YAMLS = Path(__file__).parents[2] / 'yamls'
GONE = object()

# The dense model has 64 * 8 embeddings, tied; 2 blocks of attention 4 * 8 * 8,
# GLU 3 * 8 * 16 and 2 norms of 8; a last norm of 8: 1832, all active. The
# mixture has, in each block, a second expert of 384 and a router of 8 * 8 more:
# 2728. Attention adds 12 * layers 2 * width 8 * 4 tokens = 768 to 6 * active
# FLOPs a token, and a step has 3 * 4 tokens.
CPT_STEP = 12 * (6 * 1832 + 768)  # 141,120
UPCYCLED_STEP = 12 * (6 * 2728 + 768)  # 205,632, 51/35 of it

_TOKENIZER = {
    'name': '${variables.tokenizer}',
    'kwargs': {
        'model_max_length': '${max_seq_len}'
    },
}
_TRAIN: dict[str, Any] = {
    'variables': {
        'tokenizer': 'a_tokenizer',
        'lr': 1e-3,
    },
    'run_name': 'by_hand',
    'seed': 5,
    'max_seq_len': 4,
    'tokenizer': _TOKENIZER,
    'model': {
        'name': 'mpt_causal_lm',
        'init_device': 'meta',
        'd_model': 8,
        'n_heads': 2,
        'n_layers': 2,
        'max_seq_len': '${max_seq_len}',
        'vocab_size': 64,
        'no_bias': True,
        'norm_type': 'rmsnorm',
        'learned_pos_emb': False,
        'ffn_config': {
            'ffn_type': 'mptglu',
            'ffn_hidden_size': 16,
        },
    },
    'train_loader': {
        'name': 'text',
        'dataset': {
            'local': 'data',
            'shuffle_seed': 6,
        },
    },
    'optimizer': {
        'name': 'decoupled_lionw',
        'lr': '${variables.lr}',
        'weight_decay': 1e-4,
    },
    'scheduler': {
        'name': 'cosine_with_warmup',
        't_warmup': '10ba',
    },
    'max_duration': '1000ba',
    'global_train_batch_size': 3,
    'device_train_microbatch_size': 1,
}
_UPCYCLED: dict[str, Any] = {
    'model': {
        'name': 'upcycled_mpt',
        'ffn_config': {
            'ffn_type': 'upcycled_dmoe',
            'moe_num_experts': 8,
            'moe_top_k': 2,
        },
    },
    'callbacks': {
        'sparse_upcycling': {
            'source_path': 'by_hand.pt',
            'recipe': {
                'name': 'copy'
            },
            'seed': 7,
        },
    },
}
_EVAL: dict[str, Any] = {
    'run_name': 'by_hand',
    'max_seq_len': 2,
    'models': [],
    'device_eval_batch_size': 1,
    'icl_tasks': 'tasks.yaml',
}


class StudyFiles:
    """YAMLs of one model, two durations, two budgets and two arms.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.contents: dict[str, DictConfig] = {
            'dense': _merged(_TRAIN),
            'cpt': _merged(_TRAIN),
            'upcycled': _merged(_TRAIN, _UPCYCLED),
            'eval': _merged(_EVAL),
            'study': _merged(_study(folder)),
        }

    def set(self, file: str, key: str, value: Any) -> 'StudyFiles':
        """Changes a key of ``file``; ``GONE`` removes it."""
        section, _, name = key.rpartition('.')
        content = self.contents[file]
        parent = OmegaConf.select(content, section) if section else content
        if value is GONE:
            del parent[name]
        else:
            parent[name] = value
        return self

    def set_all(self, key: str, value: Any) -> 'StudyFiles':
        """Changes a key of all YAMLs that train."""
        for file in ('dense', 'cpt', 'upcycled'):
            self.set(file, key, value)
        return self

    def write(self) -> Path:
        """Writes them, and says where the study YAML lies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.contents.items():
            OmegaConf.save(content, self.folder / f'{name}.yaml')
        return self.folder / 'study.yaml'

    def study(self) -> Study:
        return read_study(self.write())

    def grid(self) -> Grid:
        return plan_grid(self.study())


def _merged(*contents: dict[str, Any]) -> DictConfig:
    config = OmegaConf.merge(*map(copy.deepcopy, contents))
    assert isinstance(config, DictConfig)
    return config


def _study(folder: Path) -> dict[str, Any]:
    return {
        'name': 'small',
        'folder': str(folder / 'results'),
        'seeds': [17],
        'models': {
            'm': {
                'durations': {
                    'short': '200ba',
                    'long': '400ba',
                },
                'fractions': [0.5, 1.0],
                'pretrain': {
                    'yaml': 'dense.yaml'
                },
                'arms': {
                    'cpt': {
                        'yaml': 'cpt.yaml'
                    },
                    'upcycled': {
                        'yaml': 'upcycled.yaml'
                    },
                },
            },
        },
        'hardware': {
            'name': 'abacus',
            # An hour for the 200 steps of CPT_STEP.
            'peak_flops': 15680,
            'mfu': 0.5,
        },
    }
