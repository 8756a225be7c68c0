"""The command ``expert-shares``."""

from typing import Annotated

import typer

from foundry_upcycle.cli.errors import errors_in_one_line

__all__ = ['expert_shares']


def expert_shares(
    run: Annotated[
        str,
        typer.Argument(
            help='A training with the callback router_monitor: '
            'mlflow:<tracking URI>#<run>, the folder of a run in an MLflow '
            'store, or a JSON of metric keys to values.',
        ),
    ],
    out: Annotated[
        str,
        typer.Option('--out', metavar='FILE', help='JSON to make.'),
    ],
    last: Annotated[
        int,
        typer.Option(
            min=1,
            help='Over how many logs, of the last, to take the mean. Each is '
            'over all tokens since the one before.',
        ),
    ] = 1,
    overwrite: Annotated[
        bool,
        typer.Option('--overwrite', help='Replace FILE if it exists.'),
    ] = False,
) -> None:
    """Writes how a trained model's routers spread tokens over experts.

    The serving harness then routes dummy weights alike: routing: {kind:
    recorded, file: FILE}.

    Example: foundry-upcycle expert-shares mlflow:runs/mlruns#upcycle
    --out shares.json
    """
    with errors_in_one_line():
        from foundry_upcycle.callbacks import expert_shares as module
        shares = module.read_expert_shares(run, last)
        module.write_expert_shares(shares, out, overwrite)
        typer.echo(
            f'wrote {out}: {len(shares.layers)} layers of '
            f'{len(shares.shares[0])} experts',
        )
