"""Makes the data of the quickstart from text that every machine has.

``python -m foundry_upcycle.data.quickstart FOLDER [--size tiny]`` writes

- ``tokenizer/``: trained on the text;
- ``data/PART/{train,held_out}``: streams of its tokens;
- ``tasks/``: in-context tasks cut from the held-out text, with the YAMLs that
  ``icl_tasks`` and ``eval_gauntlet`` name.

Done once, it does nothing.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence

import yaml

from foundry_upcycle.data.corpus import (
    PARTS,
    PRETRAINING_PART,
    SECOND_PHASE,
    Documents,
    collect,
)
from foundry_upcycle.data.tasks import write_tasks
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.files import write_whole
from foundry_upcycle.gauntlet.gauntlets import FOLDER

__all__ = ['SIZES', 'Size', 'main', 'write_gauntlet', 'write_quickstart']

_VOCAB_SIZE = 512
# Of each part: more changes few of so few tokens.
_TOKENIZER_CHARS = 1_000_000
_SEED = 17
# What says that the data are there, and which.
_DONE = 'data.json'


@dataclass(frozen=True)
class Size:
    """How much data.

    Args:
        seq_len: Tokens of a sequence.
        pretrain_chars: Characters of text for the dense phase.
        part_chars: Characters of each part of the second phase.
        n_held_out: Held-out sequences of each part to measure a loss on.
        n_examples: Examples of each in-context task.
    """

    seq_len: int
    pretrain_chars: int
    part_chars: int
    n_held_out: int
    n_examples: int


SIZES = {
    'full':
    Size(
        seq_len=128,
        pretrain_chars=12_000_000,
        part_chars=4_000_000,
        n_held_out=512,
        n_examples=250,
    ),
    'large':
    Size(
        seq_len=128,
        pretrain_chars=60_000_000,
        part_chars=20_000_000,
        n_held_out=1024,
        n_examples=1000,
    ),
    'tiny':
    Size(
        seq_len=128,
        pretrain_chars=300_000,
        part_chars=400_000,
        n_held_out=8,
        n_examples=8,
    ),
}


def write_quickstart(folder: Path, size: Size) -> bool:
    """Makes the data, if they are not there.

    Args:
        folder: Where to.
        size: How much.

    Returns:
        Whether they were made.

    Raises:
        CheckpointError: The folder can't be written, or another process does.
        ConfigError: Other data are there.
    """
    done = folder / _DONE
    settings = asdict(size)
    if done.exists():
        found = json.loads(done.read_text())
        if found != settings:
            raise ConfigError(
                'folder',
                str(folder),
                f'it has data of {found}, not of {settings}.',
                'name another folder, or remove it.',
            )
        return False
    print('collects text from the installed packages', flush=True)
    documents = collect({
        PRETRAINING_PART: size.pretrain_chars,
        **dict.fromkeys(SECOND_PHASE, size.part_chars),
    })
    _write_streams(folder, documents, size)
    write_gauntlet(folder / 'tasks', documents, size.n_examples)
    write_whole(done, json.dumps(settings))
    return True


def _write_streams(
    folder: Path,
    documents: dict[str, Documents],
    size: Size,
) -> None:
    # Imported here: where the data are there, nobody need wait.
    from foundry_upcycle.data.streams import write_splits
    from foundry_upcycle.data.tokenizer import train_tokenizer

    print('trains the tokenizer', flush=True)
    tokenizer = train_tokenizer(
        (
            text for part in PARTS
            for text in _beginning(documents[part].train, _TOKENIZER_CHARS)
        ),
        _VOCAB_SIZE,
        folder / 'tokenizer',
    )
    for part in PARTS:
        n_samples = write_splits(
            documents[part],
            tokenizer,
            size.seq_len,
            folder / 'data' / part,
            size.n_held_out,
        )
        tokens = n_samples * size.seq_len
        print(f'{part}: {tokens:,} training tokens', flush=True)


def _beginning(texts: Sequence[str], max_chars: int) -> Iterator[str]:
    n_chars = 0
    for text in texts:
        yield text
        n_chars += len(text)
        if n_chars >= max_chars:
            return


def write_gauntlet(
    folder: Path,
    documents: dict[str, Documents],
    n_examples: int,
) -> None:
    """Writes the quickstart's tasks, and the YAMLs that name them.

    Args:
        folder: Where to.
        documents: Of all parts of the corpus.
        n_examples: Of each task.
    """
    write_tasks(
        {
            part: each.held_out
            for part, each in documents.items()
        },
        folder,
        n_examples=n_examples,
        seed=_SEED,
    )
    tasks: Any = yaml.safe_load((FOLDER / 'quickstart_tasks.yaml').read_text())
    for task in tasks['icl_tasks']:
        # Foundry reads the YAML by itself, without a run's variables.
        task['dataset_uri'] = str(folder.resolve() / task['dataset_uri'])
    (folder / 'quickstart_tasks.yaml').write_text(
        yaml.safe_dump(tasks, sort_keys=False)
    )
    gauntlet = (FOLDER / 'quickstart.yaml').read_text()
    (folder / 'quickstart.yaml').write_text(gauntlet)


def main(args: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m foundry_upcycle.data.quickstart',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('--size', choices=sorted(SIZES), default='full')
    options = parser.parse_args(args)
    try:
        made = write_quickstart(options.folder, SIZES[options.size])
    except (CheckpointError, ConfigError) as error:
        sys.exit(f'error: {error}')
    done = 'wrote' if made else 'was there before:'
    print(f'{done} {options.folder}: tokenizer, data, tasks')


if __name__ == '__main__':
    main()
