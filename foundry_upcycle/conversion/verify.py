"""Is a mixture of experts the dense model it came from? If not, where not?"""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from tqdm import tqdm

from foundry_upcycle.checkpoints.base import Checkpoint, StoredCheckpoint, nest
from foundry_upcycle.checkpoints.exactness import check_same_function
from foundry_upcycle.checkpoints.names import (
    dense_mlp_type,
    expert_name,
    is_mixture,
    parse_router_name,
)
from foundry_upcycle.checkpoints.narrowing import overflowing
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.checkpoints.upcycled import UpcycledCheckpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.manifest import (
    chain_of_manifests,
    find_manifest,
    hash_files,
)
from foundry_upcycle.conversion.streamed import streamed_logits
from foundry_upcycle.errors import CheckpointError, ConfigError

__all__ = ['Verification', 'verify']

# What of a conversion's settings decides its tensors.
_SETTINGS = ('recipe', 'router_init_std', 'seed')


@dataclass
class Verification:
    """What was compared, and what was found.

    Attributes:
        tensors: Number of tensors compared.
        differing: Largest absolute difference of each tensor that is not what
            upcycling makes of the dense model, by name.
        routers: Whether routers were compared as well (their seed is known).
        config: A setting that makes them different functions, in words.
        provenance: Whether the manifest names this very dense checkpoint;
            None where there is no manifest. Does not decide.
        no_manifest: Why there is none.
        logits: Largest absolute difference of the logits on the sample.
        tolerance: The largest that passes.
    """
    tensors: int
    tolerance: float
    routers: bool = False
    differing: dict[str, float] = field(default_factory=dict)
    config: Optional[str] = None
    provenance: Optional[bool] = None
    no_manifest: str = 'there is none'
    logits: float = float('nan')

    @property
    def passed(self) -> bool:
        return (
            not self.differing and self.config is None
            and self.logits <= self.tolerance
        )

    def lines(self) -> list[str]:
        """The findings, in words."""
        provenance = {
            True: 'names these very files of the dense model',
            False: 'names other files of a dense model',
            None: self.no_manifest,
        }
        routers = 'with' if self.routers else 'without'
        lines = [
            f'manifest   {provenance[self.provenance]}',
            f'tensors    {self.tensors} compared, {routers} routers: '
            f'{len(self.differing) or "none"} differ',
        ]
        lines += [
            f'           {name}: by {difference:.3g}'
            for name, difference in self.differing.items()
        ]
        lines.append(f'config     {self.config or "the same function"}')
        lines.append(
            f'logits     differ by {self.logits:.3g}, at most '
            f'{self.tolerance:g} allowed',
        )
        verdict = 'is' if self.passed else 'is NOT'
        lines.append(f'The mixture {verdict} the dense model.')
        return lines


def verify(
    dense: str,
    mixture: str,
    n_tokens: int = 256,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> Verification:
    """Compares a mixture of experts with the dense model at step 0.

    Tensor by tensor with what upcycling makes of the dense checkpoint, in the
    precision in which the mixture is stored; then the logits of both on a
    sample, computed in float32 from weights of that precision, one block in
    memory at a time.

    Args:
        dense: Path of the dense checkpoint, in any format.
        mixture: Path of the mixture, in any format.
        n_tokens: Length of the sample, of random tokens.
        seed: Of the sample.
        tolerance: Largest difference of logits that passes.

    Raises:
        CheckpointError: One can't be read, or they can't be compared.
    """
    source, target = open_checkpoint(dense), open_checkpoint(mixture)
    _check_comparable(source, target)
    settings = _settings(mixture)
    expected = UpcycledCheckpoint(
        source,
        {
            name: info.shape
            for name, info in target.tensors.items()
        },
        UpcyclingConfig(
            dense,
            **{key: settings[key]
               for key in _SETTINGS
               if key in settings},
        ),
    )
    names = [
        name for name in target.tensors
        if settings or parse_router_name(name) is None
    ]
    differences = {
        name: _difference(expected, target, name)
        for name in tqdm(names, desc='verify', unit='tensor', delay=1)
    }
    verification = Verification(
        tensors=len(names),
        routers=bool(settings),
        differing={
            n: d
            for n, d in differences.items()
            if d != 0
        },
        config=_config_difference(source, target),
        provenance=_provenance(source, mixture),
        no_manifest=find_manifest(mixture)[1],
        logits=_logits_difference(source, target, n_tokens, seed),
        tolerance=tolerance,
    )
    for checkpoint in (source, target):
        checkpoint.files.check()
    return verification


def _check_comparable(source: Checkpoint, target: Checkpoint) -> None:
    if not is_mixture(target.tensors):
        raise CheckpointError(
            target.path,
            'it holds no experts.',
            'name the dense checkpoint first, then the mixture.',
        )
    for checkpoint in (source, target):
        require_mpt(checkpoint)


def _settings(mixture: str) -> dict[str, Any]:
    """What it was upcycled with; empty where that is not known."""
    for manifest in chain_of_manifests(mixture):
        if manifest['command'] == 'convert':
            return manifest['settings']
    return {}


def _provenance(dense: StoredCheckpoint, mixture: str) -> Optional[bool]:
    """Whether the manifests name the dense checkpoint's very files."""
    sources = [
        set(manifest['source']['sha256'].values())
        for manifest in chain_of_manifests(mixture)
    ]
    if not sources:
        return None
    # By content: files may have been renamed or moved. A conversion may have
    # read more of them, such as those that only a tokenizer is in.
    found = set(hash_files(dense.files).values())
    return any(found <= source for source in sources)


def _difference(
    expected: Checkpoint,
    found: Checkpoint,
    name: str,
) -> float:
    shape, dtype = found.tensors[name]
    largest, start = 0.0, 0
    for block in expected.rows(name, 0, shape[0]):
        stop = start + len(block)
        other = found.read(name, 0, start, stop)
        stored = block.to(dtype)
        if overflowing(block, stored) is not None:
            largest = math.inf
        if not torch.equal(stored, other):
            distance = (stored.double() - other.double()).abs().max().item()
            # A NaN would be lost in max(); it differs from everything.
            largest = max(
                largest, math.inf if distance != distance else distance
            )
        start = stop
    return largest


def _config_difference(source: Checkpoint, target: Checkpoint) -> Optional[str]:
    try:
        check_same_function(source, nest(target.model_config))
    except ConfigError as error:
        return f'DIFFERS: {error}'
    return None


def _dtypes(source: Checkpoint, target: Checkpoint) -> dict[str, torch.dtype]:
    """Of each dense tensor, in what precision the mixture stores it."""
    mlp_type = dense_mlp_type(source.tensors)
    dtypes = {}
    for name in source.tensors:
        expert = expert_name(name, mlp_type)
        # A layer may have stayed dense, and biases that were zero are gone.
        names = [expert.name, name] if expert else [name]
        found = [target.tensors[n] for n in names if n in target.tensors]
        dtypes[name] = [*found, source.tensors[name]][0].dtype
    return dtypes


def _logits_difference(
    source: Checkpoint,
    target: Checkpoint,
    n_tokens: int,
    seed: int,
) -> float:
    config = require_mpt(target)
    n_tokens = min(n_tokens, config['max_seq_len'])
    generator = torch.Generator().manual_seed(seed)
    input_ids_BT = torch.randint(
        config['vocab_size'],
        (1, n_tokens),
        generator=generator,
    )
    dense_BTV = streamed_logits(source, input_ids_BT, _dtypes(source, target))
    mixture_BTV = streamed_logits(target, input_ids_BT)
    return (dense_BTV - mixture_BTV).abs().max().item()
