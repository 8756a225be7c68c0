"""Where the time of a step through Composer's trainer goes."""

import time
from collections import defaultdict
from typing import Any

from composer.core import Event
from torch import nn

__all__ = ['PartsClock']

# What ends with an event; all else between events is Composer's own.
_ENDS = {
    Event.AFTER_DATALOADER: 'dataloader',
    Event.AFTER_FORWARD: 'forward',
    Event.AFTER_LOSS: 'loss',
    Event.AFTER_BACKWARD: 'backward',
    Event.AFTER_TRAIN_BATCH: 'training metrics',
}
_OTHER = 'Composer, callbacks, loggers'

# Modules by the last part of their name.
_MODULES = {
    'wte': 'embedding',
    'norm_1': 'norms',
    'norm_2': 'norms',
    'norm_f': 'norms',
    'attn': 'attention',
    'ffn': 'FFN or experts',
    'lm_head': 'logits',
}


class PartsClock:
    """Seconds of each part of the steps since it was started.

    Modules are timed by hooks, which the steps that are compared do not have.
    Gradients that reach a module past its output (of the load-balancing loss)
    and sums of residuals count as ``backward``.

    Args:
        model: What is trained.
        optimizer: What updates it.
    """

    def __init__(self, model: nn.Module, optimizer: Any):
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()
        self._starts: dict[Any, float] = {}
        self._hooks: list[Any] = [
            optimizer.register_step_post_hook(
                lambda *_: self._end('optimizer'),
            ),
        ]
        for name, module in model.named_modules():
            part = _MODULES.get(name.rpartition('.')[2])
            if part is not None:
                self._watch(module, part)

    def event(self, event: Event) -> None:
        """Called at each of Composer's events."""
        self._end(_ENDS.get(event, _OTHER))

    def stop(self) -> dict[str, float]:
        """Removes the hooks; what was measured."""
        for hook in self._hooks:
            hook.remove()
        inner = [key for key in self.seconds if ': ' in key]
        for key in inner:
            self.seconds[key.partition(': ')[0]] -= self.seconds[key]
        return dict(self.seconds)

    def _end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def _watch(self, module: nn.Module, part: str) -> None:
        for direction, before, after in (
            (
                'forward',
                module.register_forward_pre_hook,
                module.register_forward_hook,
            ),
            (
                'backward',
                module.register_full_backward_pre_hook,
                module.register_full_backward_hook,
            ),
        ):
            if part == 'embedding' and direction == 'backward':
                continue  # Its input has no gradient that could end it.
            key = direction, module
            name = f'{direction}: {part}'
            self._hooks += [
                before(lambda *_, key=key: self._start(key)),
                after(lambda *_, key=key, name=name: self._stop(key, name)),
            ]

    def _start(self, key: Any) -> None:
        self._starts[key] = time.perf_counter()

    def _stop(self, key: Any, name: str) -> None:
        self.seconds[name] += time.perf_counter() - self._starts.pop(key)
