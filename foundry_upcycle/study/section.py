"""A mapping of a study YAML, of which each key is asked for."""

from typing import Any

from foundry_upcycle.errors import ConfigError

__all__ = ['Section']

_REQUIRED = object()


class Section:
    """A mapping of a YAML; knows which keys were asked for.

    Args:
        prefix: Its key; empty of the whole YAML.
        content: What stands there.

    Raises:
        ConfigError: It is no mapping.
    """

    def __init__(self, prefix: str, content: Any):
        if not isinstance(content, dict):
            raise ConfigError(
                prefix,
                content,
                'it is no mapping of keys to values.',
                'write its keys indented below it.',
            )
        self.prefix = prefix
        self.content = content
        self.known: set[str] = set()

    def inside(self, key: str, content: Any) -> 'Section':
        """What stands at a key, as a section."""
        return Section(self.key(key), content)

    def key(self, key: str) -> str:
        """A key's full name."""
        return f'{self.prefix}.{key}' if self.prefix else key

    def has(self, key: str) -> bool:
        """Whether a key has a value."""
        self.known.add(key)
        return self.content.get(key) is not None

    def take(self, key: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """The value of a key.

        Args:
            key: Its name.
            kind: A type, or several.
            default: Stands for a value that is not there.

        Raises:
            ConfigError: It is missing, empty, of another type, or interpolated.
        """
        self.known.add(key)
        value = self.content.get(key)
        if value is None and default is not _REQUIRED:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind, )
        # True is an int to Python.
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        is_empty = not value and value != 0 and value != default
        if not fits or is_empty:
            raise ConfigError(
                self.key(key),
                value,
                'it is missing, empty or of another type.',
                f"set it to a {' or '.join(k.__name__ for k in kinds)}.",
            )
        if isinstance(value, str) and '${' in value:
            raise ConfigError(
                self.key(key),
                value,
                'a study YAML has no interpolations but in overrides.',
                'write the value out.',
            )
        return value

    def refuse_others(self) -> None:
        """Raises ``ConfigError`` of a key that nobody asked for."""
        for key, value in self.content.items():
            if key not in self.known:
                raise ConfigError(
                    self.key(str(key)),
                    value,
                    'there is no such setting.',
                    f"remove it; there are {', '.join(sorted(self.known))}.",
                )
