"""The callback ``matmul_precision``: float32 products of lower precision."""

from contextlib import ExitStack
from typing import Any

import torch
from composer import Callback, Logger, State
from torch import nn

from foundry_upcycle.errors import ConfigError

__all__ = ['MatmulPrecision']

_IN_FLOAT32 = ('RotaryEmbedding', 'Router')
_PRECISIONS = ('highest', 'high', 'medium')


class MatmulPrecision(Callback):
    """Sets the precision of float32 matrix products while a run is open.

    The setting is torch's ``set_float32_matmul_precision``, and as found
    again when the run is closed. ``medium`` lets CPUs that multiply bfloat16
    matrices (AMX) do so: inputs are rounded, sums stay in float32. On NVIDIA
    GPUs ``high`` and ``medium`` are TF32, to which Composer sets them anyway,
    and ``highest`` is float32. Other hardware may ignore it.

    Two kinds of modules stay in float32, found by the name of their class:

    - rotary embeddings (``RotaryEmbedding`` in Foundry and transformers): their
      angles are a product, too, of positions and frequencies, and bfloat16
      holds only some of the integers above 256,
    - routers (``Router``), as whom a token goes to turns on small differences.

    All other products get the precision: projections, FFNs, experts, attention
    (torch's scores and values) and logits. ALiBi and learned positions are no
    products; softmax, norms and losses stay in float32.

    Args:
        precision: ``highest``, ``high`` or ``medium``.

    Raises:
        ConfigError: ``precision`` is something else.
    """

    def __init__(self, precision: str):
        if precision not in _PRECISIONS:
            raise ConfigError(
                'callbacks.matmul_precision.precision',
                precision,
                'torch has no such precision.',
                f'set it to one of {_PRECISIONS}.',
            )
        self.precision = precision
        self._undo = ExitStack()

    def init(self, state: State, logger: Logger) -> None:
        del logger
        found = torch.get_float32_matmul_precision()
        self._undo.callback(torch.set_float32_matmul_precision, found)
        torch.set_float32_matmul_precision(self.precision)
        for module in state.model.modules():
            # FSDP2 puts its own name before a class's.
            if any(name in type(module).__name__ for name in _IN_FLOAT32):
                self._keep_in_float32(module)

    def _keep_in_float32(self, module: nn.Module) -> None:

        def before(module: nn.Module, args: Any) -> None:
            del module, args
            torch.set_float32_matmul_precision('highest')

        def after(module: nn.Module, args: Any, output: Any) -> None:
            del module, args, output
            torch.set_float32_matmul_precision(self.precision)

        hook = module.register_forward_pre_hook(before)
        self._undo.callback(hook.remove)
        hook = module.register_forward_hook(after, always_call=True)
        self._undo.callback(hook.remove)

    def close(self, state: State, logger: Logger) -> None:
        del state, logger
        self._undo.close()
