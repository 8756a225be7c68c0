"""The callback in Composer's real trainer, on one rank."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from composer.loggers import InMemoryLogger
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.models.mpt import MPTForCausalLM
from llmfoundry.utils.builders import build_callback
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1

from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    UpcyclingWarning,
)


@pytest.fixture
def source(tmp_path) -> str:
    return tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')


def make_trainer(source: str, *callbacks: Any, moe: Any = None, **kwargs: Any):
    callback = build_callback('sparse_upcycling', {'source_path': source})
    return tiny.make_trainer(
        tiny.build_moe() if moe is None else moe,
        callbacks=[callback, *callbacks],
        **kwargs,
    )


def test_step_0_is_the_dense_model(source: str, capsys):
    trainer = make_trainer(source)
    dense, moe = tiny.build_dense(), trainer.state.model
    batch = tiny.make_batch(size=4)
    with torch.no_grad():
        expected = dense.eval()(batch).logits
        found = moe.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5
    assert expected.abs().max() > 0.5  # The comparison means something.
    summary = capsys.readouterr().out
    assert f'sparse_upcycling: {source} (copy): 0.1M -> 0.5M param' in summary
    assert ' GiB a rank' in summary


@pytest.mark.parametrize('mlp_type', ['glu', 'mlp'])
@pytest.mark.parametrize('K', [1, 3, 8])
def test_step_0_is_exact_for_every_top_k(tmp_path, K: int, mlp_type: str):
    ffn = {
        'ffn_type': f'mpt{mlp_type}',
        'ffn_hidden_size': tiny.HIDDEN,
    }
    dense = tiny.build_dense(ffn_config=dict(ffn), tie_word_embeddings=True)
    trainer = make_trainer(
        tiny.save_dense(dense, tmp_path / 'dense.pt'),
        moe=tiny.build_moe(
            {
                'moe_top_k': K,
                'mlp_type': mlp_type,
                'ffn_act_fn': None,
            },
            tie_word_embeddings=True,
        ),
    )
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = dense.eval()(batch).logits
        found = trainer.state.model.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize('mlp_type', ['glu', 'mlp'])
@pytest.mark.parametrize('moe_layers', [[1], [2, 0]])
def test_step_0_is_exact_where_some_layers_stay_dense(
    tmp_path,
    moe_layers: list[int],
    mlp_type: str,
):
    act = {'name': 'silu'}
    dense = tiny.build_dense(
        ffn_config={
            'ffn_type': f'mpt{mlp_type}',
            'ffn_hidden_size': tiny.HIDDEN,
            'ffn_act_fn': act,
        },
    )
    ffn = {'moe_layers': moe_layers, 'mlp_type': mlp_type, 'ffn_act_fn': act}
    trainer = make_trainer(
        tiny.save_dense(dense, tmp_path / 'dense.pt'),
        moe=tiny.build_moe(ffn),
    )
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = dense.eval()(batch).logits
        found = trainer.state.model.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5
    filled = tiny.full_state(trainer.state.model)
    for name, tensor in dense.state_dict().items():
        layer = name.split('.')[3] if '.ffn.' in name else None
        if layer is None or int(layer) not in moe_layers:
            assert torch.equal(filled[name], tensor), name
    trainer.fit(duration='1ba')


def test_step_0_is_exact_with_biases_beside_the_ffns(tmp_path):
    dense = tiny.build_dense(no_bias=False)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name.endswith('.bias') and '.ffn.' not in name:
                parameter.normal_()
    source = tiny.save_dense(dense, tmp_path / 'dense.pt')
    trainer = make_trainer(source, moe=tiny.build_moe(no_bias=False))
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = dense.eval()(batch).logits
        found = trainer.state.model.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5
    # What experts can't hold is not dropped.
    with torch.no_grad():
        dense.get_parameter('model.transformer.blocks.1.ffn.up_proj.bias'
                           )[0] = 1
    source = tiny.save_dense(dense, tmp_path / 'biased.pt')
    with pytest.raises(CheckpointError,
                       match='1.ffn.up_proj.bias that are not'):
        make_trainer(source, moe=tiny.build_moe(no_bias=False))


def test_torch_dmoe_is_filled_as_well(source: str):
    ffn = {
        'ffn_type': 'torch_dmoe',
        'mlp_type': 'glu',
        'moe_jitter_eps': None,
        'moe_normalize_expert_weights': 1,
        'uniform_expert_assignment': False,
    }
    trainer = make_trainer(source, moe=tiny.build_moe(ffn))
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = tiny.build_dense().eval()(batch).logits
        found = trainer.state.model.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5
    trainer.fit(duration='1ba')


def test_optimizer_starts_fresh(source: str):
    trainer = make_trainer(source)
    assert not trainer.state.optimizers[0].state


def test_another_activation_is_refused(tmp_path):
    source = tiny.train_and_save_dense(tmp_path)
    with pytest.raises(ConfigError, match="ffn_act_fn=.*'relu'}: .*'silu'}"):
        make_trainer(
            source,
            moe=tiny.build_moe({'ffn_act_fn': {
                'name': 'relu',
            }}),
        )


def test_other_models_are_refused(source: str):
    trainer = make_trainer(source)
    trainer.state.model.config = None
    callback = build_callback('sparse_upcycling', {'source_path': source})
    with pytest.raises(ConfigError, match="model.name='ComposerUpcycledMPT': "):
        callback.after_load(trainer.state, trainer.logger)


def test_unnormalised_combine_weights_are_warned_of(source: str):
    with pytest.warns(UserWarning, match='normalize_expert_weights=None: '):
        make_trainer(
            source,
            moe=tiny.build_moe({'moe_normalize_expert_weights': None}),
        )


def test_routers_that_no_loss_on_tokens_reaches_are_warned_of(source: str):
    with pytest.warns(UserWarning, match='moe_top_k=1: .*only moe_loss_weight'):
        make_trainer(source, moe=tiny.build_moe({'moe_top_k': 1}))


def run(source: str, folder: Path, stop: str | None = None) -> tuple:
    """Trains to batch 4, or to ``stop``; resumes what is in ``folder``."""
    log = InMemoryLogger()
    trainer = make_trainer(
        source,
        loggers=[log],
        run_name='run',
        save_folder=str(folder),
        save_interval='1ba',
        autoresume=True,
    )
    trainer.fit(duration=stop)
    trainer.close()
    return tiny.full_state(trainer.state.model), tiny.logged(log, 'loss/train/')


def test_resumed_equals_uninterrupted_and_converts_once(
    source,
    tmp_path,
    capsys,
):
    weights, losses = run(source, tmp_path / 'whole')
    run(source, tmp_path / 'parts', stop='2ba')
    Path(source).unlink()  # Whoever converts again must fail.
    capsys.readouterr()
    resumed_weights, resumed_losses = run(source, tmp_path / 'parts')
    assert 'latest-rank0.pt, upcycled already' in capsys.readouterr().out
    assert weights.keys() == resumed_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, resumed_weights[name]), name
    for name, values in losses.items():
        assert values[2:] == resumed_losses[name]


def test_load_path_as_well_is_refused(source: str, tmp_path):
    mixture = tiny.save_dense(tiny.build_moe(), tmp_path / 'moe.pt')
    with pytest.raises(
            ConfigError,
            match='load_path=.*moe.pt.*save_weights_only.*Fix: remove load_p',
    ):
        make_trainer(source, load_path=mixture, load_weights_only=True)
    # The dense one itself, as if upcycling were a way to load.
    with pytest.raises(CheckpointError, match='lacks 12 .*remove load_path'):
        make_trainer(
            source,
            load_path=source,
            load_weights_only=True,
            load_strict_model_weights=False,
        )


@pytest.mark.parametrize('event', ['before_load', 'fit_start'])
def test_the_callback_load_checkpoint_as_well_is_refused(
    source: str,
    tmp_path,
    event: str,
):
    mixture = tiny.save_dense(tiny.build_moe(), tmp_path / 'moe.pt')
    settings = {'load_path': mixture, 'event': event}
    with pytest.raises(
            ConfigError,
            match='callbacks.load_checkpoint.load_path=.*moe.pt.*Fix: remove',
    ):
        make_trainer(source, build_callback('load_checkpoint', settings))


def test_a_resume_that_names_another_source_says_so(source: str, tmp_path):
    folder = tmp_path / 'run'
    run(source, folder, stop='1ba')
    with pytest.warns(
            UpcyclingWarning,
            match=f"source_path='other.pt': it is not read.*from '{source}'",
    ):
        run('other.pt', folder, stop='1ba')


def test_a_resume_from_weights_alone_is_refused(source: str, tmp_path):
    settings: dict[str, Any] = {
        'run_name': 'run',
        'save_folder': str(tmp_path / 'run'),
        'save_interval': '1ba',
        'save_weights_only': True,
        'autoresume': True,
    }
    make_trainer(source, duration='1ba', **settings).fit()
    with pytest.raises(
            ConfigError,
            match='nothing in it says that sparse_upcycling has run.*save_weig'
            '.*Fix: remove load_path .with autoresume, name another save_fold',
    ):
        make_trainer(source, **settings)


def test_nothing_is_saved_when_the_source_is_bad(tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(CheckpointError, match='no such file'):
        make_trainer(
            str(tmp_path / 'absent.pt'),
            run_name='run',
            save_folder=str(folder),
        )
    assert not list(folder.rglob('*.pt'))


def test_a_mixture_as_source_is_refused(tmp_path):
    source = tiny.save_dense(tiny.build_moe(), tmp_path / 'moe.pt')
    with pytest.raises(CheckpointError, match='mixture of experts already'):
        make_trainer(source)


def test_fsdp1_is_refused(source: str):
    trainer = make_trainer(source)
    callback = build_callback('sparse_upcycling', {'source_path': source})
    # Composer's FSDP1 needs a GPU to start, so only its class is here.
    wrapped = FSDP1.__new__(FSDP1)
    torch.nn.Module.__init__(wrapped)
    trainer.state.model.add_module('wrapped', wrapped)
    with pytest.raises(ConfigError, match='FSDP_VERSION=1: .*FSDP_VERSION=2'):
        callback.after_load(trainer.state, trainer.logger)


@pytest.mark.parametrize(
    'settings,message',
    [
        ({
            'source_path': '',
        }, "source_path='': it names no checkpoint"),
        (
            {
                'recipe': 'copy',
            },
            "recipe='copy': it has no name.*{name: copy}",
        ),
        (
            {
                'recipe': {
                    'name': 'clone',
                },
            },
            r"recipe.name='clone': there is no such recipe.*\['copy'\]",
        ),
        (
            {
                'recipe': {
                    'name': 'copy',
                    'noise': 1,
                },
            },
            'recipe.noise=1: the recipe copy has no such setting',
        ),
        ({
            'recipe': {
                'name': ['copy'],
            },
        }, r"recipe.name=\['copy'\]: there is no such recipe"),
        *(({
            'router_init_std': std,
        }, f'router_init_std={std!r}: .*0.02 is the usual')
          for std in (0, None, True, float('inf'), '0.02', 1e-300)),
        *(({
            'seed': seed,
        }, f'seed={seed!r}: it is not a whole number')
          for seed in (None, True, '17', 1.5)),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str):
    with pytest.raises(
            ConfigError,
            match=f'callbacks.sparse_upcycling.{message}',
    ):
        build_callback('sparse_upcycling', {'source_path': 'x', **settings})


def test_hf_checkpointer_saves_what_stock_foundry_loads(source, tmp_path):
    checkpointer = HuggingFaceCheckpointer(
        save_folder=str(tmp_path / 'hf'),
        save_interval='1dur',
    )
    trainer = make_trainer(source, checkpointer, duration='1ba')
    trainer.fit()
    folder = tmp_path / 'hf' / 'huggingface' / 'ba1'
    stock = MPTForCausalLM.from_pretrained(folder).eval()
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = trainer.state.model.eval()(batch).logits
        found = stock(batch['input_ids']).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert stock.config.ffn_config['ffn_type'] == 'torch_dmoe'
