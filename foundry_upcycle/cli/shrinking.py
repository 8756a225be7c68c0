"""Commands that make a mixture of experts cheaper to serve."""

from typing import Annotated, Optional

import typer

from foundry_upcycle.cli.command import App
from foundry_upcycle.cli.errors import errors_in_one_line
from foundry_upcycle.cli.options import (
    AllowOverflow,
    DTypeName,
    Format,
    NoTokenizer,
    Overwrite,
    Tokenizer,
    dtype_of,
)
from foundry_upcycle.config import DenseKind, ExpertCriterion, ShrinkingConfig
from foundry_upcycle.errors import ConfigError

__all__ = ['app']

app = App()

_Mixture = Annotated[
    str,
    typer.Argument(
        help='Mixture of experts: Composer .pt file, sharded folder or '
        'Hugging Face folder.',
    ),
]

_TEXT = 'Text file, folder of text files, or MDS folder of tokens.'
_Tokens = Annotated[
    int,
    typer.Option(min=1, help='How many tokens of the texts, at most.'),
]
_MAX_TOKENS = 1 << 17


@app.command()
def calibrate(
    moe: _Mixture,
    text: Annotated[str, typer.Argument(help=_TEXT)],
    out: Annotated[str, typer.Argument(help='File to make, JSON.')],
    tokens: _Tokens = _MAX_TOKENS,
    tokenizer: Tokenizer = None,
    overwrite: Overwrite = False,
) -> None:
    """Runs a mixture on texts, and counts what its experts do, for shrink.

    Example: foundry-upcycle calibrate moe.pt texts/ calibration.json
    """
    with errors_in_one_line():
        from foundry_upcycle.conversion import calibrate as module
        made = module.calibrate(moe, text, out, tokens, tokenizer, overwrite)
        typer.echo(f'wrote {out}: {made.tokens:,} tokens')


@app.command()
def shrink(
    moe: _Mixture,
    out: Annotated[str, typer.Argument(help='File or folder to make.')],
    experts: Annotated[
        Optional[int],
        typer.Option(help='Number of experts that are left in each layer.'),
    ] = None,
    dense: Annotated[
        Optional[DenseKind],
        typer.Option(
            help='A dense model: of the mean of the experts, their mean '
            'weighted by load, or experts side by side.',
        ),
    ] = None,
    keep: Annotated[
        Optional[int],
        typer.Option(help='Number of experts side by side; all by default.'),
    ] = None,
    by: Annotated[
        Optional[ExpertCriterion],
        typer.Option(
            help='Which are kept: those of most load, of largest '
            'router-weighted output norm, or means of similar ones.',
        ),
    ] = None,
    calibration: Annotated[
        Optional[str],
        typer.Option(metavar='FILE', help='What calibrate wrote for MOE.'),
    ] = None,
    text: Annotated[
        Optional[str],
        typer.Option(
            '--calibrate',
            metavar='TEXT',
            help=
            f'Calibrate on this instead, into OUT.calibration.json. {_TEXT}',
        ),
    ] = None,
    tokens: _Tokens = _MAX_TOKENS,
    file_format: Format = 'pt',
    dtype: Annotated[
        Optional[DTypeName],
        typer.Option(help="Of all weights; the mixture's by default."),
    ] = None,
    allow_overflow: AllowOverflow = False,
    tokenizer: Tokenizer = None,
    no_tokenizer: NoTokenizer = False,
    overwrite: Overwrite = False,
) -> None:
    """Makes a mixture of fewer experts, or a dense model, of a mixture.

    Example: foundry-upcycle shrink moe.pt small.pt --experts 4 --by norm
    --calibration calibration.json
    """
    with errors_in_one_line():
        if text is not None and calibration is not None:
            raise ConfigError(
                '--calibrate',
                text,
                '--calibration names what a calibration has written.',
                'leave one of them out.',
            )
        config = ShrinkingConfig(
            experts,
            dense,
            keep,
            by,
            has_calibration=text is not None or calibration is not None,
        )
        if text is not None:
            calibration = f'{out}.calibration.json'
            calibrate(moe, text, calibration, tokens, tokenizer, overwrite)
        from foundry_upcycle.conversion import shrink as module
        made = module.shrink(
            moe,
            out,
            config,
            calibration,
            file_format,
            dtype_of(dtype),
            overwrite,
            allow_overflow,
            tokenizer,
            not no_tokenizer,
        )
        typer.echo(f'wrote {out}: {made}')
