import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from composer import Callback
from llmfoundry.command_utils import eval_from_yaml
from llmfoundry.utils.builders import build_callback
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from foundry_upcycle.data.tokenizer import train_tokenizer
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.router import Router

SEQ = 2048
aten: Any = torch.ops.aten


@pytest.fixture(autouse=True)
def precision_as_found():
    assert torch.get_float32_matmul_precision() == 'highest'
    yield
    torch.set_float32_matmul_precision('highest')


class BFloat16Products(TorchDispatchMode):
    """At ``medium``, what a CPU with AMX computes, on every CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        medium = torch.get_float32_matmul_precision() == 'medium'
        if medium and func in (aten.mm.default, aten.bmm.default):
            args = [arg.bfloat16().float() for arg in args]
        return func(*args, **(kwargs or {}))


def make_callback(precision: Any) -> Callback:
    return build_callback('matmul_precision', {'precision': precision})


def rotary_embedding(model: torch.nn.Module) -> Any:
    (module, ) = [
        m for m in model.modules() if type(m).__name__.startswith('Llama')
        and 'RotaryEmbedding' in type(m).__name__
    ]
    return module


def run(model: Any, *callbacks: Callback) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of all positions, and logits, in a forward."""
    seen = []
    trainer = tiny.make_trainer(model, callbacks=list(callbacks))
    handle = rotary_embedding(model).register_forward_hook(
        lambda module, args, output: seen.append(torch.stack(output)),
    )
    ids = torch.arange(SEQ)[None] % tiny.VOCAB
    model.eval()
    with torch.no_grad(), BFloat16Products():
        logits = model({'input_ids': ids}).logits
    handle.remove()
    trainer.close()
    return seen[0], logits


@pytest.mark.parametrize(
    'build',
    [tiny.build_dense, tiny.build_moe],
    ids=['dense', 'moe'],
)
def test_rotary_embeddings_stay_in_float32(build):
    model = build(max_seq_len=SEQ)
    angles, logits = run(model)
    torch.set_float32_matmul_precision('medium')
    bare_angles, bare_logits = run(model)
    torch.set_float32_matmul_precision('highest')
    kept_angles, kept_logits = run(model, make_callback('medium'))
    assert torch.equal(kept_angles, angles)
    # bfloat16 holds every 8th integer from 1024 on: off by up to 4 radians.
    assert (bare_angles - angles).abs().max() > 1.9
    # All other products were rounded, and rounding only.
    error = (kept_logits - logits).abs().max()
    assert 0 < error < (bare_logits - logits).abs().max()


def test_routers_stay_in_float32():
    model = tiny.build_moe()
    (router, *_) = (m for m in model.modules() if type(m) is Router)
    x = torch.randn(64, tiny.DENSE['d_model'])
    expected = router(x).logits_TE
    with BFloat16Products():
        torch.set_float32_matmul_precision('medium')
        assert not torch.equal(router(x).logits_TE, expected)
        trainer = tiny.make_trainer(model, callbacks=[make_callback('medium')])
        assert torch.equal(router(x).logits_TE, expected)
        assert torch.get_float32_matmul_precision() == 'medium'
    trainer.close()


def test_models_of_hugging_face_likewise():
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    rotary = rotary_embedding(model)
    position_ids = torch.arange(SEQ)[None]
    expected = rotary(torch.ones(1), position_ids)
    state: Any = SimpleNamespace(model=model)
    callback: Any = make_callback('medium')
    callback.init(state, None)
    with BFloat16Products():
        seen = rotary(torch.ones(1), position_ids)
    callback.close(state, None)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected))


def test_precision_and_hooks_go_when_the_run_is_closed():
    model = tiny.build_dense()
    rotary = rotary_embedding(model)
    trainer = tiny.make_trainer(model, callbacks=[make_callback('high')])
    assert torch.get_float32_matmul_precision() == 'high'
    assert rotary._forward_pre_hooks and rotary._forward_hooks
    trainer.close()
    assert torch.get_float32_matmul_precision() == 'highest'
    assert not rotary._forward_pre_hooks and not rotary._forward_hooks


def test_precision_comes_back_after_a_failed_forward():
    model = tiny.build_dense()
    trainer = tiny.make_trainer(model, callbacks=[make_callback('medium')])
    with pytest.raises(AttributeError, match='no attribute'):
        rotary_embedding(model)(x=None, position_ids=None)
    assert torch.get_float32_matmul_precision() == 'medium'
    trainer.close()


@pytest.mark.parametrize('precision', ['bf16', 'Medium', None])
def test_unknown_precisions_are_refused(precision):
    with pytest.raises(
            ConfigError,
            match=f'callbacks.matmul_precision.precision={precision!r}: '
            'torch has no such precision',
    ):
        make_callback(precision)


def write_config(folder: Path) -> str:
    """Two models, which ``eval`` builds and closes one after the other."""
    vocab = 258  # Bytes and the two special tokens.
    train_tokenizer(['a b'], vocab, folder / 'tokenizer')
    model = tiny.build_dense(vocab_size=vocab)
    model = {
        'model': {
            'name': 'mpt_causal_lm',
            'init_device': 'cpu',
            **tiny.dense_config(vocab_size=vocab),
        },
        'tokenizer': {
            'name': str(folder / 'tokenizer'),
            'kwargs': {},
        },
        'load_path': tiny.save_dense(model, folder / 'dense.pt'),
    }
    task = folder / 'records.jsonl'
    task.write_text(json.dumps({'context': 'a b', 'continuation': 'c'}) + '\n')
    config = {
        'max_seq_len':
        tiny.SEQ,
        'seed':
        1,
        'python_log_level':
        None,  # Foundry would redirect the logging of all later tests.
        'precision':
        'fp32',
        'device_eval_batch_size':
        1,
        'models': [{
            'model_name': name,
            **model,
        } for name in ('first', 'second')],
        'icl_tasks': [
            {
                'label': 'task',
                'dataset_uri': str(task),
                'num_fewshot': [0],
                'icl_task_type': 'language_modeling',
            },
        ],
        'callbacks': {
            'matmul_precision': {
                'precision': 'medium',
            },
        },
    }
    OmegaConf.save(OmegaConf.create(config), folder / 'eval.yaml')
    return str(folder / 'eval.yaml')


def test_two_models_leave_the_precision_as_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Foundry leaves task files there.
    torch.set_float32_matmul_precision('high')
    trainers, _ = eval_from_yaml(write_config(tmp_path), [])
    assert len(trainers) == 2
    assert torch.get_float32_matmul_precision() == 'high'
