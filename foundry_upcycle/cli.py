"""The command ``foundry-upcycle``."""

import os
import signal
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Iterator, Literal, Optional

import typer

from foundry_upcycle.config import FileFormat, UpcyclingConfig
from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    TaskDataError,
    UpcyclingWarning,
)
from foundry_upcycle.gauntlet.sources import DEFAULT_SOURCE

# Commands import what they need when they run: torch and LLM Foundry take
# seconds, and --help should not.

__all__ = ['app']

app = typer.Typer(
    help='Upcycles dense checkpoints into mixtures of experts, carries them '
    'from and to Hugging Face, says what training costs, and scores how they '
    'answer.',
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

gauntlet = typer.Typer(
    help='Gets the data of the Eval Gauntlet, and scores results on it.',
    no_args_is_help=True,
)
app.add_typer(gauntlet, name='gauntlet')

study = typer.Typer(
    help='Compares continued pretraining with upcycling at equal FLOPs.',
    no_args_is_help=True,
)
app.add_typer(study, name='study')

_DTypeName = Literal['float32', 'bfloat16', 'float16']

_StudyYaml = Annotated[
    str,
    typer.Argument(metavar='STUDY.yaml', help='Such as yamls/study_430m.yaml.'),
]
_Overwrite = Annotated[
    bool,
    typer.Option('--overwrite', help='Replace OUT if it exists.'),
]
_Like = Annotated[
    Optional[str],
    typer.Option(
        metavar='FOLDER',
        help='Hugging Face folder to take tokenizer, generation config and a '
        "dense model's architecture from: the imported one, or `hf` in what "
        'import-hf wrote.',
    ),
]


@contextmanager
def _errors_in_one_line() -> Iterator[None]:

    def show(message: Any, *_: Any, **__: Any) -> None:
        typer.echo(f'warning: {message}', err=True)

    # transformers complains of MPT's own rope settings.
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    with warnings.catch_warnings():
        # Those of the host stack are not for this user.
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', UpcyclingWarning)
        warnings.showwarning = show
        try:
            yield
        except (CheckpointError, ConfigError, TaskDataError) as error:
            typer.echo(f'error: {error}', err=True)
            raise typer.Exit(1) from error


def _dtype(name: Optional[str]) -> Any:
    import torch
    return None if name is None else getattr(torch, name)


def _layers(text: Optional[str]) -> Optional[list[int]]:
    if text is None:
        return None
    try:
        return [int(layer) for layer in text.split(',')]
    except ValueError as error:
        raise ConfigError(
            '--layers',
            text,
            'it is no list of whole numbers.',
            'write layers, counted from 0, with commas: 1,3,5.',
        ) from error


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help='Any checkpoint.')],
) -> None:
    """Says what a checkpoint is: format, model, sizes, where it comes from.

    Example: foundry-upcycle inspect runs/pretrain/latest-rank0.pt
    """
    with _errors_in_one_line():
        from foundry_upcycle.conversion.inspect import describe
        for label, fact in describe(path):
            typer.echo(f'{label:11} {fact}')


