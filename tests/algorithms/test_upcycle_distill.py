"""A run with a teacher is the one whose loss is written out by hand."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from composer import Evaluator
from composer.loggers import InMemoryLogger
from composer.metrics import LanguageCrossEntropy
from llmfoundry.utils.builders import build_algorithm, build_callback
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.errors import CheckpointError, ConfigError

WEIGHT, TEMPERATURE = 0.3, 2.0
VARYING = {'moe_top_k': {'until': {'0.5dur': 3, '1dur': 1}}}


def build_teacher(ffn: Any = None) -> Any:
    """Experts that differ, and routers that tell them apart."""
    model = tiny.build_moe(ffn, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('teachers')
    moe = tiny.save_dense(build_teacher(), folder / 'moe.pt')
    tiny.save_dense(build_teacher(VARYING), folder / 'varying.pt')
    tiny.save_dense(tiny.build_dense(), folder / 'dense.pt')
    export_hf(moe, str(folder / 'hf'))
    return folder


def distill(teacher: Any, **settings: Any) -> Any:
    settings = {
        'kl_weight': WEIGHT,
        'temperature': TEMPERATURE,
        **settings,
    }
    return build_algorithm(
        'upcycle_distill', {
            'teacher': str(teacher),
            **settings,
        }
    )


def padded_samples() -> list[dict[str, torch.Tensor]]:
    samples = tiny.make_samples(16)
    for i, sample in enumerate(samples):
        is_token = torch.arange(tiny.SEQ) < tiny.SEQ - i
        sample['attention_mask'] = is_token
        sample['labels'] = sample['labels'].masked_fill(~is_token, -100)
    return samples


def run(student: Any, *algorithms: Any, **kwargs: Any) -> Any:
    """What a run logs, and its trained weights."""
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        student,
        algorithms=list(algorithms),
        loggers=[log],
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    logged = tiny.logged(log, 'loss/') | tiny.logged(log, 'metrics/train/')
    return logged, tiny.full_state(trainer.state.model)


def by_hand(student: Any, teacher: Any, samples: Any) -> dict[str, Any]:
    """Losses of each step of plain SGD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found: dict[str, list[float]] = {}
    student.train()
    teacher.eval()
    for start in range(0, len(samples), 4):
        rows = samples[start:start + 4]
        batch = {key: torch.stack([r[key] for r in rows]) for key in rows[0]}
        outputs = student(batch)
        losses = student.loss(outputs, batch)
        is_moe = isinstance(losses, dict)
        targets = batch['labels'][:, 1:]
        kept = targets != -100
        own = outputs.logits[:, :-1][kept]
        with torch.no_grad():
            its = teacher(batch).logits[:, :-1][kept]
        parts = {
            'loss':
            cross_entropy(own, targets[kept]),
            'kl':
            kl_div(
                (own / TEMPERATURE).log_softmax(-1),
                (its / TEMPERATURE).softmax(-1),
                reduction='batchmean',
            ),
            **({
                'lbl': losses['lbl']
            } if is_moe else {}),
        }
        total = (1 - WEIGHT) * parts['loss'] + (
            WEIGHT * TEMPERATURE**2 * parts['kl']
        ) + parts.get('lbl', 0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for key, value in {**parts, 'total': total}.items():
            found.setdefault(f'loss/train/{key}', []).append(value.item())
    return found


@pytest.mark.parametrize(
    'build,name,ffn',
    [
        (tiny.build_dense, 'moe.pt', None),
        (tiny.build_moe, 'hf', None),
        # Of a K that varied, the largest.
        (tiny.build_dense, 'varying.pt', {
            'moe_top_k': 3
        }),
    ],
)
def test_is_as_by_hand(folder: Path, build: Any, name: str, ffn: Any):
    samples = padded_samples()
    logged, weights = run(
        build(),
        distill(folder / name),
        samples=samples,
        callbacks=[build_callback('cpu_training', {})],
    )
    student = build()
    expected = by_hand(student, build_teacher(ffn), samples)
    # A metric of training is of the labels, as without a teacher.
    metric = logged['metrics/train/LanguageCrossEntropy'][:4]
    assert metric == pytest.approx(logged['loss/train/loss'], rel=1e-5)
    found = {k: v for k, v in logged.items() if k.startswith('loss/train/')}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-4), key
    for key, weight in student.state_dict().items():
        torch.testing.assert_close(weights[key], weight, msg=key)


def test_microbatches_are_one_batch(folder: Path):
    whole, weights = run(tiny.build_dense(), distill(folder / 'moe.pt'))
    parts, same = run(
        tiny.build_dense(),
        distill(folder / 'moe.pt'),
        device_train_microbatch_size=2,
    )
    for key in ('loss/train/kl', 'loss/train/total'):
        assert parts[key] == pytest.approx(whole[key], rel=1e-5), key
    for key, weight in weights.items():
        torch.testing.assert_close(same[key], weight, msg=key)


