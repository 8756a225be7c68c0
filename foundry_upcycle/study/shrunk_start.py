"""An arm that trains the mixture of another arm on, shrunk."""

from dataclasses import dataclass
from typing import Optional, get_args

from foundry_upcycle.config import (
    DenseKind,
    ExpertCriterion,
    ShrinkingConfig,
    is_number,
    is_whole,
)
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.section import Section

__all__ = ['ShrunkStart']

# Of `foundry-upcycle shrink`, by the types of their values.
_OPTIONS = {'experts': int, 'dense': str, 'keep': int, 'by': str}
_MAX_TOKENS = 1 << 17


@dataclass(frozen=True)
class ShrunkStart:
    """What an arm starts from.

    Args:
        key: Of the section in the study YAML.
        arm: The other arm, whose mixture is shrunk.
        config: What to.
        heal: Share of the arm's FLOPs that are left for training what has been
            shrunk; 0: none, it is evaluated as it is.
        texts: What the mixture is calibrated on; None: it is not.
        tokens: Of them, at most.
    """

    key: str
    arm: str
    config: ShrinkingConfig
    heal: float
    texts: Optional[str] = None
    tokens: int = _MAX_TOKENS

    @classmethod
    def read(cls, section: Section) -> 'ShrunkStart':
        """Reads an arm's section ``shrink``.

        Raises:
            ConfigError: A key is missing, unknown, or can't be used.
        """
        texts = section.take('calibrate', str, None)
        start = cls(
            key=section.prefix,
            arm=section.take('arm', str),
            config=_config(section, texts is not None),
            heal=section.take('heal', (float, int)),
            texts=texts,
            tokens=section.take('tokens', int, _MAX_TOKENS),
        )
        if not (is_number(start.heal) and 0 <= start.heal < 1):
            raise ConfigError(
                section.key('heal'),
                start.heal,
                "it is not a share of the arm's FLOPs that leaves some to train "
                'the mixture.',
                'write 0, or a share such as 0.15.',
            )
        if not (is_whole(start.tokens) and start.tokens >= 1):
            raise ConfigError(
                section.key('tokens'),
                start.tokens,
                'it is not a number of tokens.',
                'write how many the mixture is calibrated on.',
            )
        section.refuse_others()
        return start

    def __str__(self) -> str:
        """As plans and reports say it."""
        healed = f'healed with {self.heal:g} of its FLOPs'
        return (
            f"{self.arm}, shrunk ({' '.join(self.options)}) and "
            f"{healed if self.heal else 'not trained'}"
        )

    @property
    def options(self) -> list[str]:
        """Of the command ``foundry-upcycle shrink``."""
        named = {name: getattr(self.config, name) for name in _OPTIONS}
        if self.texts is not None:
            named |= {'calibrate': self.texts, 'tokens': self.tokens}
        return [
            word for name, value in named.items() if value is not None
            for word in (f'--{name}', str(value))
        ]


def _config(section: Section, has_calibration: bool) -> ShrinkingConfig:
    given = {
        name: section.take(name, kind, None)
        for name, kind in _OPTIONS.items()
    }
    for name, kind in (('dense', DenseKind), ('by', ExpertCriterion)):
        known = get_args(kind)
        if given[name] is not None and given[name] not in known:
            raise ConfigError(
                section.key(name),
                given[name],
                'a mixture is not shrunk so.',
                f"write one of {', '.join(known)}.",
            )
    try:
        return ShrinkingConfig(**given, has_calibration=has_calibration)
    except ConfigError as error:
        error.args = (f'{section.prefix}: {error}', )
        raise
