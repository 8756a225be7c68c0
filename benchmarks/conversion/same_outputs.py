"""Do two Hugging Face folders hold the same mixture, but for its routers?

    python benchmarks/conversion/same_outputs.py OURS THEIRS

transformers 4 stores each expert's matrices, transformers 5 (mergekit) one
tensor for all experts; THEIRS may be either. Tensors are compared exactly.
"""

import re
import sys
from pathlib import Path
from typing import Callable, Iterator

import torch
from safetensors import safe_open

Read = Callable[[], torch.Tensor]

_STACKED = re.compile(r'(.*)\.mlp\.experts\.(gate_up|down)_proj')


def tensors(folder: Path) -> dict[str, Read]:
    """Name -> what reads it, under the names of transformers 4."""
    found: dict[str, Read] = {}
    for file in sorted(folder.glob('*.safetensors')):
        with safe_open(file, framework='pt') as stream:
            for name in stream.keys():
                for alias, index in _aliases(name, stream):
                    found[alias] = _reader(file, name, index)
    return found


def _reader(file: Path, name: str, index: tuple) -> Read:

    def read() -> torch.Tensor:
        with safe_open(file, framework='pt') as stream:
            return stream.get_slice(name)[index]

    return read


def _aliases(name: str, stream: safe_open) -> Iterator[tuple[str, tuple]]:
    match = _STACKED.fullmatch(name)
    if match is None:
        yield name.replace('.mlp.gate.', '.block_sparse_moe.gate.'), (..., )
        return
    n_experts, n_rows, _ = stream.get_slice(name).get_shape()
    for expert in range(n_experts):
        prefix = f'{match[1]}.block_sparse_moe.experts.{expert}'
        if match[2] == 'down':
            yield f'{prefix}.w2.weight', (expert, )
            continue
        half = n_rows // 2
        yield f'{prefix}.w1.weight', (expert, slice(0, half))
        yield f'{prefix}.w3.weight', (expert, slice(half, n_rows))


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs, in words; routers are random in both."""
    expected, found = tensors(ours), tensors(theirs)
    lines = [f'only in one: {name}' for name in sorted({*expected} ^ {*found})]
    for name in sorted({*expected} & {*found}):
        if name.endswith('.block_sparse_moe.gate.weight'):
            continue
        # mergekit keeps a dimension that is indexed away.
        one, other = expected[name](), found[name]().squeeze(0)
        if one.dtype != other.dtype or not torch.equal(one, other):
            lines.append(f'differs: {name}')
    return lines


if __name__ == '__main__':
    problems = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit('\n'.join(problems[:5]) or None)
