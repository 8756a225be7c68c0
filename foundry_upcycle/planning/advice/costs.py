"""What training and serving cost, together: which arm is cheaper, and when.

As in "Beyond Chinchilla-Optimal" (arXiv 2401.00448): of models of the same
quality that one is best whose training and serving cost least in all. Training
is priced by its FLOPs at a model FLOPs utilisation, serving by the tokens a
second that a machine serves.
"""

import math
from dataclasses import dataclass
from typing import Any

from foundry_upcycle.config import is_number
from foundry_upcycle.errors import ConfigError

__all__ = [
    'Interval',
    'Prices',
    'ServingSpeed',
    'require_positive',
]


def require_positive(key: str, value: Any, most: float, meaning: str) -> None:
    """Refuses what is no number above 0, up to ``most``.

    Raises:
        ConfigError: It is none; ``meaning`` says what to write.
    """
    if not (is_number(value) and 0 < value <= most):
        raise ConfigError(
            key,
            value,
            f'it is not a number above 0, up to {most:g}.',
            f'write {meaning}.',
        )


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ServingSpeed:
    """How fast the models are served on one machine.

    Args:
        source: Where that is from.
        dense_tokens_per_s: Of the dense model, input and output, at the most.
        ratio: A mixture's cost of a token over the dense model's: how many
            times as fast that one is served.
    """

    source: str
    dense_tokens_per_s: float
    ratio: Interval


@dataclass(frozen=True)
class Prices:
    """What computing costs, in any currency.

    Args:
        training_hour: An hour of a device that trains.
        serving_hour: An hour of the machine that serves.
        peak_flops: FLOPs a second of the device, at the most.
        mfu: Share of them that training reaches.
    """

    training_hour: float
    serving_hour: float
    peak_flops: float
    mfu: float

    def __post_init__(self) -> None:
        for key, most, meaning in (
            ('training_hour', 1e9, 'the price of an hour, such as 2'),
            ('serving_hour', 1e9, 'the price of an hour, such as 2'),
            ('peak_flops', 1e21, 'FLOPs a second, such as 989e12'),
            ('mfu', 1.0, 'a share, such as 0.4'),
        ):
            name = f"--{key.replace('_', '-')}"
            require_positive(name, getattr(self, key), most, meaning)

    def training(self, flops: float) -> float:
        """Price of so many FLOPs."""
        return flops / (self.peak_flops * self.mfu) / 3600 * self.training_hour

    def serving(self, tokens: float, tokens_per_s: float) -> float:
        """Price of so many tokens."""
        return tokens / tokens_per_s / 3600 * self.serving_hour

    def more_for_mixture(self, tokens: float, speed: ServingSpeed) -> float:
        """What a mixture costs more to serve than the dense model."""
        dense = self.serving(tokens, speed.dense_tokens_per_s)
        return dense * (speed.ratio.value - 1)

    def served_for(self, price: float, speed: ServingSpeed) -> float:
        """Tokens that a mixture serves until it has cost so much more."""
        if price <= 0:
            return 0.0
        each = self.more_for_mixture(1.0, speed)
        return price / each if each > 0 else math.inf
