"""Commands of the Eval Gauntlet."""

from typing import Annotated, Optional

import typer

from foundry_upcycle.cli.command import App
from foundry_upcycle.cli.errors import errors_in_one_line
from foundry_upcycle.gauntlet.sources import DEFAULT_SOURCE

__all__ = ['app']

app = App(
    help='Gets the data of the Eval Gauntlet, and scores results on it.',
    no_args_is_help=True,
)


@app.command()
def prepare(
    to: Annotated[
        str,
        typer.Option('--to', metavar='FOLDER', help='Folder to make or mend.'),
    ],
    source: Annotated[
        str,
        typer.Option(
            '--from',
            metavar='SOURCE',
            help='A clone of LLM Foundry, a folder with the files, or a URL '
            'of either.',
        ),
    ] = DEFAULT_SOURCE,
    allow_modified: Annotated[
        bool,
        typer.Option(
            '--allow-modified',
            help='Also take files that are not those released, as long as '
            'their tasks can read them.',
        ),
    ] = False,
) -> None:
    """Gets and checks the Eval Gauntlet's task files; writes YAMLs for them.

    Tasks whose files are missing, damaged or not those released are left out
    of the YAMLs. Ends with 1 where a file is damaged.

    Example: foundry-upcycle gauntlet prepare --from ~/llm-foundry
    --to data/eval_gauntlet
    """
    with errors_in_one_line():
        from foundry_upcycle.gauntlet import prepare as module
        from foundry_upcycle.gauntlet.sources import open_source
        states = []
        for file in module.prepare(open_source(source), to, allow_modified):
            states.append(file.state)
            n_records = '' if file.n_records is None else f'{file.n_records:,}'
            left_out = '' if file.is_used else 'left out'
            typer.echo(
                f'{file.path:65} {file.state:9} {n_records:>7} '
                f'{left_out:9} {file.problem}'.rstrip(),
            )
        counts = [f'{states.count(s)} {s}' for s in dict.fromkeys(states)]
        typer.echo(f"{', '.join(counts)} of {len(states)} files")
        for name in module.GAUNTLETS:
            typer.echo(f'wrote {to}/{name}.yaml, {to}/{name}_tasks.yaml')
    if 'damaged' in states:
        raise typer.Exit(1)


@app.command()
def score(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar='[LABEL=]SOURCE...',
            help='For each model, a file or folder of results that the '
            "callback icl_results wrote, a JSON of Foundry's metric keys, or "
            'mlflow:<tracking URI>#<run>.',
        ),
    ],
    gauntlets: Annotated[
        Optional[list[str]],
        typer.Option(
            '--gauntlet',
            help='paper, v0.3 or a YAML; may be repeated. By default paper.',
        ),
    ] = None,
    baseline: Annotated[
        Optional[str],
        typer.Option(
            metavar='LABEL',
            help='The model to compare the others with.',
        ),
    ] = None,
    out: Annotated[
        Optional[str],
        typer.Option(
            metavar='FOLDER',
            help='Where to write report.md, scores.json and scores.png.',
        ),
    ] = None,
    n_examples: Annotated[
        Optional[str],
        typer.Option(
            metavar='FILE',
            help='JSON of task labels to numbers of examples, for results '
            'that lack them: no intervals without.',
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            '--overwrite',
            help='Replace these files in a folder that is not empty.',
        ),
    ] = False,
) -> None:
    """Scores results of in-context tasks, and says which models differ.

    Example: foundry-upcycle gauntlet score dense=results/dense.json
    upcycled=results/moe.json --gauntlet paper --gauntlet v0.3
    --baseline dense --out scores
    """
    with errors_in_one_line():
        from foundry_upcycle.gauntlet.results import read_n_examples
        from foundry_upcycle.gauntlet.run import run
        report = run(
            results,
            gauntlets or ['paper'],
            baseline,
            out,
            read_n_examples(n_examples) if n_examples else None,
            overwrite,
        )
        typer.echo(report)
        if out is not None:
            typer.echo(f'wrote {out}: report.md, scores.json, scores.png')
