"""A transformers model in memory, upcycled there."""

from typing import Any, Mapping, Optional, Sequence

import torch
from accelerate import init_empty_weights
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from foundry_upcycle.checkpoints.base import Checkpoint, TensorInfo
from foundry_upcycle.checkpoints.huggingface.export import ExportedCheckpoint
from foundry_upcycle.checkpoints.huggingface.model import HuggingFaceModel
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import as_mixture

__all__ = ['upcycle']


class _ModelInMemory(HuggingFaceModel):
    """A ``Checkpoint`` of a transformers model's own tensors."""
    described_by = 'its config'
    repair = 'make its config that of its weights.'

    def __init__(self, model: PreTrainedModel):
        self._state = model.state_dict()
        infos = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._state.items()
        }
        name = type(model).__name__
        super().__init__(name, model.config.to_dict(), infos)

    def _read_stored(
        self,
        name: str,
        dim: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        return self._state[name].narrow(dim, start, stop - start).cpu()


def upcycle(
    model: PreTrainedModel,
    moe_num_experts: int = 8,
    moe_top_k: int = 2,
    moe_layers: Optional[Sequence[int]] = None,
    recipe: Mapping[str, Any] = {'name': 'copy'},  # noqa: B006
    router_init_std: float = UpcyclingConfig.router_init_std,
    seed: int = UpcyclingConfig.seed,
) -> PreTrainedModel:
    """The mixture of experts that a dense transformers model becomes.

    It is what ``convert`` and ``export_hf`` would write, and computes the same
    function until it is trained.

    Args:
        model: A dense causal language model of an architecture that
            ``import_hf`` takes. It stays as it is.
        moe_num_experts: Experts E of each layer.
        moe_top_k: Experts K a token goes to.
        moe_layers: Layers that become mixtures, from 0; None: all of them.
        recipe: ``name`` of a recipe and its settings.
        router_init_std: Standard deviation of the routers' initial weights.
        seed: Of whatever is drawn.

    Returns:
        A Mixtral, Qwen2-MoE or Qwen3-MoE on the model's device, with its
        generation config, in its mode (training or evaluation).

    Raises:
        CheckpointError: The model's tensors are not those of its config, or it
            is a mixture already.
        ConfigError: A setting can't be used, or MPT or the mixture's
            architecture can't express the model.
    """
    dense = _ModelInMemory(model)
    config = UpcyclingConfig(dense.path, recipe, router_init_std, seed)
    mixture = ExportedCheckpoint(
        as_mixture(
            dense,
            config,
            moe_num_experts,
            moe_top_k,
            moe_layers=moe_layers,
        ),
        like=model.config.to_dict(),
    )
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**mixture.config),
        )
    state = {name: _copy(mixture, name) for name in mixture.tensors}
    empty.load_state_dict(state, strict=False, assign=True)
    empty.tie_weights()
    empty.generation_config = model.generation_config
    return empty.to(model.device).train(model.training)


def _copy(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    n_rows = checkpoint.tensors[name].shape[0]
    rows = checkpoint.read(name, 0, 0, n_rows)
    # What is read may be the dense model's own, and be transposed.
    return rows.clone(memory_format=torch.contiguous_format)