@app.command()
def import_hf(
    source: Annotated[
        str,
        typer.Argument(
            help='Hugging Face folder with safetensors (Llama, Mistral, '
            'Qwen2, Qwen3 or Gemma), or a GGUF file (Llama or Qwen2).',
        ),
    ],
    out: Annotated[
        str,
        typer
        .Argument(help='Folder to make: checkpoint.pt, model.yaml and hf.', ),
    ],
    dtype: Annotated[
        _DTypeName,
        typer.Option(help='Of all weights.'),
    ] = 'float32',
    overwrite: _Overwrite = False,
) -> None:
    """Turns a Hugging Face model into a Composer checkpoint of the same MPT.

    Example: foundry-upcycle import-hf Llama-3-8B runs/llama3
    """
    with _errors_in_one_line():
        from foundry_upcycle.conversion import import_hf as module
        module.import_hf(source, out, _dtype(dtype), overwrite)
        typer.echo(f'wrote {out}: checkpoint.pt, model.yaml, hf/')


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help='Dense checkpoint: Composer .pt file, sharded folder, or '
            'Hugging Face folder.',
        ),
    ],
    out: Annotated[str, typer.Argument(help='File or folder to make.')],
    experts: Annotated[
        int,
        typer.Option(help='Number of experts of each layer.'),
    ] = 8,
    top_k: Annotated[
        int,
        typer.Option(help='Experts that a token goes to.'),
    ] = 2,
    layers: Annotated[
        Optional[str],
        typer.Option(
            metavar='LAYER,LAYER...',
            help='Layers, from 0, that become mixtures of experts: 1,3,5; '
            'all by default.',
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help='How experts are made.'),
    ] = 'copy',
    router_init_std: Annotated[
        float,
        typer.Option(help="Standard deviation of routers' weights."),
    ] = UpcyclingConfig.router_init_std,
    seed: Annotated[
        int,
        typer.Option(help='Of whatever is drawn.'),
    ] = UpcyclingConfig.seed,
    file_format: Annotated[
        FileFormat,
        typer.Option(
            '--format',
            help='pt and dcp (sharded folder) are for load_path, safetensors '
            'is a Hugging Face folder.',
        ),
    ] = 'pt',
    dtype: Annotated[
        Optional[_DTypeName],
        typer.Option(help="Of all weights; the source's by default."),
    ] = None,
    like: _Like = None,
    overwrite: _Overwrite = False,
) -> None:
    """Turns a dense checkpoint into a mixture of experts.

    Example: foundry-upcycle convert runs/llama3/checkpoint.pt moe.pt
    --experts 8 --top-k 2
    """
    with _errors_in_one_line():
        from foundry_upcycle.conversion import convert as module
        config = UpcyclingConfig(
            source,
            recipe={'name': recipe},
            router_init_std=router_init_std,
            seed=seed,
        )
        module.convert(
            config,
            out,
            file_format,
            moe_num_experts=experts,
            moe_top_k=top_k,
            dtype=_dtype(dtype),
            like=like,
            overwrite=overwrite,
            moe_layers=_layers(layers),
        )
        where = '' if layers is None else f', in layers {layers}'
        typer.echo(f'wrote {out}: {experts} experts, top-{top_k}{where}')


