import math

import pytest
import tiny
import torch
from composer import Evaluator, Trainer
from composer.callbacks import NaNMonitor
from composer.loggers import InMemoryLogger
from llmfoundry.callbacks import FDiffMetrics, KillLossSpike
from llmfoundry.models.mpt import MPTForCausalLM
from llmfoundry.utils.builders import build_callback, build_composer_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.data import DataLoader

from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.models.losses import load_balancing_loss


@pytest.mark.parametrize('ffn_type', ['upcycled_dmoe', 'torch_dmoe'])
def test_counts_parameters_and_flops(ffn_type: str):
    ffn = {'ffn_type': ffn_type}
    if ffn_type == 'torch_dmoe':
        ffn.update(
            mlp_type='glu',
            moe_jitter_eps=None,
            moe_normalize_expert_weights=1,
            uniform_expert_assignment=False,
        )
    model = tiny.build_moe(ffn)
    D, F, L, V, S = 64, 96, 3, 128, 32
    # q 64, k and v 2 heads of 16 each; output projection; two norms.
    attention = D * (64 + 2 * 32) + D * D + 2 * D
    router, expert = 8 * D, 3 * D * F
    shared = 2 * V * D + D + L * (attention + router)
    assert model.n_total_params == shared + L * 8 * expert
    # Untied: the input embedding does no multiplication.
    active = shared - V * D + L * 2 * expert
    assert model.n_active_params == active
    batch = tiny.make_batch(size=2)
    assert model.flops_per_batch(batch) == 2 * S * (6 * active + 12 * L * D * S)


def test_loss_is_cross_entropy_plus_weighted_auxiliary_losses():
    model = tiny.build_moe({'moe_loss_weight': 0.5, 'moe_zloss_weight': 0.1})
    model.train()
    batch = tiny.make_batch()
    outputs = model(batch)
    losses = model.loss(outputs, batch)
    logits = outputs.logits[:, :-1].reshape(-1, tiny.VOCAB)
    cross_entropy = torch.nn.functional.cross_entropy(
        logits,
        batch['labels'][:, 1:].reshape(-1),
    )
    torch.testing.assert_close(losses['loss'], cross_entropy)
    assert losses['lbl'] >= 0.5 * 0.9  # Balance gives 0.5, collapse 4.
    torch.testing.assert_close(
        losses['total'],
        losses['loss'] + losses['lbl'] + losses['zloss'],
    )
    losses['total'].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_auxiliary_losses_are_averaged_over_the_layers_of_experts():
    model = tiny.build_moe({
        'moe_layers': [2, 0],
        'moe_loss_weight': 0.5,
        'moe_zloss_weight': 0.1,
    })
    model.train()
    inputs = {}
    for layer in (0, 2):
        router = model.model.transformer.blocks[layer].ffn.router
        router.register_forward_hook(
            lambda module, args, output: inputs.update({module: args[0]}),
        )
    batch = tiny.make_batch()
    losses = model.loss(model(batch), batch)
    assert len(inputs) == 2
    balance, z = [], []
    for router, x_TD in inputs.items():
        logits_TE = x_TD @ router.layer.weight.T
        scores_TE = logits_TE.softmax(-1)
        chosen_TK = scores_TE.topk(2).indices
        shares = [(chosen_TK == e).float().mean() for e in range(8)]
        means_E = scores_TE.mean(0)
        balance.append(8 * sum(s * m for s, m in zip(shares, means_E)))
        z.append(logits_TE.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(losses['lbl'], 0.5 * sum(balance) / 2)
    torch.testing.assert_close(losses['zloss'], 0.1 * sum(z) / 2)


def test_padding_counts_in_the_balancing_loss():
    # As README says.
    model = tiny.build_moe({'moe_loss_weight': 1.0}, n_layers=1)
    model.train()
    seen = []
    model.moe_layers[0].router.register_forward_hook(
        lambda module, args, output: seen.append(output),
    )
    batch = tiny.make_batch()
    batch['input_ids'][:, 8:] = 0
    batch['attention_mask'] = torch.ones(2, tiny.SEQ, dtype=torch.bool)
    batch['attention_mask'][:, 8:] = False
    found = model.loss(model(batch), batch)['lbl']

    def balance(positions: slice) -> torch.Tensor:
        scores_TE = seen[0].scores_TE.view(2, tiny.SEQ, 8)[:, positions]
        chosen_TK = scores_TE.flatten(0, 1).topk(2).indices
        shares_E = chosen_TK.flatten().bincount(minlength=8) / chosen_TK.numel()
        return 8 * (shares_E * scores_TE.mean((0, 1))).sum()

    torch.testing.assert_close(found, balance(slice(None)))
    assert abs(found - balance(slice(8))) > 0.01


def test_auxiliary_loss_is_that_of_the_last_forward():
    # A microbatch balances its own tokens: nothing is left from another one,
    # nor from a forward without a loss.
    model = tiny.build_moe()
    model.train()
    first, second = tiny.make_batch(1), tiny.make_batch(2)
    alone = model.loss(model(second), second)
    model(first)
    after = model.loss(model(second), second)
    assert torch.equal(alone['lbl'], after['lbl'])


def test_evaluation_has_no_auxiliary_loss():
    model = tiny.build_moe()
    model.eval()
    batch = tiny.make_batch()
    assert isinstance(model.loss(model(batch), batch), torch.Tensor)


def losses_and_gradients(model) -> tuple[dict, dict]:
    model.train()
    batch = tiny.make_batch()
    losses = model.loss(model(batch), batch)
    losses['total'].backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    return losses, gradients


def checkpointed(model, implementation: CheckpointImpl, first: int = 0):
    blocks = model.model.transformer.blocks[first:]
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=lambda m: checkpoint_wrapper(m, implementation),
        check_fn=lambda m: any(m is block for block in blocks),
    )
    return model


