"""How long a run trains, as Foundry's YAMLs write it."""

import re
from dataclasses import dataclass
from typing import Any

from foundry_upcycle.errors import ConfigError

__all__ = ['Duration', 'parse_duration']

_DURATION = re.compile(r'(\d+\.?\d*(?:e\+?\d+)?)(tok|ba|dur|ep|sp)')
# Tokens, or anything else: what an int of 64 bits holds.
_LONGEST = 9e18


@dataclass(frozen=True)
class Duration:
    """A time as Composer counts it.

    Args:
        value: How many.
        unit: Of what: ``tok`` (tokens), ``ba`` (steps), ``dur`` (shares of the
            whole run), ``ep`` (epochs), ``sp`` (sequences).
    """

    value: float
    unit: str

    def steps(self, tokens_per_step: int) -> float:
        """The same in optimizer steps, of ``tok`` and ``ba``.

        Raises:
            ValueError: The unit is another one.
        """
        in_steps = {'tok': self.value / tokens_per_step, 'ba': self.value}
        if self.unit not in in_steps:
            raise ValueError(f'{self.unit=} is none of {sorted(in_steps)}.')
        return in_steps[self.unit]


def parse_duration(key: str, text: Any) -> Duration:
    """Reads a duration such as ``43.6e9tok`` or ``500ba``.

    Args:
        key: Where it was found, for the error.
        text: What stands there.

    Raises:
        ConfigError: It is none.
    """
    match = _DURATION.fullmatch(str(text))
    if not match:
        raise ConfigError(
            key,
            text,
            'it is not a duration.',
            'write a number and a unit, such as 43.6e9tok or 500ba.',
        )
    value = float(match[1])
    if value > _LONGEST:
        raise ConfigError(
            key,
            text,
            'no run is as long.',
            f'write a number up to {_LONGEST:g}.',
        )
    return Duration(value, match[2])
