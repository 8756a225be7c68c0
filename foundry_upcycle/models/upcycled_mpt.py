"""The model class ``upcycled_mpt``: an MPT whose FFNs are experts."""

import copy
import inspect
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Iterator, Mapping, MutableMapping, Sequence, Union

import torch
from llmfoundry.models.layers.layer_builders import build_ffn
from llmfoundry.models.mpt.modeling_mpt import (
    ComposerMPTCausalLM,
    MPTConfig,
    MPTForCausalLM,
    MPTModel,
    compute_loss_from_logits,
)
from llmfoundry.models.utils import init_empty_weights
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.models.batch_top_k import more_flops, set_batch_top_k
from foundry_upcycle.models.ffn import UpcycledDMoE, build_upcycled_dmoe
from foundry_upcycle.models.losses import (
    Losses,
    load_balancing_loss,
    router_z_loss,
)
from foundry_upcycle.models.router import RouterOutput
from foundry_upcycle.models.settings import complete_settings, partial_layers
from foundry_upcycle.planning.top_k import read_top_k

__all__ = [
    'INPUTS',
    'ComposerUpcycledMPT',
    'UpcycledMPTForCausalLM',
    'UpcycledMPTModel',
]

# What an MPT takes of a batch.
INPUTS = (
    'input_ids',
    'attention_mask',
    'sequence_id',
    'inputs_embeds',
    'position_ids',
)


def to_stock_config(config: MPTConfig) -> MPTConfig:
    """``config`` with ``torch_dmoe`` for ``upcycled_dmoe``.

    Stock Foundry computes the same function from the same parameters with it.
    What only training uses (the auxiliary losses) is dropped; of a
    ``moe_top_k`` that varies the largest is kept.

    Raises:
        ConfigError: Only some blocks are mixtures: in stock Foundry all are.
    """
    layers = partial_layers(config)
    if layers is not None:
        raise ConfigError(
            'model.ffn_config.moe_layers',
            [*layers],
            'LLM Foundry without this plugin, for which Hugging Face folders '
            'are saved, has experts in all blocks or in none.',
            'remove hf_checkpointer, and keep this model in Composer '
            'checkpoints; or set moe_layers: null.',
        )
    config = copy.deepcopy(config)
    parameters = inspect.signature(build_upcycled_dmoe).parameters.values()
    ffn = {p.name: p.default for p in parameters} | config.ffn_config
    kept = (
        'fc_type',
        'ffn_hidden_size',
        'ffn_act_fn',
        'mlp_type',
        'moe_num_experts',
        'moe_top_k',
        'moe_normalize_expert_weights',
        'moe_jitter_eps',
    )
    ffn['moe_top_k'] = read_top_k(
        ffn['moe_top_k'],
        ffn['moe_num_experts'],
    ).largest
    config.ffn_config = {
        'ffn_type': 'torch_dmoe',
        'uniform_expert_assignment': False,
        **{
            key: ffn[key]
            for key in kept
        },
    }
    return config


class UpcycledMPTModel(MPTModel):
    """Stock MPT of which only some blocks may be mixtures of experts."""

    def construct_blocks(self, config: MPTConfig) -> nn.ModuleList:
        """All blocks; those that ``moe_layers`` leaves out are dense.

        Sparse Upcycling (arXiv 2212.05055) makes half of the blocks mixtures.
        """
        layers = partial_layers(config)
        config = copy.deepcopy(config)
        ffn = config.ffn_config
        ffn.pop('moe_layers', None)
        if layers is None:
            return super().construct_blocks(config)
        kept = ('ffn_hidden_size', 'ffn_act_fn')
        config.ffn_config = {
            'ffn_type': f"mpt{ffn.get('mlp_type', 'glu')}",
            **{
                key: ffn[key]
                for key in kept if key in ffn
            },
        }
        # Before the blocks, whose errors would be of the dense type.
        mixtures = {
            layer:
            build_ffn(
                name=ffn['ffn_type'],
                d_model=config.d_model,
                expansion_ratio=config.expansion_ratio,
                device=config.init_device,
                bias=not config.no_bias,
                ffn_kwargs=ffn,
            )
            for layer in layers
        }
        blocks = super().construct_blocks(config)
        for layer, mixture in mixtures.items():
            blocks[layer].ffn = mixture
        return blocks


