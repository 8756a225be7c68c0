"""The callback ``trim_icl_padding``: evaluation without common padding."""

from collections.abc import Mapping
from typing import Any

import torch
from composer import Callback, Logger, State

__all__ = ['TrimICLPadding']

_COLUMNWISE = ('input_ids', 'attention_mask', 'labels')


class TrimICLPadding(Callback):
    """Cuts off the padding that all sequences of an in-context task share.

    Foundry pads every sequence of such a task to ``max_seq_len``, and the
    model computes the padding: a question of 30 tokens costs what 4096 do.
    This cuts each microbatch, just before its forward, on the right where
    choices and continuations are scored (up to the last token or
    continuation of any sequence), and on the left where text is generated.
    Other evaluation data is left alone.

    Nothing that is scored changes, beyond rounding: a causal model does not
    look to the right, and what it sees on the left is masked and not counted
    as positions. The exception are ``generation_kwargs`` that count the
    prompt's padding, such as ``min_length`` or ``repetition_penalty``.
    """

    def eval_before_forward(self, state: State, logger: Logger) -> None:
        del logger
        batch = state.batch
        mode = batch.get('mode') if isinstance(batch, Mapping) else None
        if mode == 'icl_task':
            columns = slice(_scored_length(batch))
        elif mode == 'generate':
            columns = slice(_n_left_padding(batch), None)
        else:
            return
        # A new dict of views: the batch may be split and run once more.
        state.batch = {
            key: value[:, columns] if _is_columnwise(key, value) else value
            for key, value in batch.items()
        }


def _is_columnwise(key: str, value: Any) -> bool:
    # The labels of generation are lists of strings.
    return key in _COLUMNWISE and isinstance(value, torch.Tensor)


def _scored_length(batch: Mapping[str, Any]) -> int:
    # The mask is `input_ids != pad`. Where padding is the end-of-text token,
    # it leaves that token out of the text, too, but a continuation that ends
    # in one is scored up to there.
    used = batch['attention_mask'].any(dim=0).nonzero()
    scored = [indices.flatten() for indices in batch['continuation_indices']]
    return int(torch.cat([used.flatten(), *scored]).max()) + 1


def _n_left_padding(batch: Mapping[str, Any]) -> int:
    # The first column that is not padding; 0, too, if all columns are.
    return int(batch['attention_mask'].any(dim=0).int().argmax())