def test_resumed_is_uninterrupted_and_no_checkpoint_has_the_teacher(
    folder: Path,
    tmp_path: Path,
):
    whole, weights = run(tiny.build_moe(), distill(folder / 'moe.pt'))
    settings = {
        'run_name': 'run',
        'autoresume': True,
        'save_folder': str(tmp_path),
        'save_interval': '1ba',
    }
    first, _ = run(
        tiny.build_moe(),
        distill(folder / 'moe.pt'),
        duration='2ba',
        **settings,
    )
    resumed, same = run(
        tiny.build_moe(), distill(folder / 'moe.pt'), **settings
    )
    for key, values in whole.items():
        if key.startswith('loss/'):
            assert first[key] + resumed[key] == values, key
    for key, weight in weights.items():
        assert torch.equal(same[key], weight), key
    saved = torch.load(tmp_path / 'latest-rank0.pt', weights_only=False)
    assert saved['state']['model'].keys() == tiny.build_moe().state_dict().keys(
    )
    # Without a teacher it goes on as well.
    run(tiny.build_moe(), duration='5ba', **settings)


def test_evaluation_is_of_the_labels(folder: Path):
    model, samples = tiny.build_dense(), padded_samples()
    trainer = tiny.make_trainer(
        model,
        samples,
        algorithms=[distill(folder / 'moe.pt')],
        eval_dataloader=Evaluator(
            label='held_out',
            dataloader=DataLoader(samples, batch_size=4),
            metric_names=['LanguageCrossEntropy'],
        ),
    )
    trainer.fit()
    trainer.eval()
    metric, name = LanguageCrossEntropy(), 'LanguageCrossEntropy'
    for batch in DataLoader(samples, batch_size=4):
        with torch.no_grad():
            outputs = model(batch)
        metric.update(outputs, model.get_targets(batch))
    found = trainer.state.eval_metrics['held_out'][name].compute()
    torch.testing.assert_close(found, metric.compute())


@pytest.mark.parametrize(
    'settings,match',
    [
        ({
            'teacher': ''
        }, "teacher=''.*names no checkpoint"),
        ({
            'kl_weight': 0
        }, 'kl_weight=0.*above 0, up to 1'),
        ({
            'kl_weight': 1.5
        }, 'kl_weight=1.5'),
        ({
            'temperature': 0
        }, 'temperature=0.*above 0'),
        ({
            'temperature': float('inf')
        }, 'temperature=inf'),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], match: str):
    with pytest.raises(ConfigError, match=match):
        distill(**{'teacher': 'moe.pt', **settings})


def tokenizer_of(*tokens: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary)),
    )


def test_teachers_that_are_refused(folder: Path, tmp_path: Path):

    def refuse(error: Any, match: str, student: Any, teacher: Any) -> None:
        with pytest.raises(error, match=match):
            tiny.make_trainer(
                student,
                algorithms=[distill(teacher)],
                save_folder=str(tmp_path / 'saved'),
            )
        assert not any((tmp_path / 'saved').glob('*'))

    moe = folder / 'moe.pt'
    wider = tiny.build_dense(vocab_size=tiny.VOCAB + 1)
    refuse(ConfigError, 'model.vocab_size=129.*moe.pt has 128', wider, moe)
    longer = tiny.build_dense(max_seq_len=tiny.SEQ + 1)
    refuse(ConfigError, 'model.max_seq_len=33.*moe.pt has 32', longer, moe)
    refuse(CheckpointError, 'no such file', tiny.build_dense(), 'absent.pt')
    # It says nothing of what it is.
    bare = tmp_path / 'bare.pt'
    torch.save({'state': {'model': tiny.build_moe().state_dict()}}, bare)
    refuse(CheckpointError, 'no model config', tiny.build_dense(), bare)
    # Its weights are not those of its config.
    other = tiny.build_moe()
    other.config.ffn_config['moe_num_experts'] = 4
    path = tiny.save_dense(other, tmp_path / 'other.pt')
    refuse(CheckpointError, 'ffn.*has shape', tiny.build_dense(), path)
    # Its weights are quantised.
    model = tiny.build_moe()
    path = Path(tiny.save_dense(model, tmp_path / 'int8.pt'))
    content = torch.load(path, weights_only=False)
    weights = content['state']['model']
    name = next(iter(weights))
    weights[name] = weights[name].to(torch.int8)
    torch.save(content, path)
    refuse(CheckpointError, 'has dtype torch.int8', tiny.build_dense(), path)
    # Another tokenizer.
    teacher = tiny.build_moe()
    teacher.tokenizer = tokenizer_of('a', 'b', 'c')
    path = tiny.save_dense(teacher, tmp_path / 'tokens.pt')
    student = tiny.build_dense()
    student.tokenizer = tokenizer_of('a', 'c', 'b')
    refuse(ConfigError, "another tokenizer.*id 1 is 'b'", student, path)
    student.tokenizer = tokenizer_of('a', 'b', 'c')
    tiny.make_trainer(student, algorithms=[distill(path)]).close()


def test_a_student_that_is_no_mpt_is_refused(folder: Path):
    from composer.models import HuggingFaceModel
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    student = HuggingFaceModel(LlamaForCausalLM(config), use_logits=True)
    with pytest.raises(ConfigError, match='model.name.*trains MPT models'):
        tiny.make_trainer(student, algorithms=[distill(folder / 'moe.pt')])
