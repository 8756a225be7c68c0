"""The algorithm ``upcycle_distill``: a student learns a teacher's predictions."""

import math
from typing import Any

import torch
from composer import Algorithm, Event, Logger, State
from composer.core import get_precision_context
from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM, get_targets

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.loaded import loaded_model
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.remote import local_checkpoint
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.checkpoints.sync import raise_together
from foundry_upcycle.config import is_number
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.distillation import mean_divergence
from foundry_upcycle.models.losses import Losses
from foundry_upcycle.models.upcycled_mpt import INPUTS

__all__ = ['UpcycleDistill']

_KEY = 'algorithms.upcycle_distill'


class UpcycleDistill(Algorithm):
    """Trains on labels and on the predictions of a frozen teacher.

    What is minimised is ``(1 - a) * loss + a * temperature^2 * kl`` (Hinton et
    al., arXiv 1503.02531) and, of an ``upcycled_mpt``, its auxiliary losses as
    they are: ``loss`` is the cross entropy, ``kl`` the mean KL(teacher ||
    student) at the temperature, both over the tokens that have a target.
    Composer logs them under ``loss/train/``. Evaluation is what it was.

    The teacher is whole on each rank, in float32, and computes in the
    trainer's precision; of a ``moe_top_k`` that varied it has the largest, as
    everywhere out of training.

    An algorithm and no callback: Composer's algorithms are what may change the
    trainer's state, such as ``state.loss`` at ``Event.AFTER_LOSS``, and run
    before all callbacks, which then see the loss that is minimised. A
    checkpoint keeps of one its name and ``repr``, and Composer asks for none but
    its own again when it is loaded. So the teacher, no part of the model, is
    saved nowhere, a run that resumes reads it again, and a distilled checkpoint
    loads without it.

    Args:
        teacher: An MPT, dense or upcycled: a Composer ``.pt`` file or sharded
            folder, or a Hugging Face folder, on disk or at a URI, as
            ``sparse_upcycling`` takes it.
        kl_weight: The weight a of the teacher, above 0, up to 1.
        temperature: Divides both logits in ``kl``.

    Raises:
        ConfigError: A setting can't be used, or the student is no MPT, has
            another vocabulary or tokenizer than the teacher, or longer
            sequences. Nothing has been trained or saved then.
        CheckpointError: The teacher is missing or damaged, or no MPT.
    """

    def __init__(
        self,
        teacher: str,
        kl_weight: float = 0.5,
        temperature: float = 1.0,
    ):
        if not isinstance(teacher, str) or not teacher:
            raise ConfigError(
                f'{_KEY}.teacher',
                teacher,
                'it names no checkpoint.',
                'set it to a Composer .pt file or sharded folder, or to a '
                'Hugging Face folder.',
            )
        if not (is_number(kl_weight) and 0 < kl_weight <= 1):
            raise ConfigError(
                f'{_KEY}.kl_weight',
                kl_weight,
                'it is not a share of the loss.',
                'set it above 0, up to 1; 0.5 takes half of the loss from the '
                'teacher.',
            )
        if not (is_number(temperature) and 0 < temperature < math.inf):
            raise ConfigError(
                f'{_KEY}.temperature',
                temperature,
                'no logits can be divided by it.',
                'set it above 0; 1 takes the probabilities as they are.',
            )
        self.teacher = teacher
        self.kl_weight = kl_weight
        self.temperature = temperature

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(teacher={self.teacher!r}, '
            f'kl_weight={self.kl_weight}, temperature={self.temperature})'
        )

    def match(self, event: Event, state: State) -> bool:
        del state
        return event in (Event.INIT, Event.AFTER_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        del logger
        if event == Event.INIT:
            self._load(state)
        else:
            self._change_loss(state)

    def _load(self, state: State) -> None:
        """Before Composer wraps the model, which may hide what it is."""
        student: Any = state.model
        self._student = student
        if not isinstance(student, ComposerMPTCausalLM):
            raise ConfigError(
                'model.name',
                type(student).__name__,
                'upcycle_distill trains MPT models.',
                'set it to mpt_causal_lm or upcycled_mpt.',
            )
        with local_checkpoint(self.teacher) as path, raise_together():
            checkpoint = open_checkpoint(path)
            require_mpt(checkpoint)
            _check_sizes(self.teacher, checkpoint, student.config)
            _check_tokens(self.teacher, checkpoint, student.tokenizer)
            attn_impl = student.config.attn_config['attn_impl']
            model = loaded_model(checkpoint, attn_impl).eval()
            checkpoint.files.check()
        self._model = state.device.module_to_device(model)

    def _change_loss(self, state: State) -> None:
        student: Any = self._student
        labels = state.batch['labels']
        targets = get_targets(labels) if student.shift_labels else labels
        outputs: Any = state.outputs
        with get_precision_context(state.precision, state.precision_config):
            kl = mean_divergence(
                outputs.logits,
                self._logits(state.batch),
                targets != student.loss_fn.ignore_index,
                self.temperature,
            )
        loss: Any = state.loss
        # A dense student's is the cross entropy alone.
        losses = dict(loss) if isinstance(loss, dict) else {'loss': loss}
        ce = losses['loss']
        total = losses.pop('total', ce)
        more = self.kl_weight * (self.temperature**2 * kl - ce)
        state.loss = Losses({**losses, 'kl': kl}, total + more)

    @torch.no_grad()
    def _logits(self, batch: Any) -> torch.Tensor:
        return self._model(**{name: batch.get(name) for name in INPUTS}).logits


def _check_sizes(path: str, teacher: Checkpoint, student: Any) -> None:
    for key, fits in (
        ('vocab_size', lambda own, its: own == its),
        ('max_seq_len', lambda own, its: own <= its),
    ):
        own, its = getattr(student, key), teacher.model_config[key]
        if not fits(own, its):
            raise ConfigError(
                f'model.{key}',
                own,
                f'the teacher {path} has {its}.',
                'distill from a model that reads the same tokens, as many at '
                'a time.',
            )


def _check_tokens(path: str, teacher: Checkpoint, tokenizer: Any) -> None:
    """Compares the token of each id that both have, as far as files say."""
    companions = teacher.companions()
    if tokenizer is None or not companions.has_tokenizer:
        return
    own = {i: token for token, i in tokenizer.get_vocab().items()}
    for token, i in companions.tokens.ids.items():
        if own.get(i, token) != token:
            raise ConfigError(
                f'{_KEY}.teacher',
                path,
                f'it has another tokenizer than the student: id {i} is '
                f'{token!r} there, and {own[i]!r} here.',
                "set the YAML's tokenizer to the teacher's, or distill from a "
                'model that reads the same tokens.',
            )
