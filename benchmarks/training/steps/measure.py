"""Lets the ways to train a shape take turns, and keeps what they took."""

import multiprocessing
import statistics
from pathlib import Path
from typing import Any, Sequence

from benchmarks.training.steps.shapes import (
    ARMS,
    SHAPES,
    flops_per_step,
    read_config,
)
from benchmarks.training.steps.tokens import write_run_folder
from benchmarks.training.steps.worker import work

__all__ = ['measure_shape']

# Of Composer's arms, the times of parts.
_WITH_PARTS = ('before', 'yaml')


def measure_shape(
    shape: str,
    folder: Path,
    arms: Sequence[str] = ARMS,
    rounds: int = 5,
    n_steps: int = 6,
) -> dict[str, Any]:
    """Trains one shape in each way, a few steps in turn.

    Each way has a process of its own, which waits while others train. The
    first step of a turn finds cold caches and a full dataloader: it is left
    out. Parts are timed in a turn of their own, after the rounds.

    Args:
        shape: One of ``SHAPES``.
        folder: For tokens and logs; it is empty.
        arms: Of ``ARMS``.
        rounds: Turns of each.
        n_steps: Steps of a turn that count.

    Returns:
        Sizes; and of each arm, for each turn, the median seconds of a step
        and the mean of its CPU seconds; and the seconds of a step's parts.
    """
    config = read_config(SHAPES[shape], 'yaml', folder)
    write_run_folder(config, folder)
    processes: dict[str, _Process] = {}
    measured: dict[str, Any] = {
        arm: {
            'turns': [],
            'cpu_turns': []
        }
        for arm in arms
    }
    try:
        # In here: if one can't start, the others, which wait, must end.
        for arm in arms:
            processes[arm] = _Process(shape, arm, folder)
        for _ in range(rounds):
            for arm, process in processes.items():
                turn = process.turn(n_steps + 1)
                measured[arm]['turns'].append(
                    statistics.median(turn['seconds'][1:]),
                )
                measured[arm]['cpu_turns'].append(
                    turn['cpu_seconds'] / (n_steps + 1),
                )
        for arm in set(_WITH_PARTS) & set(arms):
            parts = processes[arm].turn(n_steps, with_parts=True)['parts']
            measured[arm]['parts'] = {
                part: seconds / n_steps
                for part, seconds in parts.items()
            }
    finally:
        for process in processes.values():
            process.end()
    return {
        'tokens_per_step': config.global_train_batch_size * config.max_seq_len,
        'flops_per_step': flops_per_step(config),
        'arms': measured,
    }


class _Process:
    """One way to train, ready for its first turn."""

    def __init__(self, shape: str, arm: str, folder: Path):
        # Spawned: a fork would share the threads' state.
        context = multiprocessing.get_context('spawn')
        self._connection, its_end = context.Pipe()
        self._process = context.Process(
            target=work,
            args=(its_end, shape, arm, folder),
        )
        self._process.start()
        its_end.close()
        self._connection.recv()  # Its warm-up is over.

    def turn(self, n_steps: int, with_parts: bool = False) -> dict[str, Any]:
        self._connection.send((n_steps, with_parts))
        return self._connection.recv()

    def end(self) -> None:
        if self._process.is_alive():
            self._connection.send((0, False))
        self._process.join()
