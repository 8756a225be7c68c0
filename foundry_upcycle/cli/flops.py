"""The command ``flops``."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from foundry_upcycle.cli.errors import errors_in_one_line

__all__ = ['flops']


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
    copies in lower precision. Of a YAML with upcycle_distill, training counts
    the teacher's forward pass, by the config in its checkpoint.

    Example: foundry-upcycle flops yamls/cpt_430m.yaml yamls/upcycle_430m.yaml
    --budget 5e19
    """
    with errors_in_one_line():
        from foundry_upcycle.planning.budget import read_training_budget
        from foundry_upcycle.planning.table import budget_lines
        budgets = {path: read_training_budget(path, _shape) for path in yamls}
        for line in budget_lines(_by_stem(budgets), budget):
            typer.echo(line)


def _shape(checkpoint: str) -> Any:
    # They import torch and LLM Foundry.
    from foundry_upcycle.checkpoints.base import nest
    from foundry_upcycle.checkpoints.open import open_checkpoint
    from foundry_upcycle.checkpoints.settings import require_mpt
    from foundry_upcycle.planning.flops import ModelShape
    teacher = open_checkpoint(checkpoint)
    require_mpt(teacher)
    return ModelShape.from_config(nest(teacher.model_config)).evaluated


def _by_stem(by_path: dict[str, Any]) -> dict[str, Any]:
    """The same by the files' names, where these tell them apart."""
    by_stem = {Path(path).stem: value for path, value in by_path.items()}
    return by_stem if len(by_stem) == len(by_path) else by_path
