"""Where files of tasks come from: a folder, or a URL."""

import shutil
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from foundry_upcycle.errors import ConfigError

__all__ = ['DEFAULT_SOURCE', 'Source', 'open_source']

DEFAULT_SOURCE = 'https://github.com/mosaicml/llm-foundry'
# The commit that eval_gauntlet/data_digests.txt is about.
_COMMIT = '8c8dd48f72168c5d51e2f7b151595892a8fba43d'
_IN_CLONE = 'scripts/eval/local_data'
_CHUNK_BYTES = 2**20
_TIMEOUT_SECONDS = 30


class Source(Protocol):
    """Gives files by their path below the data's folder."""

    def fetch(self, path: str, target: Path) -> bool:
        """Writes a file to ``target``, or goes on with what is there of it.

        Returns:
            Whether there is such a file.

        Raises:
            ConfigError: The source can't be reached.
        """
        ...


def open_source(source: str) -> Source:
    """Opens the source that ``--from`` names.

    Args:
        source: A folder (a clone of LLM Foundry, or the folder of the data
            itself), or a URL: of a repository on GitHub, or of a folder that a
            web server gives the files of.

    Raises:
        ConfigError: There is no such folder, or no such kind of URL.
    """
    url = urlsplit(source)
    if url.scheme in ('http', 'https'):
        return _Web(_raw_url(source))
    if url.scheme and not Path(source).exists():
        raise ConfigError(
            '--from',
            source,
            f'{url.scheme} is no kind of source.',
            'give a folder, or a URL that starts with https://.',
        )
    root = Path(source)
    if not root.is_dir():
        raise ConfigError(
            '--from',
            source,
            'there is no such folder.',
            'give a clone of LLM Foundry, its folder '
            f'{_IN_CLONE}, or a URL.',
        )
    in_clone = root / _IN_CLONE
    return _Folder(in_clone if in_clone.is_dir() else root)


def _raw_url(source: str) -> str:
    """Of a repository on GitHub, where its files can be had one by one."""
    url = urlsplit(source)
    parts = [part for part in url.path.split('/') if part]
    if url.netloc.removeprefix('www.') != 'github.com':
        return source.rstrip('/')
    if len(parts) != 2:
        raise ConfigError(
            '--from',
            source,
            'it is a page, not a repository.',
            f'give {DEFAULT_SOURCE}, or a URL that gives files.',
        )
    owner, name = parts
    name = name.removesuffix('.git')
    return (
        f'https://raw.githubusercontent.com/{owner}/{name}/{_COMMIT}/{_IN_CLONE}'
    )


class _Folder:

    def __init__(self, root: Path):
        self._root = root

    def fetch(self, path: str, target: Path) -> bool:
        file = self._root / path
        if not file.is_file():
            return False
        shutil.copyfile(file, target)
        return True


class _Web:

    def __init__(self, root: str):
        self._root = root

    def fetch(self, path: str, target: Path) -> bool:
        import requests

        url = f'{self._root}/{quote(path)}'
        done = target.stat().st_size if target.exists() else 0
        # Parts of what is compressed on the way could not be put together.
        headers = {'Accept-Encoding': 'identity'}
        if done:
            headers['Range'] = f'bytes={done}-'
        try:
            with requests.get(
                    url,
                    headers=headers,
                    stream=True,
                    timeout=_TIMEOUT_SECONDS,
            ) as response:
                if response.status_code == requests.codes.not_found:
                    return False
                if response.status_code == requests.codes.range_not_satisfiable:
                    return True  # It had come whole.
                response.raise_for_status()
                goes_on = response.status_code == requests.codes.partial_content
                with target.open('ab' if goes_on else 'wb') as file:
                    for chunk in response.iter_content(_CHUNK_BYTES):
                        file.write(chunk)
        except requests.RequestException as error:
            raise ConfigError(
                '--from',
                url,
                f'it can\'t be had ({error}).',
                'run it again to go on where it stopped; without a network, '
                'give a clone of LLM Foundry or a folder with the files.',
            ) from error
        return True
