"""Runs a mixture of experts on texts, and counts what its experts do.

Shape suffixes: T tokens, D d_model, E experts, K top-k.
"""

import os
from typing import Any, Optional

import torch
from tqdm import tqdm

from foundry_upcycle.checkpoints.mixture import Mixture, weights_id
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.conversion.calibration import Calibration, LayerStatistics
from foundry_upcycle.conversion.save import check_output
from foundry_upcycle.conversion.streamed import streamed_model
from foundry_upcycle.conversion.texts import token_batches
from foundry_upcycle.models.experts import Experts
from foundry_upcycle.models.router import RouterOutput

__all__ = ['calibrate']


@torch.inference_mode()
def calibrate(
    source: str,
    text: str,
    out: str,
    max_tokens: int = 1 << 17,
    tokenizer: Optional[str] = None,
    overwrite: bool = False,
) -> Calibration:
    """Runs a mixture once, in float32, one block in memory at a time.

    Args:
        source: The mixture: a Composer checkpoint or a Hugging Face folder.
        text: See ``token_batches``.
        out: The file to write.
        max_tokens: What comes after them is left out.
        tokenizer: See ``export_hf``.
        overwrite: Whether ``out`` may exist.

    Returns:
        What was written.

    Raises:
        CheckpointError: The source is no mixture, the texts can't be used, or
            ``out`` exists, or is or lies in one of them.
        ConfigError: The source's combine weights do not sum to 1.
        OSError: ``out`` can't be written.
    """
    for path in (source, text):
        check_output(out, path, overwrite, is_file=True)
    checkpoint = open_checkpoint(source)
    mixture = Mixture.of(checkpoint)
    model: Any = streamed_model(checkpoint)
    counters = {layer: _Counter(mixture.n_experts) for layer in mixture.ffns}
    for layer, counter in counters.items():
        experts = model.transformer.blocks[layer].ffn.experts
        experts.register_forward_pre_hook(counter.count)
    n_tokens = 0
    with tqdm(total=max_tokens, unit='token', delay=1) as bar:
        for ids_BT in token_batches(checkpoint, text, max_tokens, tokenizer):
            # The head is not needed.
            model.transformer(input_ids=ids_BT)
            n_tokens += ids_BT.numel()
            bar.update(ids_BT.numel())
    calibration = Calibration(
        model=os.path.abspath(source),
        weights=weights_id(checkpoint),
        text=os.path.abspath(text),
        tokens=n_tokens,
        top_k=mixture.top_k,
        layers={
            layer: counter.statistics()
            for layer, counter in counters.items()
        },
    )
    checkpoint.files.check()
    calibration.write(out)
    return calibration


class _Counter:
    """Adds up what the experts of one layer do."""

    def __init__(self, E: int):
        self._together_EE = torch.zeros(E, E, dtype=torch.float64)
        self._norm_E = torch.zeros(E, dtype=torch.float64)

    def count(self, experts: Experts, inputs: tuple[Any, ...]) -> None:
        """A hook before the experts run, who add up their outputs."""
        x_TD: torch.Tensor = inputs[0]
        routing: RouterOutput = inputs[1]
        T, E = routing.scores_TE.shape
        chosen_TE = torch.zeros(
            T, E, dtype=torch.float64
        ).scatter_(
            1,
            routing.top_experts_TK,
            1,
        )
        self._together_EE += chosen_TE.t() @ chosen_TE
        for expert in range(E):
            token, slot = torch.where(routing.top_experts_TK == expert)
            length = experts.mlp.output(expert, x_TD[token]).norm(dim=-1)
            gate = routing.expert_weights_TK[token, slot]
            self._norm_E[expert] += (length.double() * gate.double()).sum()

    def statistics(self) -> LayerStatistics:
        return LayerStatistics(
            self._together_EE.long().tolist(),
            self._norm_E.tolist(),
        )