def test_activation_checkpointing_changes_nothing():
    plain = losses_and_gradients(tiny.build_moe())
    again = losses_and_gradients(
        checkpointed(tiny.build_moe(), CheckpointImpl.NO_REENTRANT),
    )
    assert plain[0].keys() == again[0].keys()
    for name, loss in plain[0].items():
        assert torch.equal(loss, again[0][name])
    for a, b in zip(plain[1].values(), again[1].values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('first', [0, 2])
def test_reentrant_checkpointing_is_refused(first: int):
    model = checkpointed(tiny.build_moe(), CheckpointImpl.REENTRANT, first)
    with pytest.raises(
            ConfigError,
            match=
            'activation_checkpointing_reentrant=True: .*Fix: set it to false',
    ):
        losses_and_gradients(model)


def test_trainer_logs_each_loss_per_microbatch_average():
    log = InMemoryLogger()
    model = tiny.build_moe()
    samples = tiny.make_samples(8)
    before = tiny.build_moe()  # The same weights.
    trainer = tiny.make_trainer(
        model,
        samples,
        batch_size=8,
        duration='1ba',
        device_train_microbatch_size=4,
        loggers=[log],
    )
    trainer.fit()
    trainer.close()
    expected = []
    for start in (0, 4):
        batch = {
            k: torch.stack([s[k]
                            for s in samples[start:start + 4]])
            for k in samples[0]
        }
        before.train()
        expected.append(before.loss(before(batch), batch))
    for name in ('total', 'loss', 'lbl'):
        logged = log.data[f'loss/train/{name}'][0][1]
        mean = sum(e[name] for e in expected) / 2
        torch.testing.assert_close(torch.tensor(float(logged)), mean.detach())


@pytest.mark.parametrize(
    'without',
    ['.ffn.', '.router.', 'blocks.2.ffn.experts.mlp.v1'],
)
@pytest.mark.parametrize('strict', [True, False])
def test_a_load_that_leaves_ffns_random_is_refused(without: str, strict: bool):
    state = tiny.build_moe(seed=5).state_dict()
    kept = {n: t for n, t in state.items() if without not in n}
    n, first = len(state) - len(kept), next(n for n in state if without in n)
    with pytest.raises(
            CheckpointError,
            match=f'it lacks {n} tensors .*such as {first}; they would stay '
            'random.*set sparse_upcycling.source_path',
    ):
        tiny.build_moe().load_state_dict(kept, strict=strict)


def test_dense_blocks_that_a_mixture_lacks_are_not_left_random():
    state = tiny.build_moe().state_dict()
    model = tiny.build_moe({'moe_layers': [1]})
    with pytest.raises(CheckpointError, match='lacks 6 tensors .*up_proj'):
        model.load_state_dict(state, strict=False)


def test_evaluation_of_random_weights_is_refused():
    model = tiny.build_moe()
    model.eval()
    batch = tiny.make_batch()
    with pytest.raises(ConfigError, match='load_path=None: .*random weights'):
        model.eval_forward(batch)
    model.load_state_dict(model.state_dict())
    assert model.eval_forward(batch).shape[-1] == tiny.VOCAB


def test_a_training_from_scratch_may_evaluate_first():
    evaluator = Evaluator(
        label='eval',
        dataloader=DataLoader(tiny.make_samples(2), batch_size=2),
        metric_names=['LanguageCrossEntropy'],
    )
    # As Foundry does where eval_first is set.
    trainer = tiny.make_trainer(tiny.build_moe(), eval_dataloader=evaluator)
    trainer.eval()
    first = trainer.state.eval_metric_values['LanguageCrossEntropy']
    assert abs(float(first) - math.log(tiny.VOCAB)) < 0.5  # Of random weights.
    alone = Trainer(model=tiny.build_moe(), device='cpu', precision='fp32')
    with pytest.raises(ConfigError, match='load_path=None: .*random weights'):
        alone.eval(eval_dataloader=evaluator)


@pytest.mark.parametrize('setting', ['requires_grad', 'layer_freezing'])
def test_frozen_parameters_train_on(setting: str):
    # All that a router's scores depend on, so that they need no gradient.
    model = tiny.build_moe()
    last = 'model.transformer.norm_f.weight'
    frozen = [n for n, _ in model.named_parameters() if n != last][:-1]
    callbacks = []
    if setting == 'layer_freezing':
        callbacks = [build_callback(setting, {'layer_names': frozen})]
    else:
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
    before = tiny.full_state(model)
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        model,
        callbacks=callbacks,
        loggers=[log],
        duration='2ba',
    )
    trainer.fit()
    after = tiny.full_state(model)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed == [last, 'model.lm_head.weight']
    [balance] = tiny.logged(log, 'loss/train/lbl').values()
    assert min(balance) > 0


