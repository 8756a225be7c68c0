from typing import Any

import psutil
import pytest
import tiny
import torch
from composer.loggers import InMemoryLogger
from composer.metrics import LanguageCrossEntropy
from composer.models import HuggingFaceModel
from llmfoundry.utils.builders import build_callback
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

aten: Any = torch.ops.aten

# More than what is free anywhere in a process of tests.
BLOCK_BYTES = 512 << 20


class Calls(TorchDispatchMode):
    """Counts calls of log_softmax and of the fused attention's kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.log_softmax = 0
        self.fused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
        self.log_softmax += func is aten._log_softmax.default
        self.fused += func is kernel
        return func(*args, **(kwargs or {}))


def padded_samples() -> list[dict[str, torch.Tensor]]:
    """Of unequal length: padding is no key, and no target."""
    samples = tiny.make_samples(16)
    for i, sample in enumerate(samples):
        is_token = torch.arange(tiny.SEQ) < tiny.SEQ - i
        sample['attention_mask'] = is_token
        sample['labels'] = sample['labels'].masked_fill(~is_token, -100)
    return samples


def train(build: Any, *names: str) -> tuple[dict, dict, Calls]:
    """Weights, all that is logged of losses and metrics, and calls."""
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        build(),
        padded_samples(),
        device_train_microbatch_size=2,
        callbacks=[build_callback(name, {}) for name in names],
        loggers=[log],
    )
    with Calls() as calls:
        trainer.fit()
    trainer.close()
    logged = tiny.logged(log, 'loss/train/') | tiny.logged(log, 'metrics/')
    return tiny.full_state(trainer.state.model), logged, calls


def build_aux() -> Any:
    return tiny.build_moe({'moe_loss_weight': 0.01, 'moe_zloss_weight': 0.001})


@pytest.mark.parametrize(
    'build',
    [tiny.build_dense, build_aux],
    ids=['dense', 'mixture'],
)
def test_trains_as_without_it(build):
    weights, logged, calls = train(build)
    fast_weights, fast_logged, fast_calls = train(build, 'cpu_training')
    assert 'metrics/train/LanguagePerplexity' in logged
    assert fast_logged.keys() == logged.keys()
    for name, values in logged.items():
        assert fast_logged[name] == pytest.approx(values, rel=1e-5), name
    for name, weight in weights.items():
        torch.testing.assert_close(fast_weights[name], weight)
    # 4 batches of 2 microbatches, in 3 layers; the loss and two metrics.
    assert (calls.fused, calls.log_softmax) == (0, 24)
    assert (fast_calls.fused, fast_calls.log_softmax) == (24, 8)


def test_metrics_of_other_models_are_computed_as_before():
    model = HuggingFaceModel(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=tiny.VOCAB,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
            ),
        ),
        metrics=[LanguageCrossEntropy()],
        use_logits=True,
        shift_labels=True,
    )
    _, logged, calls = train(lambda: model, 'cpu_training')
    assert 'metrics/train/LanguageCrossEntropy' in logged
    assert calls.log_softmax == 16  # Of 8 microbatches: the loss, a metric.


def resident_bytes() -> int:
    """Of this process, after a large block was freed."""
    torch.ones(BLOCK_BYTES, dtype=torch.uint8)
    return psutil.Process().memory_info().rss


def test_freed_memory_stays_while_the_run_is_open():
    before = resident_bytes()
    trainer = tiny.make_trainer(
        tiny.build_dense(),
        callbacks=[build_callback('cpu_training', {})],
    )
    kept = resident_bytes()
    trainer.close()
    after = psutil.Process().memory_info().rss
    assert kept - before > BLOCK_BYTES // 2
    assert kept - after > BLOCK_BYTES // 2
