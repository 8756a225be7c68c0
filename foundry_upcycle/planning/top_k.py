"""How many experts a token goes to, for each batch of a training.

``model.ffn_config.moe_top_k`` is a whole number K, or says how K varies:

- ``{sample: {1: 0.5, 2: 0.5}}``: drawn for each batch, with these
  probabilities. One K for a whole batch, in all layers, is the batch-level
  variant of Matryoshka MoE (arXiv 2509.26520), which draws uniformly and finds
  a draw for each layer to be better yet; Elastic MoE (arXiv 2509.21892) trains
  experts to work together in more sets than those of one K. Both report that a
  mixture trained with one K does worse with others.
- ``{until: {0.7dur: 2, 1dur: 1}}``: 2 for the first 0.7 of the run, then 1.
  Times are shares of the run (``dur``), as the FLOPs of a token would depend on
  the run's length with any other unit.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Mapping, NoReturn

from foundry_upcycle.config import is_number, is_whole
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration

__all__ = ['TOP_K_KEY', 'TopK', 'read_top_k', 'refuse_varying_top_k']

TOP_K_KEY = 'model.ffn_config.moe_top_k'
# Of a K's probability: a block of draws has its inverse in batches.
_SMALLEST = 1e-3
# How far what a user rounded may be from 1.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TopK:
    """The K of each batch.

    Args:
        values: Each K: one, or those that occur, ascending where they are
            drawn, in their order where they follow one another.
        ends: The sum of the shares of the batches, up to each K's; the last
            is 1.
        is_drawn: Whether K is drawn for each batch.
    """

    values: tuple[int, ...]
    ends: tuple[float, ...] = (1.0, )
    is_drawn: bool = False

    @property
    def varies(self) -> bool:
        return len(set(self.values)) > 1

    @property
    def largest(self) -> int:
        """What evaluation, generation and exports use."""
        return max(self.values)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all batches, each K's."""
        starts = (0.0, *self.ends)
        return tuple(e - s for s, e in zip(starts, self.ends))

    @property
    def mean(self) -> float:
        """Over the batches of a run: what its FLOPs follow from."""
        if not self.varies:
            return self.largest
        mean = sum(K * p for K, p in zip(self.values, self.shares))
        return round(mean, 9)  # 0.7 * 2 + 0.3 is not 1.7 to a computer.

    def scheduled(self, done: float) -> int:
        """The K of a batch before which this share of the run is done."""
        return next(
            (K for K, end in zip(self.values, self.ends) if done < end),
            self.values[-1],
        )

    def drawn(self, batch: int, seed: int) -> int:
        """The K of a batch, counted from 0.

        Depends on nothing else, so it is the same on all ranks and when a run
        is resumed. Batches come in blocks as long as the inverse of the
        smallest probability. How often each K occurs up to the end of a block
        is rounded to less than 1 from its probability times the batches, so
        that any run costs what is planned; its batches in the block are
        shuffled.
        """
        block, position = divmod(batch, self._block)
        place = _shuffled(self._block, block, seed)[position]
        for K, end in zip(self.values, self.ends):
            before, after = (
                math.floor(self._block * n * end + 0.5)
                for n in (block, block + 1)
            )
            if place < after - before:
                return K
        return self.values[-1]

    @property
    def _block(self) -> int:
        return math.ceil(round(1 / min(self.shares), 6))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f'{self.values[0]}'
        if self.is_drawn:
            each = zip(self.values, self.shares)
            return ' or '.join(f'{K} ({share:.4g})' for K, share in each)
        *first, last = zip(self.values, self.ends)
        parts = [f'{K} until {end:g}dur' for K, end in first]
        return f"{', '.join(parts)}, then {last[0]}"


@lru_cache(maxsize=8)
def _shuffled(n: int, block: int, seed: int) -> tuple[int, ...]:
    # By digests, which no version of a library changes.
    def digest(place: int) -> bytes:
        return hashlib.sha256(f'{seed} {block} {place}'.encode()).digest()

    return tuple(sorted(range(n), key=digest))