@app.command()
def export_hf(
    source: Annotated[
        str,
        typer.Argument(
            help='Dense or upcycled MPT: Composer .pt file or sharded folder.',
        ),
    ],
    out: Annotated[str, typer.Argument(help='Folder to make.')],
    like: _Like = None,
    dtype: Annotated[
        Optional[_DTypeName],
        typer.Option(help="Of all weights; the checkpoint's by default."),
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Makes a Hugging Face folder that transformers and vLLM load.

    A dense model becomes what it came from, a mixture Mixtral (Qwen3-MoE
    where queries and keys are normalised).

    Example: foundry-upcycle export-hf runs/upcycle/latest-rank0.pt served
    --like runs/llama3/hf --dtype bfloat16
    """
    with _errors_in_one_line():
        from foundry_upcycle.conversion import export_hf as module
        module.export_hf(source, out, like, _dtype(dtype), overwrite)
        typer.echo(f'wrote {out}')


@app.command()
def verify(
    dense: Annotated[str, typer.Argument(help='The dense checkpoint.')],
    mixture: Annotated[
        str,
        typer.Argument(help='The mixture of experts made of it.'),
    ],
    tokens: Annotated[
        int,
        typer.Option(min=1, help='Length of the sample, of random tokens.'),
    ] = 256,
    tolerance: Annotated[
        float,
        typer.Option(help='Largest difference of logits that passes.'),
    ] = 1e-3,
) -> None:
    """Proves that a mixture is the dense model, or says where it differs.

    Compares tensor by tensor, then logits on a sample. Ends with 1 where they
    differ.

    Example: foundry-upcycle verify runs/llama3/checkpoint.pt moe.pt
    """
    with _errors_in_one_line():
        from foundry_upcycle.conversion import verify as module
        result = module.verify(dense, mixture, tokens, tolerance=tolerance)
        for line in result.lines():
            typer.echo(line)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def flops(
    yamls: Annotated[
        list[str],
        typer.Argument(
            metavar='YAML...',
            help='Training YAMLs of LLM Foundry, of one MPT model each.',
        ),
    ],
    budget: Annotated[
        Optional[float],
        typer.Option(
            metavar='FLOPS',
            help='Also say how many whole steps of each these buy.',
        ),
    ] = None,
) -> None:
    """Says what training YAMLs cost: parameters, FLOPs, tokens, memory.

    FLOPs are at each YAML's max_seq_len; its run ends with the step that
    reaches max_duration, and the FLOPs of --budget buy the whole number of
    steps nearest to them. Several YAMLs are compared with the first. Memory
    is that of weights, gradients and Lion's momentum, each in float32, over
    all ranks: FSDP divides it by their number. Left out are activations and
    copies in lower precision.

    Example: foundry-upcycle flops yamls/cpt_430m.yaml yamls/upcycle_430m.yaml
    --budget 5e19
    """
    with _errors_in_one_line():
        from foundry_upcycle.planning.budget import read_training_budget
        from foundry_upcycle.planning.table import budget_lines
        budgets = {path: read_training_budget(path) for path in yamls}
        for line in budget_lines(_by_stem(budgets), budget):
            typer.echo(line)


def _by_stem(by_path: dict[str, Any]) -> dict[str, Any]:
    """The same by the files' names, where these tell them apart."""
    by_stem = {Path(path).stem: value for path, value in by_path.items()}
    return by_stem if len(by_stem) == len(by_path) else by_path


@gauntlet.command()
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
    with _errors_in_one_line():
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


@gauntlet.command()
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
    with _errors_in_one_line():
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


@study.command()
def plan(path: _StudyYaml) -> None:
    """Shows what a study runs and what it costs; writes a YAML for each run.

    Example: foundry-upcycle study plan yamls/study_430m.yaml
    """
    with _errors_in_one_line():
        from foundry_upcycle.study.overview import plan_lines
        from foundry_upcycle.study.run_yamls import write_yamls
        grid = _grid(path)
        write_yamls(grid)
        for line in plan_lines(grid):
            typer.echo(line)
        typer.echo(f'wrote {grid.study.folder}/yamls')


@study.command('run')
def run_study(
    path: _StudyYaml,
    dry_run: Annotated[
        bool,
        typer.Option(
            '--dry-run',
            help='Print the commands that are left instead, for a cluster.',
        ),
    ] = False,
) -> None:
    """Trains and evaluates what is not yet done; run again, it goes on.

    Each run is a process of its own, `composer train.py` or `composer
    eval.py`, in this folder. Ends with 1 if any failed.

    Example: foundry-upcycle study run yamls/study_430m.yaml
    """
    with _errors_in_one_line():
        from foundry_upcycle.study import runner
        grid = _grid(path)
        if dry_run:
            for line in runner.dry_run(grid):
                typer.echo(line)
            return
        # As Ctrl-C does: leave through the `finally` that ends processes.
        signal.signal(
            signal.SIGTERM,
            lambda *_: sys.exit(128 + signal.SIGTERM),
        )
        is_complete = runner.StudyRunner(grid, typer.echo).run()
    if not is_complete:
        raise typer.Exit(1)


@study.command()
def status(path: _StudyYaml) -> None:
    """Says which runs of a study are done, and which are left.

    Example: foundry-upcycle study status yamls/study_430m.yaml
    """
    with _errors_in_one_line():
        from foundry_upcycle.study.overview import status_lines
        for line in status_lines(_grid(path)):
            typer.echo(line)


@study.command()
def report(
    path: _StudyYaml,
    out: Annotated[
        Optional[str],
        typer.Option(
            metavar='FOLDER',
            help="Where to write; by default `report` in the study's folder.",
        ),
    ] = None,
    serving: Annotated[
        Optional[str],
        typer.Option(
            metavar='FILE',
            help='JSON of serving results, to plot quality against cost.',
        ),
    ] = None,
) -> None:
    """Writes what a study has found: report.md, report.html and figures.

    Example: foundry-upcycle study report yamls/study_430m.yaml
    """
    with _errors_in_one_line():
        from foundry_upcycle.study.measured import read_study_results
        from foundry_upcycle.study.report import write_report
        from foundry_upcycle.study.run_yamls import require_unchanged
        grid = _grid(path)
        require_unchanged(grid)
        written = write_report(
            read_study_results(grid),
            grid.study.folder / 'report' if out is None else Path(out),
            None if serving is None else Path(serving),
        )
        typer.echo(f'wrote {written}')


def _grid(path: str) -> Any:
    from foundry_upcycle.study.config import read_study
    from foundry_upcycle.study.grid import plan_grid
    return plan_grid(read_study(path))
