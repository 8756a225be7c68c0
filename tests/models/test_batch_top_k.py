"""A run whose K varies by batch is the one in which each K is set by hand."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from composer import Callback, Logger, State, Timestamp
from composer.callbacks import SpeedMonitor
from composer.loggers import InMemoryLogger
from llmfoundry.utils.builders import build_callback, build_composer_model
from models.backends import ALL

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.flops import ModelShape

SAMPLE = {'sample': {1: 0.5, 2: 0.25, 3: 0.25}}
UNTIL = {'until': {'0.5dur': 3, '0.75dur': 2, '1dur': 1}}
# Of seed 3, and by half and three quarters of 4 batches.
DRAWN, SCHEDULED = [2, 1, 1, 3], [3, 3, 2, 1]


class ByHand(Callback):
    """Sets a K of its own in all routers, for each batch."""

    def __init__(self, top_k: list[int]):
        self.top_k = top_k

    def batch_start(self, state: State, logger: Logger) -> None:
        for module in state.model.modules():
            if hasattr(module, 'training_top_k'):
                module.training_top_k = self.top_k[state.timestamp.batch.value]


def run(ffn: dict[str, Any], *callbacks: Callback, **kwargs: Any) -> Any:
    """What a run logs, and its trained weights."""
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        tiny.build_moe(ffn),
        seed=3,
        callbacks=[
            build_callback('router_monitor', {'interval': '1ba'}),
            *callbacks,
        ],
        loggers=[log],
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    logged = {
        **tiny.logged(log, 'loss/train/'),
        **tiny.logged(log, 'router/'),
    }
    return logged, tiny.full_state(trainer.state.model)


def assert_same(first: Any, second: Any) -> None:
    assert first[0].keys() == second[0].keys()
    for key, values in first[0].items():
        assert second[0][key] == pytest.approx(values, rel=1e-5), key
    for key, tensor in first[1].items():
        torch.testing.assert_close(second[1][key], tensor, msg=key)


@pytest.mark.parametrize(
    'top_k,by_hand',
    [(SAMPLE, DRAWN), (UNTIL, SCHEDULED)],
)
@pytest.mark.parametrize('backend', ALL)
def test_each_batch_has_its_k(backend: str, top_k: Any, by_hand: list[int]):
    varying = run({'backend': backend, 'moe_top_k': top_k})
    fixed = {'backend': backend, 'moe_top_k': 3}
    assert_same(varying, run(fixed, ByHand(by_hand)))
    # The comparison means something.
    assert varying[0]['loss/train/total'] != pytest.approx(
        run(fixed)[0]['loss/train/total'],
        rel=1e-5,
    )


@pytest.mark.parametrize(
    'settings',
    [
        {
            'device_train_microbatch_size': 2
        },
        {
            'compile_config': {
                'backend': 'aot_eager'
            }
        },
        # Shares of the run, by other counts of its batches.
        {
            'duration': '1ep'
        },
        {
            'duration': f'{16 * tiny.SEQ}tok'
        },
    ],
)
def test_by_schedule_in_any_run(settings: dict[str, Any]):
    varying = run({'moe_top_k': UNTIL}, **settings)
    of_batches = {k: v for k, v in settings.items() if k != 'duration'}
    by_hand = run({'moe_top_k': 3}, ByHand(SCHEDULED), **of_batches)
    assert_same(varying, by_hand)


def test_resumed_is_uninterrupted(tmp_path: Path):
    ffn = {'moe_top_k': SAMPLE}
    whole = run(ffn)
    settings = {
        'run_name': 'run',
        'autoresume': True,
        'save_folder': str(tmp_path),
        'save_interval': '1ba',
    }
    first = run(ffn, duration='2ba', **settings)
    resumed = run(ffn, **settings)
    for key, values in first[0].items():
        if key.startswith('loss/'):
            assert values + resumed[0][key] == whole[0][key]
    for key, tensor in whole[1].items():
        assert torch.equal(resumed[1][key], tensor), key


def test_all_but_training_uses_the_largest():
    trainer = tiny.make_trainer(tiny.build_moe({'moe_top_k': UNTIL}))
    trainer.fit()  # Its last K is 1.
    model, batch = trainer.state.model, tiny.make_batch()
    widest = tiny.build_moe({'moe_top_k': 3})
    widest.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = widest.eval()(batch).logits
        # Generation goes past the Composer model.
        for each in (model.eval(), model.model):
            torch.testing.assert_close(
                each(**batch).logits
                if each is model.model else each(batch).logits, expected
            )


def test_step_0_is_exact_for_every_k_that_occurs(tmp_path: Path):
    dense = tiny.build_dense()
    source = tiny.save_dense(dense, tmp_path / 'dense.pt')
    callback = build_callback('sparse_upcycling', {'source_path': source})
    model = tiny.build_moe({'moe_top_k': SAMPLE})
    trainer = tiny.make_trainer(model, callbacks=[callback], seed=3)
    batch, seen = tiny.make_batch(), set()
    expected = dense.eval()(batch).logits
    model.train()
    for number in range(4):
        trainer.state.timestamp = Timestamp(batch=number)
        found = model(batch).logits
        seen |= {r.top_experts_TK.shape[1] for r in model._routings}
        assert (found - expected).abs().max() <= 1e-5
    assert seen == {1, 2, 3}


def test_flops_are_those_of_the_batch_and_of_the_mean():

    class Flops(Callback):
        found: list[float] = []

        def batch_end(self, state: State, logger: Logger) -> None:
            self.found.append(state.model.flops_per_batch(state.batch))

    flops = Flops()
    run({'moe_top_k': SAMPLE}, flops, SpeedMonitor(window_size=1))

    def planned(top_k: Any) -> int:
        shape = ModelShape.from_config(tiny.moe_config({'moe_top_k': top_k}))
        return 4 * tiny.SEQ * shape.training_flops_per_token(tiny.SEQ)

    assert flops.found == [planned(K) for K in DRAWN]
    assert sum(flops.found) == 4 * planned(SAMPLE)


@pytest.mark.parametrize('name', ['upcycled_mpt', 'mpt_causal_lm'])
def test_nothing_that_says_which_batch_it_is(name: str):
    config = tiny.moe_config({'moe_top_k': SAMPLE, 'moe_loss_weight': 0})
    model = build_composer_model(name, config, tokenizer=None)
    with pytest.raises(ConfigError, match='moe_top_k=.*up to 3.*nothing says'):
        if name == 'upcycled_mpt':
            model.train()(tiny.make_batch())  # In no trainer.
        else:
            tiny.make_trainer(model).fit()
    model.eval()(tiny.make_batch())
