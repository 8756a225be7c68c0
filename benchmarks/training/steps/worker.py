"""A process that trains one shape in one way, when it is its turn."""

import multiprocessing
import time
from pathlib import Path
from typing import Any, Optional

import psutil
from composer import Callback, Event, Logger, State

from benchmarks.training.steps.parts import PartsClock
from benchmarks.training.steps.shapes import SHAPES, read_config

__all__ = ['work']

_WARM_UP = 4  # Steps before the first turn.


class _Turns(Callback):
    """Holds the training until it is this process's turn.

    A turn is asked for by ``(steps, whether to time their parts)``; what comes
    back are the seconds of each step, those that CPUs worked for all of them
    (for the dataloader's process, too), and those of the parts.
    """

    def __init__(self, connection: Any):
        self.connection = connection
        self.marks: list[float] = []
        self.n_steps = _WARM_UP
        self.cpu_start = 0.0
        self.clock: Optional[PartsClock] = None

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        del logger
        if self.clock is not None:
            self.clock.event(event)
        if event is Event.BATCH_START:
            self.step_starts(state)

    def step_starts(self, state: Optional[State] = None) -> None:
        self.marks.append(time.perf_counter())
        if len(self.marks) <= self.n_steps:
            return
        pairs = zip(self.marks, self.marks[1:])
        self.connection.send({
            'seconds': [after - before for before, after in pairs],
            'cpu_seconds':
            _cpu_seconds() - self.cpu_start,
            'parts':
            self.clock.stop() if self.clock else {},
        })
        self.n_steps, with_parts = self.connection.recv()
        if not self.n_steps:
            raise SystemExit
        self.clock = None
        if with_parts and state is not None:
            self.clock = PartsClock(state.model, state.optimizers[0])
        self.cpu_start = _cpu_seconds()
        self.marks = [time.perf_counter()]


def _cpu_seconds() -> float:
    process = psutil.Process()
    times = [p.cpu_times() for p in (process, *process.children(True))]
    return sum(t.user + t.system for t in times)


def work(connection: Any, shape: str, arm: str, folder: Path) -> None:
    """Trains until the connection says that it is over.

    Args:
        connection: To the process that measures.
        shape: One of ``SHAPES``.
        arm: One of ``ARMS``.
        folder: With tokenizer and tokens of this shape.
    """
    # As in a run: Foundry's dataloader can't be pickled for a spawned worker.
    multiprocessing.set_start_method('fork', force=True)
    config = read_config(SHAPES[shape], arm, folder)
    if arm == 'plain':
        from benchmarks.training.steps.plain import train
        from benchmarks.training.steps.tokens import random_tokens
        turns = _Turns(connection)
        train(config, random_tokens(config), turns.step_starts)
        return
    from llmfoundry.command_utils import train as foundry_train
    from llmfoundry.registry import callbacks

    class Turns(_Turns):
        """Built by Foundry, without arguments."""

        def __init__(self) -> None:
            super().__init__(connection)

    callbacks.register('benchmark_turns', func=Turns)
    config.callbacks.benchmark_turns = {}
    foundry_train(config)