def test_losses_pass_for_the_tensor_that_stock_callbacks_take():
    log = InMemoryLogger()
    spikes = KillLossSpike(window_size=4)
    trainer = tiny.make_trainer(
        tiny.build_moe(),
        duration='3ba',
        device_train_microbatch_size=1,
        callbacks=[spikes,
                   FDiffMetrics(diff_train_metrics=True),
                   NaNMonitor()],
        loggers=[log],
    )
    trainer.fit()
    # Of the last microbatch of each batch, as of a plain tensor.
    seen = list(spikes.loss_window)
    totals = tiny.logged(log, 'loss/train/total')['loss/train/total']
    assert all(abs(s - t) < 0.5 for s, t in zip(seen, totals, strict=True))
    assert log.data['loss/train/lbl'] and isinstance(trainer.state.loss, dict)
    [differences] = tiny.logged(log, 'loss/train/total_fdiff').values()
    assert differences == pytest.approx([
        seen[1] - seen[0],
        seen[2] - seen[1],
    ])


def test_a_nan_among_the_losses_stops_a_run_with_nan_monitor():
    model = tiny.build_moe()
    with torch.no_grad():
        model.moe_layers[1].router.layer.weight[0, 0] = torch.nan
    trainer = tiny.make_trainer(model, callbacks=[NaNMonitor()])
    with pytest.raises(RuntimeError, match='Train loss contains a NaN'):
        trainer.fit()


def test_torch_dmoe_needs_no_more_keys_than_upcycled_dmoe():
    ffn = {'ffn_type': 'torch_dmoe', 'ffn_hidden_size': tiny.HIDDEN}
    theirs = tiny.build_moe({'ffn_type': 'torch_dmoe'})
    ours = tiny.build_moe()
    theirs.load_state_dict(ours.state_dict())
    batch = tiny.make_batch()
    torch.testing.assert_close(
        theirs.eval()(batch).logits,
        ours.eval()(batch).logits,
    )
    with_defaults = build_composer_model(
        'upcycled_mpt',
        tiny.dense_config(ffn_config=ffn),
        tokenizer=None,
    )
    assert shapes(with_defaults) == shapes(ours)


def test_top_k_may_change_between_training_and_evaluation():
    trained = tiny.build_moe({'moe_top_k': 2})
    wider = tiny.build_moe({'moe_top_k': 4}, seed=5)
    wider.load_state_dict(trained.state_dict(), strict=True)
    assert wider.moe_layers[0].router.moe_top_k == 4
    assert wider.n_total_params == trained.n_total_params
    assert wider.n_active_params > trained.n_active_params


