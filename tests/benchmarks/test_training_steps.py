"""``benchmarks/training/steps``: the plain loop is the same, figures add up."""

import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from composer import Callback, Event
from omegaconf import OmegaConf

from benchmarks.training.steps import measure
from benchmarks.training.steps.measure import measure_shape
from benchmarks.training.steps.parts import PartsClock
from benchmarks.training.steps.plain import PlainModel
from benchmarks.training.steps.report import report


def plain_state(state: dict[str, torch.Tensor], E: int) -> dict[str, Any]:
    """MPT's weights under the names of the plain model."""
    plain = {}
    for name, weight in state.items():
        name = name.removeprefix('model.').removeprefix('transformer.')
        layer, is_expert, of_expert = name.partition('.ffn.experts.mlp.')
        if not is_expert:
            plain[name.replace('router.layer', 'router')] = weight
            continue
        projection = {'w1': 'gate_proj', 'v1': 'up_proj', 'w2': 'down_proj'}
        for e, rows in enumerate(weight.chunk(E)):
            key = f'{layer}.ffn.experts.{e}.{projection[of_expert]}.weight'
            plain[key] = rows.t() if of_expert == 'w2' else rows
    return plain


@pytest.mark.parametrize('is_mixture', [False, True], ids=['dense', 'mixture'])
def test_plain_model_is_the_same(is_mixture):
    config = tiny.moe_config({'moe_loss_weight': 0.1}
                            ) if is_mixture else tiny.dense_config()
    config['attn_config']['rope_theta'] = 10000
    build = tiny.build_moe if is_mixture else tiny.build_dense
    model = build(ffn={'moe_loss_weight': 0.1}) if is_mixture else build()
    plain = PlainModel(OmegaConf.create(config))
    plain.load_state_dict(plain_state(tiny.full_state(model), 8))
    batch = tiny.make_batch()
    loss = model.loss(model(batch), batch)
    total = loss['total'] if isinstance(loss, dict) else loss
    torch.testing.assert_close(plain.loss(batch['input_ids']), total)
    torch.testing.assert_close(
        plain(batch['input_ids']),
        model(batch).logits,
        rtol=1e-4,
        atol=1e-5,
    )


class Timed(Callback):
    """The parts of the second and third step, and their time."""

    def __init__(self) -> None:
        self.clock: Any = None
        self.n_steps = 0

    def run_event(self, event: Event, state: Any, logger: Any) -> None:
        if self.clock is not None:
            self.clock.event(event)
        if event is not Event.BATCH_START:
            return
        self.n_steps += 1
        if self.n_steps == 2:
            self.start = time.perf_counter()
            self.clock = PartsClock(state.model, state.optimizers[0])
        if self.n_steps == 4:
            self.parts = self.clock.stop()
            self.seconds = time.perf_counter() - self.start
            self.clock = None


def test_parts_are_the_whole():
    timed = Timed()
    model = tiny.build_moe({'moe_loss_weight': 0.1})
    trainer = tiny.make_trainer(model, callbacks=[timed])
    trainer.fit()
    trainer.close()
    assert not any(
        module._forward_hooks or module._backward_hooks
        for module in model.modules()
    )
    assert min(timed.parts.values()) > 0
    assert sum(timed.parts.values()) == pytest.approx(timed.seconds, rel=0.05)
    of_both = {'norms', 'attention', 'FFN or experts', 'logits'}
    assert timed.parts.keys() >= {
        'dataloader',
        'loss',
        'optimizer',
        'training metrics',
        'forward: embedding',
        *(
            f'{way}: {part}' for way in ('forward', 'backward')
            for part in of_both
        ),
    }


def test_ratios_are_of_turns_of_the_same_round():
    arms = {
        'before': {
            'turns': [2.0, 8.0, 4.0],
            'cpu_turns': [3.0, 3.0, 3.0]
        },
        'plain': {
            'turns': [1.0, 2.0, 4.0],
            'cpu_turns': [1.0, 2.0, 1.5]
        },
    }
    page = report({
        'machine': 'a machine',
        'command': 'a command',
        'rounds': 3,
        'n_steps': 1,
        'shapes': {
            'dense': {
                'tokens_per_step': 8,
                'flops_per_step': 6e9,
                'arms': arms,
            },
        },
        'layer': {},
    })
    # Medians: 2 s a step; 2 / 1, 8 / 2 and 4 / 4; 3 / 1, 3 / 2 and 3 / 1.5.
    assert (
        '| dense | plain PyTorch | 4 | 3 | 0.8 | 2.00 (1.00 to 4.00) | '
        '2.00 (1.50 to 3.00) |  |  |'
    ) in page


def test_if_one_cannot_start_the_others_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    ended = []

    class Process:

        def __init__(self, shape: str, arm: str, folder: Path):
            if arm == 'before':
                raise EOFError
            self.arm = arm

        def end(self) -> None:
            ended.append(self.arm)

    monkeypatch.setattr(measure, '_Process', Process)
    with pytest.raises(EOFError):
        measure_shape('0.2M, dense', tmp_path, ['plain', 'before'])
    assert ended == ['plain']


@pytest.mark.slow
def test_ways_to_train_take_turns(tmp_path: Path):
    measured = measure_shape(
        '0.2M, mixture',
        tmp_path,
        ['before', 'plain'],
        rounds=2,
        n_steps=1,
    )
    assert measured['tokens_per_step'] == 8192
    before, plain = measured['arms'].values()
    assert [len(arm['turns']) for arm in (before, plain)] == [2, 2]
    assert before['parts'] and 'parts' not in plain