def read_top_k(
    value: Any,
    n_experts: int,
    key: str = TOP_K_KEY,
) -> TopK:
    """Reads ``moe_top_k``.

    Args:
        value: What stands there.
        n_experts: Experts E, of which a token goes to K.
        key: Where it stands, for the error.

    Raises:
        ConfigError: It is not a K from 1 to E, and says of none when it is used.
    """
    refuse = _Refusal(key, value, n_experts)
    if not isinstance(value, Mapping):
        return TopK((refuse.unless_top_k(value), ))
    if len(value) != 1 or not value.keys() <= {'sample', 'until'}:
        refuse('it is none of sample and until, or both.')
    ((kind, parts), ) = value.items()
    if not isinstance(parts, Mapping) or not parts:
        refuse(f'{kind} says of no K when it is used.')
    return (_sample if kind == 'sample' else _until)(refuse, parts)


def refuse_varying_top_k(value: Any, ffn_type: str) -> None:
    """Refuses a mapping in a layer that nothing tells the batch's K.

    Raises:
        ConfigError: It is one.
    """
    if isinstance(value, Mapping):
        raise ConfigError(
            TOP_K_KEY,
            value,
            f'the K of {ffn_type} cannot vary.',
            'set ffn_type: upcycled_dmoe, or write a whole number.',
        )


@dataclass(frozen=True)
class _Refusal:
    key: str
    value: Any
    n_experts: int

    def __call__(self, problem: str) -> NoReturn:
        raise ConfigError(
            self.key,
            self.value,
            problem,
            f'write a number from 1 to moe_num_experts={self.n_experts}, or '
            'one that varies: {sample: {1: 0.5, 2: 0.5}} or {until: '
            '{0.7dur: 2, 1dur: 1}}.',
        )

    def unless_top_k(self, K: Any) -> int:
        if not is_whole(K):
            self(f'{K!r} is no number of experts.')
        if not 1 <= K <= self.n_experts:
            self(f'there are {self.n_experts} experts, and K is {K}.')
        return K


def _sample(refuse: _Refusal, parts: Mapping[Any, Any]) -> TopK:
    shares: dict[int, float] = {}
    for K, share in parts.items():
        # JSON, in which Hugging Face keeps configs, has no other keys.
        is_text = isinstance(K, str) and K.isdecimal()
        K = refuse.unless_top_k(int(K) if is_text else K)
        if K in shares:
            refuse(f'K = {K} stands there twice.')
        if not is_number(share) or not _SMALLEST <= share <= 1:
            refuse(
                f'{share!r} is no probability from {_SMALLEST} to 1; a K that '
                'does not occur is left out.',
            )
        shares[K] = share
    if abs(math.fsum(shares.values()) - 1) > _TOLERANCE:
        refuse(f'probabilities sum to {math.fsum(shares.values()):g}, not 1.')
    values = sorted(shares)
    ends = [
        math.fsum(shares[each]
                  for each in values[:n])
        for n in range(1, len(values))
    ]
    return TopK(tuple(values), (*ends, 1.0), is_drawn=True)


def _until(refuse: _Refusal, parts: Mapping[Any, Any]) -> TopK:
    ends = []
    for text in parts:
        time = parse_duration(refuse.key, text)
        if time.unit != 'dur':
            refuse(f'{text} is no share of the run, such as 0.7dur.')
        ends.append(time.value)
    if ends[-1] != 1:
        refuse(f'its last time is {ends[-1]:g}dur, not 1dur, the end.')
    if any(b <= a for a, b in zip((0.0, *ends), ends)):
        refuse('its times are not ascending from above 0.')
    values = tuple(refuse.unless_top_k(K) for K in parts.values())
    return TopK(values, tuple(ends))
