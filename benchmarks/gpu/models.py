"""The small models of part 1, and how Composer trains them."""

from pathlib import Path
from typing import Any, Optional

import torch
from composer import Trainer
from composer.core import get_precision_context
from composer.devices import DeviceCPU, DeviceGPU
from composer.loggers import InMemoryLogger
from composer.models import ComposerModel
from composer.optim import DecoupledSGDW
from composer.utils import dist
from llmfoundry.utils.builders import build_callback, build_composer_model
from llmfoundry.utils.config_utils import process_init_device
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

__all__ = [
    'Run',
    'dense_config',
    'logits_of',
    'moe_config',
    'new_model',
    'save_model',
]

_YAMLS = Path(__file__).parents[2] / 'yamls'
_VOCAB = 512
_SEQ = 64
_BATCH = 4


def dense_config(**changes: Any) -> dict[str, Any]:
    """The quickstart's dense model, smaller; ``changes`` replace its keys."""
    return _config('quickstart_pretrain', changes)


def moe_config(**changes: Any) -> dict[str, Any]:
    """Its mixture of 8 experts."""
    return _config('quickstart_upcycle', changes)


def _config(yaml: str, changes: dict[str, Any]) -> dict[str, Any]:
    config: Any = OmegaConf.load(_YAMLS / f'{yaml}.yaml')
    config.merge_with({'max_seq_len': _SEQ})
    config.model.merge_with({'n_layers': 2, 'vocab_size': _VOCAB, **changes})
    model: Any = OmegaConf.to_container(config.model, resolve=True)
    return model


def new_model(
    config: dict[str, Any],
    fsdp: Optional[dict[str, Any]] = None,
) -> ComposerModel:
    """Always of the same weights."""
    torch.manual_seed(0)
    context = process_init_device(config, fsdp)
    return build_composer_model(
        config.pop('name'),
        config,
        tokenizer=None,
        init_context=context,
    )


def save_model(model: ComposerModel, path: Path) -> None:
    """Weights and config, as Composer's ``save_weights_only`` keeps them."""
    integrations = {'huggingface': model.get_metadata()}
    state = {'model': model.state_dict(), 'integrations': integrations}
    torch.save({'state': state}, path)


def _tokens(n: int) -> torch.Tensor:
    """Sequences that count in steps of 1 to 4, which are soon learnt.

    Losses that fall tell a run from another one.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(_VOCAB, (n, 1), generator=generator)
    step = torch.randint(1, 5, (n, 1), generator=generator)
    return (first + step * torch.arange(_SEQ)) % _VOCAB


@torch.no_grad()
def logits_of(model: nn.Module, precision: str) -> torch.Tensor:
    """Of some tokens, by a Composer model or one of transformers."""
    device = next(model.parameters()).device
    ids = _tokens(_BATCH).to(device)
    model.eval()
    with get_precision_context(precision):
        if isinstance(model, ComposerModel):
            logits = model({'input_ids': ids, 'labels': ids}).logits
        else:
            logits = model(ids).logits
    return logits.float()


class Run:
    """A training of the mixture, upcycled when it starts.

    Plain SGD with momentum: what rounding does to a gradient stays as small
    in the weights, where Lion's sign would make it a whole step.

    Args:
        device: ``cuda`` or ``cpu``.
        source: The dense checkpoint.
        precision: Composer's.
        fsdp: Whether FSDP2 wraps the model.
        ddp: Whether DDP does.
        init_device: Of the model.
        monitored: Whether ``router_monitor`` logs, too.
        settings: Of the trainer.
    """

    def __init__(
        self,
        device: str,
        source: Path,
        precision: str = 'fp32',
        fsdp: bool = False,
        ddp: bool = False,
        init_device: str = 'cpu',
        monitored: bool = False,
        **settings: Any,
    ):
        # Composer's default is TF32, whose products have 10 bits: what is to be
        # the same in float32 would differ by more than its tolerance.
        composer_device = DeviceGPU(
            allow_tf32=False,
        ) if device == 'cuda' else DeviceCPU()
        dist.initialize_dist(composer_device)
        fsdp_config = {'state_dict_type': 'sharded'} if fsdp else None
        model = new_model(moe_config(init_device=init_device), fsdp_config)
        callbacks = [
            build_callback('sparse_upcycling', {'source_path': str(source)}),
        ]
        if monitored:
            callbacks.append(
                build_callback('router_monitor', {'interval': '1ba'}),
            )
        self.log = InMemoryLogger()
        ids = _tokens(20 * _BATCH)
        self.trainer = Trainer(
            model=model,
            train_dataloader=DataLoader(
                [{
                    'input_ids': row,
                    'labels': row
                } for row in ids],
                batch_size=_BATCH,
            ),
            max_duration='20ba',
            optimizers=DecoupledSGDW(model.parameters(), lr=0.1, momentum=0.9),
            precision=precision,
            device=composer_device,
            progress_bar=False,
            callbacks=callbacks,
            loggers=[self.log],
            parallelism_config={'fsdp': fsdp_config} if fsdp else None,
            **settings,
        )
        if ddp:
            state = self.trainer.state
            state.model = DistributedDataParallel(state.model)

    def train(self, steps: int) -> dict[str, list[float]]:
        """Up to a step; returns what was logged of losses and routers."""
        done = self.trainer.state.timestamp.batch.value
        self.trainer.fit(duration=f'{steps - done}ba')
        self.close()
        return {
            name: [float(value)
                   for _, value in values]
            for name, values in self.log.data.items()
            if name.startswith(('loss/train/', 'router/mean/'))
        }

    def close(self) -> None:
        self.trainer.close()
