"""The command ``foundry-upcycle``.

Commands import what they need when they run: torch and LLM Foundry take
seconds, and ``--help`` should not.
"""

from foundry_upcycle.cli import (
    advise,
    checkpoints,
    expert_shares,
    flops,
    gauntlet,
    shrinking,
    study,
)
from foundry_upcycle.cli.command import App

__all__ = ['app']

app = App(
    help='Upcycles dense checkpoints into mixtures of experts, carries them '
    'from and to Hugging Face, says what training costs, scores how they '
    'answer, predicts whether upcycling pays, and compares it with continued '
    'pretraining.',
    pretty_exceptions_show_locals=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(checkpoints.app)
app.add_typer(shrinking.app)
app.command()(advise.advise)
app.command()(expert_shares.expert_shares)
app.command()(flops.flops)
app.add_typer(gauntlet.app, name='gauntlet')
app.add_typer(study.app, name='study')
