"""Compiled, a model computes what it computes uncompiled."""

from typing import Any

import pytest
import tiny
import torch
from composer.loggers import InMemoryLogger
from llmfoundry.utils.builders import build_callback
from models.backends import ALL, needs_grouped_mm

from foundry_upcycle.models.ffn import build_upcycled_dmoe


def train(backend: str, **kwargs: Any) -> dict[str, list[float]]:
    """What a run logs of its losses and its routers."""
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        tiny.build_moe({'backend': backend}),
        callbacks=[build_callback('router_monitor', {'interval': '1ba'})],
        loggers=[log],
        duration='3ba',
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    return {
        **tiny.logged(log, 'loss/train/'),
        **tiny.logged(log, 'router/'),
    }


@pytest.mark.parametrize('backend', ALL)
def test_a_run_is_the_same_compiled(backend: str):
    eager = train(backend)
    compiled = train(backend, compile_config={'backend': 'aot_eager'})
    assert {'loss/train/lbl', 'router/mean/imbalance'} <= eager.keys()
    assert eager.keys() == compiled.keys()
    for key, values in eager.items():
        assert compiled[key] == pytest.approx(values, rel=1e-5, abs=1e-6), key


@needs_grouped_mm
def test_grouped_mm_is_one_graph():
    layer = build_upcycled_dmoe(
        d_model=16,
        expansion_ratio=2,
        bias=False,
        moe_num_experts=4,
        moe_top_k=2,
        moe_loss_weight=0,
        backend='grouped_mm',
    ).bfloat16()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(9, 16, dtype=torch.bfloat16, requires_grad=True)
    results = []
    for run in (
            layer,
            torch.compile(layer, fullgraph=True, backend='aot_eager'),
    ):
        out = run(x)
        (grad, ) = torch.autograd.grad(out.square().sum(), x)
        results.append((out, grad))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(eager, compiled)
