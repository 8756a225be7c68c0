"""Small files that are there whole or not at all."""

from pathlib import Path

__all__ = ['write_whole']


def write_whole(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, over what is there, in one step.

    Folders that are not there are made. Whoever reads ``path`` meanwhile, or
    after a crash, finds what was there before or all of ``text``.

    Raises:
        OSError: It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.unfinished')
    unfinished.write_text(text)
    unfinished.replace(path)
