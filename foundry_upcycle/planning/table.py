"""What training YAMLs cost, side by side, as lines of text."""

from typing import Callable, Iterable, Mapping, Optional, Sequence

from foundry_upcycle.columns import in_columns
from foundry_upcycle.planning.budget import TrainingBudget
from foundry_upcycle.planning.isoflop import steps_for_budget

__all__ = ['budget_lines']

_NOTES = (
    'active: the parameters that a token meets; an untied input embedding is '
    'not among them.',
    'FLOPs leave out recomputed activations, auxiliary losses and the '
    'optimizer.',
    "GiB: weights, gradients and Lion's momentum, each in float32, over all "
    'ranks; FSDP divides',
    'them by the number of ranks. Activations and copies in lower precision '
    'are left out.',
)
_NOTE_OF_EPOCHS = '-: max_duration is in epochs, whose length the data decide.'

# Two lines of title, and a YAML's value.
_Column = tuple[str, str, Callable[[TrainingBudget], str]]


def budget_lines(
    budgets: Mapping[str, TrainingBudget],
    budget_flops: Optional[float] = None,
) -> list[str]:
    """Two tables with a row for each YAML, and what they leave out.

    Args:
        budgets: What each costs, by the name to show it under.
        budget_flops: FLOPs to say of how many steps of each they buy; None:
            not asked.

    Raises:
        ConfigError: The FLOPs are no positive number, or don't buy a step.
    """
    first = next(iter(budgets.values())).training_flops_per_token
    per_token = _per_token(first if len(budgets) > 1 else None)
    of_runs = [
        *_max_duration(),
        *([] if budget_flops is None else _bought(budget_flops)),
        *_memory(),
    ]
    in_epochs = any(budget.n_steps is None for budget in budgets.values())
    return [
        *_table(budgets, per_token),
        '',
        *_table(budgets, of_runs),
        '',
        *([_NOTE_OF_EPOCHS] if in_epochs else []),
        *_NOTES,
    ]


def _per_token(first: Optional[int]) -> list[_Column]:
    """``first``: training FLOPs of the YAML to compare with, if with any."""
    columns: list[_Column] = [
        ('total', 'parameters', lambda b: f'{b.n_total_params:,}'),
        ('active', 'parameters', lambda b: f'{b.n_active_params:,}'),
        ('forward', 'FLOPs/token', lambda b: f'{b.forward_flops_per_token:,}'),
        (
            'training', 'FLOPs/token',
            lambda b: f'{b.training_flops_per_token:,}'
        ),
    ]
    if first is not None:
        columns.append((
            'to the',
            'first',
            lambda b: f'{b.training_flops_per_token / first:.3f}',
        ))
    return columns


def _max_duration() -> list[_Column]:
    return [
        ('run', 'tokens', lambda b: _short(b.n_tokens)),
        ('run', 'steps', lambda b: _whole(b.n_steps)),
        ('run', 'FLOPs', lambda b: _short(b.n_flops)),
    ]


def _bought(budget_flops: float) -> list[_Column]:

    def n_steps(budget: TrainingBudget) -> int:
        return steps_for_budget(
            budget_flops,
            budget.training_flops_per_token,
            budget.tokens_per_step,
        ).n_steps

    title = f'{budget_flops:.4g}'
    return [
        (title, 'tokens', lambda b: _short(n_steps(b) * b.tokens_per_step)),
        (title, 'steps', lambda b: _whole(n_steps(b))),
    ]


def _memory() -> list[_Column]:

    def gib(budget: TrainingBudget) -> str:
        return f'{budget.float32_bytes / 2**30:,.2f}'

    # One number a parameter each.
    return [(name, 'GiB', gib) for name in ('weights', 'grads', 'momentum')]


def _short(number: Optional[int]) -> str:
    return '-' if number is None else f'{number:.3e}'


def _whole(number: Optional[int]) -> str:
    return '-' if number is None else f'{number:,}'


def _table(
    budgets: Mapping[str, TrainingBudget],
    columns: Sequence[_Column],
) -> Iterable[str]:
    cells = [['', '', *budgets]]
    for *titles, value in columns:
        cells.append([*titles, *map(value, budgets.values())])
    return in_columns([*zip(*cells, strict=True)])
