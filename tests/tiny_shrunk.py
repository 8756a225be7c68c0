"""Mixtures to shrink, their calibrations, and what Foundry makes of results."""

from typing import Any

import tiny
import torch
from composer.models import ComposerModel
from llmfoundry.utils.builders import build_composer_model

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.checkpoints.mixture import Mixture, weights_id
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.conversion.calibration import Calibration, LayerStatistics

FFN = 'model.transformer.blocks.{}.ffn'


def trained_moe(path: Any, ffn: dict[str, Any] | None = None) -> str:
    """Saves a mixture whose experts and routers differ."""
    return tiny.save_dense(tiny.build_moe(ffn), path)


def save_calibration(moe: str, path: Any, seed: int = 0) -> str:
    """Of a mixture, made up."""
    source = open_checkpoint(moe)
    mixture = Mixture.of(source)
    E = mixture.n_experts
    draw = torch.Generator().manual_seed(seed)

    def statistics() -> LayerStatistics:
        half_EE = torch.randint(50, (E, E), generator=draw)
        load_E = torch.randint(50, 500, (E, ), generator=draw)
        together_EE = half_EE + half_EE.t()
        together_EE[range(E), range(E)] = load_E
        norm_E = load_E * torch.rand(E, generator=draw)
        return LayerStatistics(together_EE.tolist(), norm_E.tolist())

    Calibration(
        model=moe,
        weights=weights_id(source),
        text='made up',
        tokens=1000,
        top_k=mixture.top_k,
        layers={
            layer: statistics()
            for layer in mixture.ffns
        },
    ).write(str(path))
    return str(path)


def load_in_foundry(path: str) -> ComposerModel:
    """The model that a YAML of the checkpoint's config builds, with it."""
    checkpoint = open_checkpoint(path)
    config = nest(checkpoint.model_config)
    section = {
        **{
            key: config[key]
            for key in tiny.DENSE if key in config
        },
        'loss_fn': 'torch_crossentropy',
    }
    is_dense = config['ffn_config']['ffn_type'].startswith('mpt')
    model = build_composer_model(
        'mpt_causal_lm' if is_dense else 'upcycled_mpt',
        section,
        tokenizer=None,
    )
    state = torch.load(path, weights_only=True)['state']['model']
    model.load_state_dict(state)
    return model.eval()


def logits(model: ComposerModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tiny.make_batch()).logits
