"""Two ranks equal one; sharded equals whole; resumed equals uninterrupted."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from composer import Callback
from composer.loggers import InMemoryLogger
from distributed.worker import SEED, VARYING
from llmfoundry.models.mpt import MPTForCausalLM
from llmfoundry.utils.builders import build_algorithm, build_callback
from two_ranks import run_on_two_ranks

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.planning.top_k import read_top_k

WORKER = Path(__file__).with_name('worker.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """What two ranks left behind."""
    folder = tmp_path_factory.mktemp('two_ranks')
    dense = tiny.save_dense(tiny.build_dense(), folder / 'dense.pt')
    export_hf(dense, str(folder / 'llama'))
    convert(UpcyclingConfig(dense), str(folder / 'moe'), 'dcp')
    tiny.save_dense(tiny.build_moe(seed=5), folder / 'teacher.pt')
    run_on_two_ranks(WORKER, folder)
    return folder


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def upcycle_on_one_rank(
    source: Path,
    ffn: dict | None = None,
    *callbacks: Callback,
    **kwargs,
):
    callback = build_callback('sparse_upcycling', {'source_path': str(source)})
    return tiny.make_trainer(
        tiny.build_moe(ffn),
        callbacks=[callback, *callbacks],
        **kwargs,
    )


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    'name,source,ffn',
    [
        ('ddp_from_pt', 'dense.pt', None),
        ('fsdp_from_pt', 'dense.pt', None),
        ('fsdp_from_sharded', 'dense/ep0-ba1', None),
        (
            'fsdp_odd',
            'odd/ep0-ba1',
            {
                'moe_num_experts': 3,
                'ffn_hidden_size': 95,
            },
        ),
        ('fsdp_some_layers', 'dense/ep0-ba1', {
            'moe_layers': [1],
        }),
        ('ddp_from_uri', 'dense.pt', None),
        ('fsdp_from_uri', 'dense/ep0-ba1', None),
        ('fsdp_from_hf', 'dense.pt', None),
        ('fsdp_from_hf_uri', 'dense.pt', None),
        ('fsdp_from_dcp', 'dense.pt', None),
    ],
)
def test_weights_are_bit_for_bit_those_of_one_rank(
    folder: Path,
    name: str,
    source: str,
    ffn: dict | None,
):
    trainer = upcycle_on_one_rank(folder / source, ffn)
    expected = tiny.full_state(trainer.state.model)
    assert_equal(load(folder / f'{name}.state'), expected)


def test_sharded_source_holds_the_trained_dense_model(folder: Path):
    # Guards the test above: both sides there read the same shards.
    dense = load(folder / 'dense_sharded.state')
    moe = load(folder / 'fsdp_from_sharded.state')
    prefix = 'model.transformer.blocks.1.ffn'
    up = dense[f'{prefix}.up_proj.weight']
    down = dense[f'{prefix}.down_proj.weight']
    v1 = moe[f'{prefix}.experts.mlp.v1'].view(8, *up.shape)
    w2 = moe[f'{prefix}.experts.mlp.w2'].view(8, *down.t().shape)
    assert torch.equal(v1, up.expand_as(v1))
    assert torch.equal(w2, down.t().expand_as(w2))
    untrained = tiny.build_dense().state_dict()[f'{prefix}.up_proj.weight']
    assert not torch.equal(up, untrained)


def as_one_rank() -> dict[str, Any]:
    """Settings with which one rank computes what two do.

    Rank r takes samples r, r + 2, ...; a microbatch takes the place of a
    rank, because the load-balancing loss is of a rank's or microbatch's own
    tokens.
    """
    samples = tiny.make_samples(16)
    ordered = []
    for start in range(0, len(samples), 4):
        of_batch = samples[start:start + 4]
        ordered += of_batch[0::2] + of_batch[1::2]
    return {
        'samples': ordered,
        'batch_size': 4,
        'device_train_microbatch_size': 2,
    }


@pytest.fixture(scope='module')
def on_one_rank(folder: Path) -> tuple[dict, dict, dict]:
    """Losses, weights and router metrics of one rank that sees the same."""
    log = InMemoryLogger()
    trainer = upcycle_on_one_rank(
        folder / 'dense.pt',
        None,
        build_callback('router_monitor', {'interval': '1ba'}),
        loggers=[log],
        **as_one_rank(),
    )
    trainer.fit()
    trainer.close()
    return (
        tiny.logged(log, 'loss/train/'),
        tiny.full_state(trainer.state.model),
        tiny.logged(log, 'router/'),
    )


@pytest.mark.parametrize('name', ['ddp', 'fsdp', 'fsdp_checkpointed'])
def test_training_is_that_of_one_rank(folder: Path, on_one_rank, name: str):
    losses, weights, routers = on_one_rank
    found = load(folder / f'{name}.losses')
    assert found.keys() == losses.keys()
    for key, values in losses.items():
        assert len(values) == 4
        for a, b in zip(values, found[key], strict=True):
            assert abs(a - b) <= 1e-5, key
    for key, weight in load(folder / f'{name}.trained').items():
        key = key.replace('_checkpoint_wrapped_module.', '')
        torch.testing.assert_close(weight, weights[key], atol=1e-5, rtol=0)
    found = load(folder / f'{name}.routers')
    assert found.keys() == routers.keys()
    for key, values in routers.items():
        assert values == pytest.approx(found[key], abs=1e-4), key


@pytest.mark.parametrize('name', ['ddp', 'fsdp'])
def test_hugging_face_folder_holds_the_trained_model(folder: Path, name: str):
    stock = MPTForCausalLM.from_pretrained(
        folder / f'{name}_hf' / 'huggingface' / 'ba4',
    )
    trained = load(folder / f'{name}.trained')
    for key, weight in stock.state_dict().items():
        assert torch.equal(weight, trained[f'model.{key}']), key


def test_resumed_equals_uninterrupted(folder: Path):
    # The source was gone by then: the resumed run did not convert.
    uninterrupted = load(folder / 'fsdp.losses')
    for name, values in load(folder / 'resumed.losses').items():
        assert values == uninterrupted[name][2:]
    assert_equal(
        load(folder / 'resumed.trained'),
        load(folder / 'fsdp.trained'),
    )


def test_a_k_that_varies_is_that_of_one_rank_and_goes_on(folder: Path):
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        tiny.build_moe(VARYING),
        seed=SEED,
        loggers=[log],
        **as_one_rank(),
    )
    trainer.fit()
    trainer.close()
    whole = load(folder / 'varying.losses')
    first = load(folder / 'varying_first.losses')
    resumed = load(folder / 'varying_resumed.losses')
    for name, values in tiny.logged(log, 'loss/train/').items():
        assert whole[name] == pytest.approx(values, abs=1e-5), name
        assert first[name] + resumed[name] == whole[name], name
    # Whose probabilities sharded checkpoints keep as entries of their own.
    reader = open_checkpoint(str(folder / 'varying' / 'ep0-ba4'))
    saved = reader.model_config['ffn_config.moe_top_k']
    assert read_top_k(saved, 8) == read_top_k(VARYING['moe_top_k'], 8)


def test_a_distilled_run_is_that_of_one_rank_and_goes_on(folder: Path):
    log = InMemoryLogger()
    teacher = {'teacher': str(folder / 'teacher.pt')}
    trainer = tiny.make_trainer(
        tiny.build_moe(),
        algorithms=[build_algorithm('upcycle_distill', teacher)],
        loggers=[log],
        **as_one_rank(),
    )
    trainer.fit()
    trainer.close()
    losses = tiny.logged(log, 'loss/train/')
    whole = load(folder / 'distilled_ddp.losses')
    first = load(folder / 'distilled_first.losses')
    resumed = load(folder / 'distilled_resumed.losses')
    assert {'loss/train/kl', 'loss/train/lbl'} <= losses.keys()
    for name, values in losses.items():
        assert whole[name] == pytest.approx(values, abs=1e-5), name
        sharded = first[name] + resumed[name]
        assert sharded == pytest.approx(values, abs=1e-5), name
    weights = tiny.full_state(trainer.state.model)
    for name in ('distilled_ddp', 'distilled_resumed'):
        for key, weight in load(folder / f'{name}.trained').items():
            torch.testing.assert_close(weight, weights[key], atol=1e-5, rtol=0)


def test_sharded_source_carries_its_config(folder: Path):
    reader = open_checkpoint(str(folder / 'dense' / 'ep0-ba1'))
    assert reader.model_config['attn_config.kv_n_heads'] == 2
    assert reader.model_config['ffn_config.ffn_act_fn.name'] == 'silu'


def test_moe_sharded_on_two_ranks_loads_on_one(folder: Path):
    reader = open_checkpoint(str(folder / 'run' / 'ep0-ba4'))
    for name, tensor in load(folder / 'resumed.trained').items():
        assert torch.equal(reader.read(name, 0, 0, tensor.shape[0]), tensor)


def test_an_error_on_one_rank_stops_both(folder: Path):
    assert 'absent.pt: there is no such file' in (folder /
                                                  'error_1').read_text()
    assert 'rank 1: ' in (folder / 'error_0').read_text()


def test_tensor_parallel_parameters_are_refused(folder: Path):
    message = (folder / 'tensor_0').read_text()
    assert message.startswith("tp_config='weight: ")
    assert 'without tensor parallelism' in message


def test_a_failed_download_stops_both(folder: Path):
    for rank, message in ((0, 'absent.pt: it could not'), (1, 'rank 0: ')):
        assert message in (folder / f'download_{rank}').read_text()


def test_hybrid_sharding_is_understood(folder: Path):
    # First rows on meshes of 1 x 2 and 2 x 1.
    assert (folder / 'hybrid_0').read_text() == '[0, 0]'
    assert (folder / 'hybrid_1').read_text() == '[3, 0]'
