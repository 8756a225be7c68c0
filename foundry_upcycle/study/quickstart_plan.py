"""The numbers of the quickstart, and what its three training runs cost."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from foundry_upcycle.planning.flops import ModelShape
from foundry_upcycle.planning.isoflop import matched_steps

__all__ = [
    'PROJECT',
    'SIZES',
    'Size',
    'TrainingPlan',
    'plan_training',
]

# train.py and the YAMLs are here.
PROJECT = Path(__file__).resolve().parents[2]
# FLOPs of the two arms may differ by this share.
_FLOPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Size:
    """The numbers of a quickstart.

    Args:
        pretrain_steps: Steps of the dense phase.
        cpt_steps: Steps of continued pretraining; upcycling gets as many as
            cost the same FLOPs.
        warmup_steps: Steps of each warm-up.
        pretrain_chars: Characters of text to collect for the dense phase.
        part_chars: Characters of each part of the second phase.
        n_held_out: Held-out sequences to measure a loss on.
        n_examples: Examples of each in-context task.
        overrides: Further settings, for all training runs.
    """

    pretrain_steps: int
    cpt_steps: int
    warmup_steps: int
    pretrain_chars: int
    part_chars: int
    n_held_out: int
    n_examples: int
    overrides: tuple[str, ...] = ()


SIZES = {
    'full':
    Size(
        pretrain_steps=500,
        cpt_steps=300,
        warmup_steps=20,
        pretrain_chars=8_000_000,
        part_chars=5_000_000,
        n_held_out=128,
        n_examples=250,
    ),
    'tiny':
    Size(
        pretrain_steps=20,
        cpt_steps=36,
        warmup_steps=5,
        pretrain_chars=300_000,
        part_chars=400_000,
        n_held_out=8,
        n_examples=8,
        overrides=(
            'model.d_model=32',
            'model.n_heads=2',
            'model.n_layers=2',
            'model.ffn_config.ffn_hidden_size=64',
            'max_seq_len=128',
            'global_train_batch_size=4',
            'device_train_microbatch_size=4',
        ),
    ),
}


@dataclass(frozen=True)
class TrainingPlan:
    """One training run, and what it costs.

    Args:
        name: The run's and the stage's name.
        yaml: The YAML it runs.
        overrides: Settings that replace the YAML's.
        shape: The model.
        n_steps: Steps to train.
        batch_size: Sequences of a step.
        seq_len: Tokens of a sequence.
    """

    name: str
    yaml: Path
    overrides: tuple[str, ...]
    shape: ModelShape
    n_steps: int
    batch_size: int
    seq_len: int

    @property
    def flops_per_token(self) -> int:
        return self.shape.training_flops_per_token(self.seq_len)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def tokens(self) -> int:
        return self.n_steps * self.tokens_per_step

    @property
    def flops_per_step(self) -> int:
        return self.tokens_per_step * self.flops_per_token

    @property
    def flops(self) -> int:
        return self.n_steps * self.flops_per_step


def plan_training(size: Size) -> dict[str, TrainingPlan]:
    """Plans the three training runs from their YAMLs.

    Args:
        size: The numbers.

    Returns:
        ``pretrain``, ``cpt`` and ``upcycle``.

    Raises:
        ValueError: Whole steps can't match the FLOPs of the two arms to 1 %.
    """
    pretrain = _plan('pretrain', size, size.pretrain_steps)
    cpt = _plan('cpt', size, size.cpt_steps)
    upcycle = _plan('upcycle', size, 1)
    n_steps, deviation = matched_steps(
        cpt.n_steps,
        cpt.flops_per_token,
        upcycle.flops_per_token,
    )
    if abs(deviation) > _FLOPS_TOLERANCE:
        raise ValueError(
            f'cpt_steps={size.cpt_steps}: the nearest {n_steps} steps of ' +
            f'upcycling cost {deviation:+.2%} FLOPs. Set more steps.',
        )
    upcycle = _plan('upcycle', size, n_steps)
    return {plan.name: plan for plan in (pretrain, cpt, upcycle)}


def _plan(name: str, size: Size, n_steps: int) -> TrainingPlan:
    yaml = PROJECT / 'yamls' / f'quickstart_{name}.yaml'
    overrides = (
        f'variables.project={PROJECT}',
        f'max_duration={n_steps}ba',
        f'scheduler.t_warmup={size.warmup_steps}ba',
        *size.overrides,
    )
    config = OmegaConf.merge(
        OmegaConf.load(yaml),
        OmegaConf.from_dotlist(list(overrides)),
    )
    return TrainingPlan(
        name=name,
        yaml=yaml,
        overrides=overrides,
        shape=ModelShape.from_config(config.model),
        n_steps=n_steps,
        batch_size=config.global_train_batch_size,
        seq_len=config.max_seq_len,
    )
