"""Is a mixture the dense model it came from, or what shrink made of another?"""

import math
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

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
from foundry_upcycle.conversion.shrink import shrunk_again
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
            is made of the source, by name.
        routers: Whether routers were compared as well (their seed is known).
        config: A setting that makes them different functions, in words.
        provenance: Whether the manifest names this very source; None where
            there is no manifest. Does not decide.
        no_manifest: Why there is none.
        logits: Largest absolute difference of the logits on the sample.
        tolerance: The largest that passes.
        is_shrunk: Whether the source is a mixture that was shrunk.
    """
    tensors: int
    tolerance: float
    is_shrunk: bool = False
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
        kind = 'mixture' if self.is_shrunk else 'dense model'
        provenance = {
            True: f'names these very files of the {kind}',
            False: f'names other files of a {kind}',
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
        lines.append(
            f'The model {verdict} what shrink makes of the mixture.'
            if self.is_shrunk else f'The mixture {verdict} the dense model.',
        )
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
    memory at a time. Or what ``shrink`` made with what it makes of the mixture
    that it was made of.

    Args:
        dense: Path of the dense checkpoint, in any format; or of the mixture
            that was shrunk.
        mixture: Path of the mixture, in any format; or of what it shrank to.
        n_tokens: Length of the sample, of random tokens.
        seed: Of the sample.
        tolerance: Largest difference of logits that passes.

    Raises:
        CheckpointError: One can't be read, or they can't be compared.
    """
    source, target = open_checkpoint(dense), open_checkpoint(mixture)
    settings = _settings(mixture)
    is_shrunk = 'kept' in settings and is_mixture(source.tensors)
    if is_shrunk:
        require_mpt(target)
        expected = shrunk_again(source, mixture, settings)
        stored_as = {n: i.dtype for n, i in target.tensors.items()}
        reference, names = expected, [*target.tensors]
        _check_names(expected, target)
    else:
        _check_comparable(source, target)
        # Of experts that shrink left, the routers are not those of a seed.
        settings = {} if 'kept' in settings else settings
        expected = _upcycled(source, target, settings)
        reference, stored_as = source, _dtypes(source, target)
        names = [
            name for name in target.tensors
            if settings or parse_router_name(name) is None
        ]
    differences = {
        name: _difference(expected, target, name)
        for name in tqdm(names, desc='verify', unit='tensor', delay=1)
    }
    logits = _logits_difference(reference, target, stored_as, n_tokens, seed)
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
        logits=logits,
        tolerance=tolerance,
        is_shrunk=is_shrunk,
    )
    for checkpoint in (source, target):
        checkpoint.files.check()
    return verification


def _upcycled(
    source: Checkpoint,
    target: Checkpoint,
    settings: Mapping[str, Any],
) -> Checkpoint:
    return UpcycledCheckpoint(
        source,
        {
            name: info.shape
            for name, info in target.tensors.items()
        },
        UpcyclingConfig(
            source.path,
            **{key: settings[key]
               for key in _SETTINGS
               if key in settings},
        ),
    )


def _check_comparable(source: Checkpoint, target: Checkpoint) -> None:
    if not is_mixture(target.tensors):
        raise CheckpointError(
            target.path,
            'it holds no experts.',
            'name the dense checkpoint first, then the mixture.',
        )
    for checkpoint in (source, target):
        require_mpt(checkpoint)


def _check_names(expected: Checkpoint, target: Checkpoint) -> None:
    for name in (*expected.tensors, *target.tensors):
        shapes = [
            checkpoint.tensors[name].shape
            if name in checkpoint.tensors else None
            for checkpoint in (expected, target)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                target.path,
                f'{name} has shape {shapes[1]}, and shrink makes one of '
                f'{shapes[0]} (None: no such tensor).',
                'name the mixture first that it was made of.',
            )


def _settings(mixture: str) -> dict[str, Any]:
    """What it was made with last; empty where that is not known."""
    for manifest in chain_of_manifests(mixture):
        if manifest['command'] in ('convert', 'shrink'):
            return manifest['settings']
    return {}


def _provenance(dense: StoredCheckpoint, mixture: str) -> Optional[bool]:
    """Whether the manifests name the source's very files."""
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
    reference: Checkpoint,
    target: Checkpoint,
    stored_as: Mapping[str, torch.dtype],
    n_tokens: int,
    seed: int,
) -> float:
    from foundry_upcycle.conversion.streamed import streamed_logits

    config = require_mpt(target)
    n_tokens = min(n_tokens, config['max_seq_len'])
    generator = torch.Generator().manual_seed(seed)
    input_ids_BT = torch.randint(
        config['vocab_size'],
        (1, n_tokens),
        generator=generator,
    )
    expected_BTV = streamed_logits(reference, input_ids_BT, stored_as)
    found_BTV = streamed_logits(target, input_ids_BT)
    return (expected_BTV - found_BTV).abs().max().item()