class UpcycledMPTForCausalLM(MPTForCausalLM):
    """MPT whose blocks, or some of them, are mixtures of experts.

    It saves itself so that stock Foundry can load it.
    """

    @property
    def backbone_model_class(self) -> type[MPTModel]:
        return UpcycledMPTModel

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves a Hugging Face folder that needs no plugin to load.

        Foundry's ``hf_checkpointer`` ends here.

        Raises:
            ConfigError: Only some blocks are mixtures.
        """
        if self.config.ffn_config['ffn_type'] != 'upcycled_dmoe':
            super().save_pretrained(save_directory, **kwargs)
            return
        with init_empty_weights():
            stock = MPTForCausalLM(to_stock_config(self.config))
        stock.load_state_dict(self.state_dict(), assign=True)
        stock.generation_config = self.generation_config
        stock.save_pretrained(save_directory, **kwargs)


class ComposerUpcycledMPT(ComposerMPTCausalLM):
    """Foundry's MPT Composer model with mixtures of experts in its blocks.

    Takes the arguments of ``mpt_causal_lm``. ``ffn_config.ffn_type`` is
    ``upcycled_dmoe``, or, for the same parameters computed by others,
    ``mb_dmoe`` (MegaBlocks) or ``torch_dmoe`` (Foundry; no auxiliary loss).
    With ``upcycled_dmoe``, ``ffn_config.moe_layers`` may list the blocks
    (from 0) that are mixtures; the others keep a dense ``mptglu`` or
    ``mptmlp`` of the same hidden size and activation, under MPT's names.

    Where ``ffn_config.moe_top_k`` varies, each training batch's K follows from
    its number and the run's seed, or from how much of the run is done, both
    of which Composer's trainer keeps in its checkpoints.

    Experts hold no biases, whatever ``no_bias`` says of the rest.

    ``loss`` returns a dict: ``total`` (what is minimised), ``loss`` (cross
    entropy), ``lbl`` (load-balancing loss, already weighted) and, where its
    weight is not 0, ``zloss``.

    Raises:
        ConfigError: A setting is unknown, or can't be used.
        CheckpointError: A checkpoint is loaded that lacks FFNs of this model.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**complete_settings(kwargs))
        self.moe_layers: list[UpcycledDMoE] = [
            m for m in self.modules() if isinstance(m, UpcycledDMoE)
        ]
        for layer in self.moe_layers:
            layer.losses_are_collected = True
        if self.moe_layers and self.moe_layers[0].top_k.varies:
            self.register_forward_pre_hook(set_batch_top_k)
        self._routings: list[RouterOutput] = []
        self._has_weights = False
        self.register_load_state_dict_post_hook(_mark_weights_loaded)

    @property
    def model_class(self) -> type[MPTForCausalLM]:
        return UpcycledMPTForCausalLM

    def forward(self, batch: MutableMapping) -> CausalLMOutputWithPast:
        if not self.training:
            return self._outputs(batch)
        self._has_weights = True
        with self._recorded_routing():
            return self._outputs(batch)

    def _outputs(self, batch: MutableMapping) -> CausalLMOutputWithPast:
        if self.config.ffn_config['ffn_type'] == 'mb_dmoe':
            return super().forward(batch)
        # As Foundry's, which asks a registry what kind of FFN it has: on Python
        # 3.12 torch.compile can't trace the entry points there.
        return self.model(**{name: batch.get(name) for name in INPUTS})

    @contextmanager
    def _recorded_routing(self) -> Iterator[None]:
        self._routings = []
        for layer in self.moe_layers:
            layer.routing_sink = self._routings
        try:
            yield
        finally:
            for layer in self.moe_layers:
                layer.routing_sink = None

    def loss(
        self,
        outputs: CausalLMOutputWithPast,
        batch: Mapping,
    ) -> Union[Losses, torch.Tensor]:
        if not self._routings:
            return super().loss(outputs, batch)
        routings, self._routings = self._routings, []
        _check_differentiable(self.moe_layers)
        layer = self.moe_layers[0]  # All have the same settings.
        losses = {
            'loss':
            compute_loss_from_logits(
                outputs,
                self.shift_labels,
                batch['labels'],
                self.loss_fn,
            ),
            'lbl':
            load_balancing_loss(routings, layer.moe_loss_weight),
        }
        if layer.moe_zloss_weight:
            losses['zloss'] = router_z_loss(routings, layer.moe_zloss_weight)
        return Losses(losses)

    def mark_weights_loaded(self) -> None:
        """Says that the parameters are no longer the random initial ones."""
        self._has_weights = True

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        # Foundry's `eval` refuses to run without load_path, but knows only
        # the name `mpt_causal_lm`. A training from scratch may evaluate first.
        if not self._has_weights and not self._is_to_be_trained():
            raise ConfigError(
                'load_path',
                None,
                'upcycled_mpt would be evaluated with random weights: nothing '
                'was loaded, upcycled or trained.',
                'set load_path to a checkpoint of this model, or add the '
                'callback sparse_upcycling.',
            )
        return super().eval_forward(batch, outputs)

    def _is_to_be_trained(self) -> bool:
        # Composer gives the model its logger, which knows the trainer's state.
        state = getattr(self.logger, '_state', None)
        return state is not None and state.train_dataloader is not None

    @cached_property
    def n_active_params(self) -> int:
        """Parameters one token uses; the input embedding excluded if untied.

        Where K varies in training, they are its mean's.

        Foundry's own count takes every expert as active unless MegaBlocks
        built it.
        """
        n_params = super().n_active_params
        if self.config.ffn_config['ffn_type'] == 'mb_dmoe':
            return n_params
        n_expert_params = sum(
            p.numel()
            for name, p in self.named_parameters()
            if '.ffn.experts.' in name
        )
        router: Any = next(
            module for name, module in self.named_modules()
            if name.endswith('.ffn.router')
        )
        layer = next(iter(self.moe_layers), None)
        K = router.moe_top_k if layer is None else layer.top_k.mean
        n_of_one = n_expert_params // router.moe_num_experts
        return n_params - n_expert_params + round(n_of_one * K)

    def flops_per_batch(self, batch: Mapping) -> int:
        """Foundry's, with the K of the last training batch where it varies."""
        flops = super().flops_per_batch(batch)
        # 0 is what Foundry does not count.
        return flops and flops + more_flops(self.moe_layers, batch)


def _mark_weights_loaded(module: ComposerUpcycledMPT, keys: Any) -> None:
    lacking = [key for key in keys.missing_keys if '.ffn.' in key]
    if lacking:
        raise CheckpointError(
            'The checkpoint that is loaded',
            f'it lacks {len(lacking)} tensors of experts, routers or other '
            f'feed-forward layers, such as {lacking[0]}; they would stay '
            'random.',
            'to upcycle a dense checkpoint, remove load_path and set '
            'sparse_upcycling.source_path to it; to go on from a mixture of '
            'experts, load it whole (no load_ignore_keys) with the model '
            'section it was trained with.',
        )
    module.mark_weights_loaded()


def _check_differentiable(layers: Sequence[UpcycledDMoE]) -> None:
    # Reentrant checkpointing runs the first forward without autograd, which
    # would leave the auxiliary losses without a gradient, silently.
    # Any layer can be the one that is checkpointed.
    if torch.is_grad_enabled() and not all(layer.routed_with_grad
                                           for layer in layers):
        raise ConfigError(
            'fsdp_config.activation_checkpointing_reentrant',
            True,
            'the load-balancing loss gets no gradient through reentrant '
            'activation checkpointing.',
            'set it to false.',
        )
