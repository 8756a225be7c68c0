"""A GGUF file, or several parts of one, as the Hugging Face model it was."""

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Mapping

import torch

from foundry_upcycle.checkpoints.base import TensorInfo
from foundry_upcycle.checkpoints.companions import Companions
from foundry_upcycle.checkpoints.huggingface.gguf_config import (
    EMBEDDING,
    HEAD,
    read_hf_config,
    write_configs,
)
from foundry_upcycle.checkpoints.huggingface.gguf_container import (
    GIVE_ORIGINAL,
    StoredTensor,
)
from foundry_upcycle.checkpoints.huggingface.gguf_file import (
    gguf_parts,
    read_gguf,
)
from foundry_upcycle.checkpoints.huggingface.gguf_rope import ROPE_FACTORS
from foundry_upcycle.checkpoints.huggingface.gguf_tensors import (
    check_readable,
    read_part,
)
from foundry_upcycle.checkpoints.huggingface.gguf_tokenizer import (
    check_tokenizer,
    write_tokenizer,
)
from foundry_upcycle.checkpoints.huggingface.model import HuggingFaceModel
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import scratch_folder

__all__ = ['GGUFReader']

# Module of transformers -> of GGUF.
_LAYER_NAMES = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}
_NAMES = {
    'model.embed_tokens.weight': EMBEDDING,
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': HEAD,
}

# llama.cpp pairs neighbouring channels of a Llama's queries and keys, and
# transformers those half a head apart.
_INTERLEAVED = re.compile(r'blk\.\d+\.attn_[qk]\.weight')


class GGUFReader(HuggingFaceModel):
    """The model in a GGUF file, in float32.

    Quantised weights are the values that they stand for, computed as they are
    read.

    Args:
        path: A GGUF file of a Llama, Qwen2 or Qwen3; of several parts, the
            first.

    Attributes:
        file: The file's metadata.
        hf_config: What ``config.json`` would hold.

    Raises:
        CheckpointError: The package ``gguf`` is missing, a file is damaged, or
            it holds what transformers or MPT has not.
        ConfigError: MPT can't express the model.
    """
    described_by = 'its metadata'
    repair = f'copy it again, or {GIVE_ORIGINAL}'

    def __init__(self, path: str):
        self.files = SourceFiles(os.path.dirname(path))
        for part in filter(os.path.isfile, gguf_parts(path)):
            self.files.open(os.path.basename(part)).close()
        self.file = read_gguf(path)
        kinds = {t.kind: (name, t) for name, t in self.file.tensors.items()}
        for name, tensor in kinds.values():
            check_readable(name, tensor)
        self.hf_config = read_hf_config(self.file)
        self._head_dim = self.hf_config['head_dim']
        super().__init__(path, self.hf_config, _stored(self.file.tensors))

    def companions(self, with_tokenizer: bool = True) -> Companions:
        with _temporary_folder(self.path) as folder:
            write_configs(self.hf_config, folder)
            if with_tokenizer:
                length = self.section['max_seq_len']
                write_tokenizer(self.file, length, folder)
            found = Companions.of_folder(str(folder), self.hf_config)
        return replace(found, path=self.path)

    def check_tokens(self, path: str, ids: Mapping[str, int]) -> None:
        check_tokenizer(self.file, path, ids)

    def _stored_name(self, name: str) -> str:
        if name in _NAMES:
            return _NAMES[name]
        _, _, layer, module = name.split('.', 3)
        module, _, kind = module.rpartition('.')
        return f'blk.{layer}.{_LAYER_NAMES[module]}.{kind}'

    def _read_stored(
        self,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        tensor = self.file.tensors[name]
        if not self._is_interleaved(name):
            part = read_part(name, tensor, dim, start, stop)
        elif dim == 1:
            part = self._halved(read_part(name, tensor, dim, start, stop))
        else:
            # Whole heads, as far as they hold these rows.
            first = start // self._head_dim * self._head_dim
            last = -(-stop // self._head_dim) * self._head_dim
            heads = self._halved(read_part(name, tensor, 0, first, last))
            part = heads[start - first:stop - first]
        self.files.check(os.path.basename(tensor.file))
        return self._finite(name, part)

    def _is_interleaved(self, name: str) -> bool:
        is_llama = self.hf_config['model_type'] == 'llama'
        return is_llama and _INTERLEAVED.fullmatch(name) is not None

    def _halved(self, rows: torch.Tensor) -> torch.Tensor:
        """Whole heads of interleaved rows, in the order of transformers."""
        pairs = rows.unflatten(0, (-1, self._head_dim // 2, 2))
        return pairs.transpose(1, 2).flatten(0, 2)


@contextmanager
def _temporary_folder(path: str) -> Iterator[Path]:
    try:
        with scratch_folder('gguf-') as folder:
            yield folder
    except CheckpointError:
        raise
    # The library of tokenizers raises no OSError.
    except Exception as error:
        raise CheckpointError(
            path,
            f'its tokenizer and config could not be written to a temporary '
            f'folder ({error}).',
            'set TMPDIR to a folder with room.',
        ) from error


def _stored(tensors: Mapping[str, StoredTensor]) -> dict[str, TensorInfo]:
    """All tensors but those whose numbers the config has."""
    return {
        name: TensorInfo(tensor.shape, torch.float32)
        for name, tensor in tensors.items()
        if name != ROPE_FACTORS
    }
