"""Every type of weights, in parts, against the package's whole tensors."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import finish

from foundry_upcycle.checkpoints.huggingface.gguf_file import read_gguf
from foundry_upcycle.checkpoints.huggingface.gguf_tensors import (
    check_readable,
    read_part,
)
from foundry_upcycle.errors import CheckpointError

KINDS = [*gguf.GGML_QUANT_SIZES]
ROWS, COLUMNS = 20, 768


def is_computed(kind: gguf.GGMLQuantizationType) -> bool:
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, n_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def write(folder: Path, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Writes a matrix of random bits, most of which are numbers."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (ROWS, COLUMNS // block * n_bytes), np.uint8)
    writer = gguf.GGUFWriter(folder / 'm.gguf', 'llama')
    writer.add_tensor('first', np.ones(3, np.float32))
    writer.add_tensor('t', bits, raw_dtype=kind)
    finish(writer)
    return bits


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
@pytest.mark.parametrize('kind', filter(is_computed, KINDS))
def test_parts_are_those_of_the_whole(tmp_path: Path, kind):
    bits = write(tmp_path, kind)
    expected = torch.from_numpy(gguf.dequantize(bits, kind).copy())
    assert expected.isfinite().float().mean() > 0.5
    tensor = read_gguf(str(tmp_path / 'm.gguf')).tensors['t']
    check_readable('t', tensor)
    # The second begins and ends within blocks, of 32 or 256 columns.
    for dim, start, stop in ((0, 3, 19), (1, 100, 700), (1, 256, 512)):
        torch.testing.assert_close(
            read_part('t', tensor, dim, start, stop),
            expected.narrow(dim, start, stop - start),
            rtol=0,
            atol=0,
            equal_nan=True,
        )


def test_others_are_refused_by_name(tmp_path: Path):
    kind = next(kind for kind in KINDS if not is_computed(kind))
    write(tmp_path, kind)
    tensor = read_gguf(str(tmp_path / 'm.gguf')).tensors['t']
    with pytest.raises(CheckpointError, match=f't is of the type {kind.name}'):
        check_readable('t', tensor)


def test_a_vector(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'llama')
    writer.add_tensor('t', np.arange(9, dtype=np.float16))
    finish(writer)
    tensor = read_gguf(str(tmp_path / 'm.gguf')).tensors['t']
    assert read_part('t', tensor, 0, 3, 5).tolist() == [3, 4]