def test_saved_hugging_face_folder_needs_no_plugin(tmp_path):
    model = tiny.build_moe()
    model.eval()
    model.model.save_pretrained(tmp_path)
    stock = MPTForCausalLM.from_pretrained(tmp_path)
    stock.eval()
    assert stock.config.ffn_config['ffn_type'] == 'torch_dmoe'
    batch = tiny.make_batch()
    torch.testing.assert_close(
        stock(batch['input_ids']).logits,
        model(batch).logits,
        atol=1e-5,
        rtol=0,
    )
    # The model itself is as it was.
    assert model.config.ffn_config['ffn_type'] == 'upcycled_dmoe'


def test_some_layers_of_experts_are_not_saved_for_stock_foundry(tmp_path):
    model = tiny.build_moe({'moe_layers': [1]})
    with pytest.raises(
            ConfigError,
            match=r'model.ffn_config.moe_layers=\[1\]: .*without this plugin'
            '.*Fix: remove hf_checkpointer',
    ):
        model.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_stock_foundrys_model_has_experts_in_all_layers():
    with pytest.raises(
            ConfigError,
            match=r'moe_layers=\[1\]: every block .*set model.name: upcycled_m',
    ):
        build_composer_model(
            'mpt_causal_lm',
            tiny.moe_config({'moe_layers': [1]}),
            tokenizer=None,
        )


def shapes(model) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


@pytest.mark.parametrize('mlp_type', ['glu', 'mlp'])
def test_blocks_that_are_not_listed_are_those_of_a_dense_mpt(mlp_type: str):
    ffn = {'ffn_type': f'mpt{mlp_type}', 'ffn_hidden_size': tiny.HIDDEN}
    dense = shapes(tiny.build_dense(ffn_config=ffn))
    full = shapes(tiny.build_moe({'mlp_type': mlp_type}))
    model = tiny.build_moe({'mlp_type': mlp_type, 'moe_layers': [2, 0]})
    expected = {n: s for n, s in full.items() if '.blocks.1.ffn.' not in n}
    expected |= {n: s for n, s in dense.items() if '.blocks.1.ffn.' in n}
    assert shapes(model) == expected
    assert len(model.moe_layers) == 2
    assert model.config.ffn_config['moe_layers'] == [2, 0]


def test_a_list_of_all_layers_is_all_layers(tmp_path):
    model = tiny.build_moe({'moe_layers': [2, 1, 0]})
    reference = tiny.build_moe().state_dict()
    assert model.state_dict().keys() == reference.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference[name]), name
    model.model.save_pretrained(tmp_path)


def test_dense_blocks_are_initialised_as_in_a_dense_mpt():
    dense = tiny.build_dense(n_layers=2, d_model=256)
    model = tiny.build_moe({'moe_layers': [1]}, n_layers=2, d_model=256)
    reference = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        if '.blocks.0.ffn.' in name:
            ratio = parameter.std() / reference[name].std()
            assert 0.95 < ratio < 1.05, name


def test_activation_checkpointing_of_some_layers_of_experts():
    ffn = {'moe_layers': [1]}
    plain = losses_and_gradients(tiny.build_moe(ffn))
    again = losses_and_gradients(
        checkpointed(tiny.build_moe(ffn), CheckpointImpl.NO_REENTRANT),
    )
    for name, loss in plain[0].items():
        assert torch.equal(loss, again[0][name])


@pytest.mark.parametrize('moe_layers', [None, [1]])
def test_meta_initialisation_reaches_every_parameter(moe_layers):
    ffn = {'moe_layers': moe_layers}
    meta = build_composer_model(
        'upcycled_mpt',
        tiny.moe_config(ffn, init_device='meta'),
        tokenizer=None,
    )
    assert all(p.is_meta for p in meta.parameters())
    meta.to_empty(device='cpu')
    with torch.no_grad():
        for parameter in meta.parameters():
            parameter.fill_(torch.nan)
    meta.apply(meta.model.param_init_fn)
    assert all(p.isfinite().all() for p in meta.parameters())
    reference = dict(tiny.build_moe(ffn).named_parameters())
    for name, parameter in meta.named_parameters():
        # Foundry leaves lm_head at torch's default where it is not on meta.
        if parameter.ndim == 2 and 'lm_head' not in name:
            ratio = parameter.std() / reference[name].std()
            assert 0.9 < ratio < 1.1, name


