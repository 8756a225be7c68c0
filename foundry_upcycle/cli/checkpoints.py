"""Commands on checkpoints."""

from typing import Annotated, Optional

import typer

from foundry_upcycle.cli.command import App, numbers
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
from foundry_upcycle.config import UpcyclingConfig

__all__ = ['app']

app = App()

_Like = Annotated[
    Optional[str],
    typer.Option(
        metavar='FOLDER',
        help='Hugging Face folder to take tokenizer, generation config and a '
        "dense model's architecture from: the imported one, or what import-hf "
        "wrote. By default, the checkpoint's own tokenizer.",
    ),
]


def _layers(text: Optional[str]) -> Optional[list[int]]:
    if text is None:
        return None
    fix = 'write layers, counted from 0, with commas: 1,3,5.'
    return numbers('--layers', text, int, fix)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help='Any checkpoint.')],
) -> None:
    """Says what a checkpoint is: format, model, sizes, where it comes from.

    Example: foundry-upcycle inspect runs/pretrain/latest-rank0.pt
    """
    with errors_in_one_line():
        from foundry_upcycle.conversion.inspect import describe
        for label, fact in describe(path):
            typer.echo(f'{label:11} {fact}')


@app.command()
def import_hf(
    source: Annotated[
        str,
        typer.Argument(
            help='Hugging Face folder with safetensors (Llama, Mistral, '
            'Qwen2, Qwen3, Phi-3, Granite, SmolLM3, Gemma or MPT), or a GGUF '
            'file (Llama, Qwen2 or Qwen3).',
        ),
    ],
    out: Annotated[
        str,
        typer
        .Argument(help='Folder to make: checkpoint.pt, model.yaml and hf.', ),
    ],
    dtype: Annotated[
        DTypeName,
        typer.Option(help='Of all weights.'),
    ] = 'float32',
    allow_overflow: AllowOverflow = False,
    max_seq_len: Annotated[
        Optional[int],
        typer
        .Option(help="Of model.yaml; by default the model's, at most 4096.", ),
    ] = None,
    tokenizer: Tokenizer = None,
    no_tokenizer: NoTokenizer = False,
    overwrite: Overwrite = False,
) -> None:
    """Turns a Hugging Face model into a Composer checkpoint of the same MPT.

    Example: foundry-upcycle import-hf Llama-3-8B runs/llama3
    """
    with errors_in_one_line():
        from foundry_upcycle.conversion import import_hf as module
        length, longest = module.import_hf(
            source,
            out,
            dtype_of(dtype),
            overwrite,
            allow_overflow,
            tokenizer,
            not no_tokenizer,
            max_seq_len,
        )
        typer.echo(f'wrote {out}: checkpoint.pt, model.yaml, hf/')
        typer.echo(
            f'max_seq_len in model.yaml: {length}; the model was made for up '
            f'to {longest} (--max-seq-len)',
        )


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help='Dense checkpoint: Composer .pt file, sharded folder, '
            'Hugging Face folder or GGUF file.',
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
    file_format: Format = 'pt',
    dtype: Annotated[
        Optional[DTypeName],
        typer.Option(help="Of all weights; the source's by default."),
    ] = None,
    like: _Like = None,
    allow_overflow: AllowOverflow = False,
    tokenizer: Tokenizer = None,
    no_tokenizer: NoTokenizer = False,
    overwrite: Overwrite = False,
) -> None:
    """Turns a dense checkpoint into a mixture of experts.

    Example: foundry-upcycle convert runs/llama3/checkpoint.pt moe.pt
    --experts 8 --top-k 2
    """
    with errors_in_one_line():
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
            dtype=dtype_of(dtype),
            like=like,
            overwrite=overwrite,
            moe_layers=_layers(layers),
            allow_overflow=allow_overflow,
            tokenizer=tokenizer,
            with_tokenizer=not no_tokenizer,
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
    top_k: Annotated[
        Optional[int],
        typer.Option(
            help="Experts that a token goes to; the checkpoint's by default, "
            'the most of them where they varied in training.',
        ),
    ] = None,
    like: _Like = None,
    dtype: Annotated[
        Optional[DTypeName],
        typer.Option(help="Of all weights; the checkpoint's by default."),
    ] = None,
    allow_overflow: AllowOverflow = False,
    tokenizer: Tokenizer = None,
    no_tokenizer: NoTokenizer = False,
    overwrite: Overwrite = False,
) -> None:
    """Makes a Hugging Face folder that transformers and vLLM load.

    A dense model becomes what --like is of (else the plainest architecture
    that holds it), a mixture Mixtral (Qwen2-MoE
    where queries and keys have biases, Qwen3-MoE where they are normalised).

    Example: foundry-upcycle export-hf runs/upcycle/latest-rank0.pt served
    --like runs/llama3/hf --dtype bfloat16
    """
    with errors_in_one_line():
        from foundry_upcycle.conversion import export_hf as module
        module.export_hf(
            source,
            out,
            like,
            dtype_of(dtype),
            overwrite,
            allow_overflow,
            tokenizer,
            not no_tokenizer,
            top_k,
        )
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
    with errors_in_one_line():
        from foundry_upcycle.conversion import verify as module
        result = module.verify(dense, mixture, tokens, tolerance=tolerance)
        for line in result.lines():
            typer.echo(line)
    if not result.passed:
        raise typer.Exit(1)
