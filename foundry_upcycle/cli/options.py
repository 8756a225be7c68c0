"""Options that commands on checkpoints share."""

from typing import Annotated, Any, Literal, Optional

import typer

from foundry_upcycle.config import FileFormat

__all__ = [
    'AllowOverflow',
    'DTypeName',
    'Format',
    'NoTokenizer',
    'Overwrite',
    'Tokenizer',
    'dtype_of',
]

DTypeName = Literal['float32', 'bfloat16', 'float16']

Overwrite = Annotated[
    bool,
    typer.Option('--overwrite', help='Replace OUT if it exists.'),
]
AllowOverflow = Annotated[
    bool,
    typer.Option(
        '--allow-overflow',
        help='Let weights that are too large for --dtype become infinite.',
    ),
]
Format = Annotated[
    FileFormat,
    typer.Option(
        '--format',
        help='pt and dcp (sharded folder) are for load_path, safetensors '
        'is a Hugging Face folder.',
    ),
]
Tokenizer = Annotated[
    Optional[str],
    typer.Option(
        metavar='FOLDER',
        help='Hugging Face folder to take tokenizer and generation config '
        'from instead.',
    ),
]
NoTokenizer = Annotated[
    bool,
    typer.Option('--no-tokenizer', help='Write no tokenizer.'),
]


def dtype_of(name: Optional[str]) -> Any:
    """The dtype of an option's name."""
    import torch
    return None if name is None else getattr(torch, name)
