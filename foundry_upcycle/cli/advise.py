"""The command ``advise``."""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from foundry_upcycle.cli.command import numbers
from foundry_upcycle.cli.errors import errors_in_one_line
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.files import write_whole

__all__ = ['advise']

_FORMATS = ('png', 'svg')
_FRACTIONS = 'write fractions of the pretraining FLOPs, such as 0.1,0.2,0.4.'


def advise(
    model: Annotated[
        Optional[str],
        typer.Argument(
            metavar='MODEL',
            help='The dense model: its training YAML, or a checkpoint that '
            '`inspect` reads. Or give --params and --tokens.',
        ),
    ] = None,
    params: Annotated[
        Optional[float],
        typer.Option(metavar='N', help='Parameters, without MODEL.'),
    ] = None,
    tokens: Annotated[
        Optional[float],
        typer.Option(
            metavar='N',
            help='Tokens that it was pretrained on; of a YAML by default its '
            'max_duration.',
        ),
    ] = None,
    budgets: Annotated[
        str,
        typer.Option(
            metavar='F,F...',
            help='Of the second phase, as fractions of the pretraining FLOPs.',
        ),
    ] = '0.1,0.2,0.4,0.8,1.0',
    experts: Annotated[int, typer.Option(help='Of the mixture.')] = 8,
    top_k: Annotated[
        int,
        typer.Option('--top-k', help='Experts that a token visits.'),
    ] = 2,
    served: Annotated[
        Optional[float],
        typer.Option(
            metavar='TOKENS',
            help="To be served in the model's life, read and written.",
        ),
    ] = None,
    served_a_day: Annotated[
        Optional[float],
        typer.Option(metavar='TOKENS', help='The same by day, with --days.'),
    ] = None,
    days: Annotated[
        Optional[float],
        typer.Option(metavar='N', help='That the model is served.'),
    ] = None,
    serving: Annotated[
        Optional[str],
        typer.Option(
            metavar='FILE',
            help='What serving was measured to cost, the serving.json of a '
            "report of benchmarks/inference; by default the paper's.",
        ),
    ] = None,
    serving_size: Annotated[
        Optional[str],
        typer.Option(
            metavar='NAME',
            help='The model\'s `size` in that file.',
        ),
    ] = None,
    runs: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar='STUDY.yaml',
            help='A study of yours whose finished runs the laws are fitted to '
            'as well; may be repeated. Losses are on the scale of the first.',
        ),
    ] = None,
    without_paper: Annotated[
        bool,
        typer.Option(
            '--without-paper',
            help='Fit the laws to --runs alone.',
        ),
    ] = False,
    training_hour: Annotated[
        float,
        typer.Option(
            metavar='PRICE',
            help='Of an hour of a device that trains, in any currency.',
        ),
    ] = 2.0,
    serving_hour: Annotated[
        float,
        typer.Option(
            metavar='PRICE',
            help='Of an hour of the machine that serves.',
        ),
    ] = 2.0,
    peak_flops: Annotated[
        float,
        typer.Option(help='FLOPs a second of a device that trains.'),
    ] = 989e12,
    mfu: Annotated[
        float,
        typer.Option(help='Share of them that training reaches.'),
    ] = 0.4,
    as_json: Annotated[
        bool,
        typer.Option('--json', help='Print JSON instead of text.'),
    ] = False,
    figure: Annotated[
        Optional[str],
        typer.Option(
            metavar='FILE',
            help='PNG or SVG to write: losses against the budget.',
        ),
    ] = None,
) -> None:
    """Predicts, before any run, whether to upcycle or to continue pretraining.

    Final losses of both at equal FLOPs, by laws fitted to the paper's runs and
    to yours; from which budget on upcycling is ahead, what its mixture costs
    more to serve, and up to how many served tokens it pays.

    Example: foundry-upcycle advise yamls/pretrain_430m.yaml --served 1e12
    --figure advice.png
    """
    with errors_in_one_line():
        from foundry_upcycle.cli import advise_inputs as inputs
        from foundry_upcycle.planning.advice import advise as module
        from foundry_upcycle.planning.advice.costs import Prices
        from foundry_upcycle.planning.advice.model import Mixture
        prices = Prices(training_hour, serving_hour, peak_flops, mfu)
        file_format = None if figure is None else _format(figure)
        dense = inputs.read_model(
            model,
            params,
            tokens,
            Mixture(experts, top_k),
        )
        speed = inputs.read_speed(serving, serving_size, dense)
        arms, study = inputs.fit(runs or [], without_paper, dense.mixture)
        advice = module.advise(
            dense,
            arms,
            study,
            numbers('--budgets', budgets, float, _FRACTIONS),
            speed,
            prices,
            inputs.read_served(served, served_a_day, days),
        )
        _show(advice, as_json)
        if figure is not None:
            from foundry_upcycle.figures import render
            from foundry_upcycle.planning.advice.figure import draw_advice
            drawn = render(draw_advice(advice), str(file_format))
            write_whole(Path(figure), drawn)
            # Nothing but JSON goes where that does.
            typer.echo(f'wrote {figure}', err=as_json)


def _show(advice: Any, as_json: bool) -> None:
    from foundry_upcycle.planning.advice.as_json import advice_json
    from foundry_upcycle.planning.advice.text import advice_lines
    for each in advice.outside:
        warnings.warn(
            f'outside the data: {each}',
            UpcyclingWarning,
            stacklevel=2,
        )
    if as_json:
        typer.echo(json.dumps(advice_json(advice), indent=2, allow_nan=False))
        return
    for line in advice_lines(advice):
        typer.echo(line)


def _format(figure: str) -> str:
    found = Path(figure).suffix.lower().removeprefix('.')
    if found not in _FORMATS:
        raise ConfigError(
            '--figure',
            figure,
            'its ending is none of a figure.',
            f"name a file in .{' or .'.join(_FORMATS)}.",
        )
    return found