@pytest.mark.parametrize(
    'config,message',
    [
        (
            tiny.dense_config(),
            "model.ffn_config.ffn_type='mptglu': .*upcycled_dmoe",
        ),
        (
            tiny.moe_config({'ffn_type': 'mb_dmoe'}),
            "ffn_type='mb_dmoe': MegaBlocks is not installed",
        ),
        (
            tiny.moe_config({
                'ffn_type': 'torch_dmoe',
                'moe_loss_weight': 0.01,
            }),
            'moe_loss_weight=0.01: .*torch_dmoe, and it has no such.*remove it',
        ),
        (
            tiny.moe_config({
                'ffn_type': 'torch_dmoe',
                'moe_top_k': 9,
            }),
            'moe_top_k=9: .*a number from 1 to moe_num_experts=8',
        ),
        (
            tiny.moe_config() | {
                'ffn_config': 'upcycled_dmoe',
            },
            "model.ffn_config='upcycled_dmoe': it is not a section",
        ),
        # Nothing would read them, and the model would be another one.
        (
            tiny.moe_config(pretrained=True),
            'model.pretrained=True: .* no such setting. Fix: remove it; weigh',
        ),
        (
            tiny.moe_config(moe_num_experts=4),
            'model.moe_num_experts=4: .*write it into model.ffn_config.moe_num',
        ),
        (
            tiny.moe_config({
                'ffn_type': 'torch_dmoe',
                'moe_layers': [1],
            }),
            r'moe_layers=\[1\]: torch_dmoe is .*Fix: set ffn_type: upcycled_dm',
        ),
        (
            tiny.moe_config({'moe_layers': '1,2'}),
            "moe_layers='1,2': it is not a list of whole numbers.*Fix: list the",
        ),
        (
            tiny.moe_config({'moe_layers': [True]}),
            r'moe_layers=\[True\]: it is not a list of whole numbers',
        ),
        (
            tiny.moe_config({'moe_layers': []}),
            r'moe_layers=\[\]: no block would be a mixture.*null for all',
        ),
        (
            tiny.moe_config({'moe_layers': [1, 1]}),
            r'moe_layers=\[1, 1\]: a block is named twice',
        ),
        (
            tiny.moe_config({'moe_layers': [0, 3]}),
            r'moe_layers=\[0, 3\]: the model has blocks 0 to 2',
        ),
        (
            tiny.moe_config({'moe_layers': [-1]}),
            r'moe_layers=\[-1\]: the model has blocks 0 to 2',
        ),
        (
            tiny.moe_config({
                'moe_layers': [1],
                'mlp_type': 'swiglu',
            }),
            "model.ffn_config.mlp_type='swiglu': upcycled_dmoe cannot use it",
        ),
    ],
)
def test_unusable_model_settings_are_refused(config: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build_composer_model('upcycled_mpt', config, tokenizer=None)


def test_biases_are_kept_beside_experts_and_trained():
    model = tiny.build_moe({'moe_layers': [0, 2]}, no_bias=False)
    biases = {n for n, _ in model.named_parameters() if n.endswith('.bias')}
    block = 'model.transformer.blocks.{}.'
    for layer, of_ffn in ((0, []), (1, ['gate', 'up', 'down'])):
        start = block.format(layer)
        of_layer = {n for n in biases if n.startswith(start)}
        ffn = {f'{start}ffn.{name}_proj.bias' for name in of_ffn}
        assert of_layer == ffn | {
            f'{start}attn.Wqkv.bias',
            f'{start}attn.out_proj.bias',
        }
    losses, gradients = losses_and_gradients(model)
    assert losses['lbl'] > 0 and all(g is not None for g in gradients.values())


def test_qkv_biases_stay():
    model = tiny.build_moe(attention_bias=True)
    assert model.model.transformer.blocks[0].attn.Wqkv.bias is not None


def test_loss_of_one_layer_matches_the_layer():
    model = tiny.build_moe(n_layers=1)
    model.train()
    seen = []
    model.moe_layers[0].router.register_forward_hook(
        lambda module, args, output: seen.append(output),
    )
    batch = tiny.make_batch()
    losses = model.loss(model(batch), batch)
    assert torch.equal(losses['lbl'], load_balancing_loss(seen, 0.01))
