"""Plans the second phases of a model: sweeps, then arms at each budget."""

from dataclasses import dataclass, replace
from math import isclose
from typing import Iterator, Mapping, Optional, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.isoflop import steps_for_budget
from foundry_upcycle.study.base_yaml import BaseYaml
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.grid import Place, Role, Run
from foundry_upcycle.study.shrunk_start import ShrunkStart

__all__ = ['Arms']

# Farther apart, arms would not be compared at equal cost.
_FLOPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Arms:
    """The second phases of a model.

    Args:
        key: Of the model in the study YAML.
        seeds: The study's.
        model: The model.
        bases: Arm -> the YAML of its runs.
        starts: The dense models that they start from.
    """

    key: str
    seeds: Sequence[int]
    model: ModelGrid
    bases: Mapping[str, BaseYaml]
    starts: Sequence[Run]

    def runs(self) -> Iterator[Run]:
        """Each after those that it needs.

        Raises:
            ConfigError: A budget is too small for one.
        """
        sweeps = {
            name: self._sweep(name, base)
            for name, base in self.bases.items()
        }
        planned: set[Place] = set()
        for run in self._in_order(sweeps):
            source = run.source
            if source is not None and source not in planned:
                planned.add(source)
                yield self._source(source, sweeps)
            # The runs of a sweep share theirs.
            if run.role == 'sweep' or run.place not in planned:
                planned.add(run.place)
                yield run

    def _in_order(
        self,
        sweeps: Mapping[str, Sequence[Run]],
    ) -> Iterator[Run]:
        """But for what is only shrunk."""
        # First those whose mixtures are shrunk.
        is_shrunk = {
            name: base.source is not None
            for name, base in self.bases.items()
        }
        for name in sorted(sweeps, key=is_shrunk.__getitem__):
            yield from sweeps[name]
        # All arms at a budget before the next: what there is can be compared.
        for start in self.starts:
            for budget in self.model.budgets:
                for name in self.bases:
                    for seed in self.seeds:
                        place = Place(
                            self.model.name,
                            start.place.duration,
                            name,
                            budget,
                            seed,
                        )
                        sweep = sweeps[name]
                        # That one is the best of the sweep.
                        if not (sweep and place == sweep[0].place):
                            yield self._run(place, 'arm', sweep)

    def _source(
        self,
        place: Place,
        sweeps: Mapping[str, Sequence[Run]],
    ) -> Run:
        is_arm = place.budget in self.model.budgets
        sweep = sweeps[str(place.arm)]
        return self._run(place, 'arm' if is_arm else 'source', sweep)

    def _sweep(self, name: str, base: BaseYaml) -> tuple[Run, ...]:
        rates = base.phase.learning_rates
        if len(rates) < 2:
            return ()
        start = min(self.starts, key=lambda run: run.flops)
        duration, budget = start.place.duration, self.model.budgets[0]
        if self.model.sweep_at is not None:
            duration, budget = self.model.sweep_at
        place = Place(self.model.name, duration, name, budget, self.seeds[0])
        return tuple(
            self._run(place, 'sweep', rate=rate, suffix=f'_lr{rate:g}')
            for rate in rates
        )

    def _run(
        self,
        place: Place,
        role: Role,
        sweep: Sequence[Run] = (),
        rate: Optional[float] = None,
        suffix: str = '',
    ) -> Run:
        base = self.bases[str(place.arm)]
        start = next(
            run for run in self.starts if run.place.duration == place.duration
        )
        rates = base.phase.learning_rates
        run = Run(
            place.name + suffix,
            role,
            place,
            base,
            n_steps=0,
            needs=(start.name, *(run.name for run in sweep)),
            learning_rate=rates[0] if len(rates) == 1 else rate,
        )
        if base.phase.shrunk is None:
            n_steps = self._matched_steps(start, base, place.budget)
            return replace(run, n_steps=n_steps)
        return self._shrunk(run, start, base.phase.shrunk)

    def _shrunk(self, run: Run, start: Run, shrunk: ShrunkStart) -> Run:
        """With what it starts from, and the steps that this leaves it."""
        base, budget = run.base, run.place.budget
        assert base.source is not None  # For pyright.
        rest = (1 - shrunk.heal) * budget
        rest = next((b for b in self.model.budgets if isclose(b, rest)), rest)
        flops = base.shrinking_flops + base.source.flops_per_step * (
            self._matched_steps(start, base.source, rest)
        )
        return replace(
            run,
            n_steps=self._healing_steps(start, run, shrunk, flops),
            source=replace(run.place, arm=shrunk.arm, budget=rest),
            source_flops=flops,
        )

    def _healing_steps(
        self,
        start: Run,
        run: Run,
        shrunk: ShrunkStart,
        source_flops: float,
    ) -> int:
        """What is left of the budget, in whole steps."""
        base, key = run.base, f'{shrunk.key}.heal'
        budget = self.model.budget_flops(run.place.budget, start.flops)
        text = self.model.budget_text(run.place.budget)
        n_steps = 0
        if shrunk.heal:
            n_steps = round((budget - source_flops) / base.flops_per_step)
            if n_steps < 1:
                raise ConfigError(
                    key,
                    shrunk.heal,
                    f'of {text} it leaves less than a step of {base.path}.',
                    'raise it, or lower tokens.',
                )
            says = f'of {text} it leaves '
            base.require_warmup_shorter(key, shrunk.heal, n_steps, says)
        spent = source_flops + n_steps * base.flops_per_step
        _require_near(
            key,
            shrunk.heal,
            spent / budget - 1,
            f'at {text} all steps and the calibration together cost ',
            'lower tokens, or global_train_batch_size.',
        )
        return n_steps

    def _matched_steps(self, start: Run, base: BaseYaml, budget: float) -> int:
        key, model = self.key, self.model
        if model.unit == 'fraction':
            key = f'{key}.fractions'
            says = f'of the FLOPs of {start.name} it buys '
            ways = ['raise it', 'pretrain longer']
        else:
            key, says, ways = f'{key}.budgets', 'it buys ', ['raise it']
        flops = model.budget_flops(budget, start.flops)
        if flops < base.flops_per_step:
            raise ConfigError(
                key,
                budget,
                f'{says}less than a step of {base.path}.',
                f"{', or '.join(ways)}.",
            )
        n_steps, deviation = steps_for_budget(flops, base.flops_per_step, 1)
        base.require_warmup_shorter(key, budget, n_steps, says)
        _require_near(
            key,
            budget,
            deviation,
            f'the nearest whole number of steps of {base.path}, {n_steps}, '
            'costs ',
            f"{', '.join(ways)}, or lower global_train_batch_size.",
        )
        return n_steps


def _require_near(
    key: str,
    value: float,
    deviation: float,
    says: str,
    fix: str,
) -> None:
    if abs(deviation) > _FLOPS_TOLERANCE:
        raise ConfigError(key, value, f'{says}{deviation:+.1%} FLOPs.', fix)
