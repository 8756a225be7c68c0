"""In-context tasks, with their padding and without, give the same results."""

import copy
import json
import string
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import tiny
import torch
from composer import Callback, Evaluator
from composer.models import ComposerModel
from llmfoundry.utils.builders import build_callback, build_icl_evaluators
from torch.utils.data import DataLoader

from foundry_upcycle.data.tokenizer import train_tokenizer

SEQ = 128
VOCAB = 280
EOS, PAD = '<|endoftext|>', '<|padding|>'
ROPE: dict[str, Any] = {'max_seq_len': SEQ, 'vocab_size': VOCAB}
LEARNED: dict[str, Any] = {
    **ROPE,
    'learned_pos_emb': True,
    'attn_config': {
        **tiny.DENSE['attn_config'],
        'rope': False,
    },
}
# Two letters a word: enough pairs for the tokens beyond the bytes.
WORDS = [a + b for a in string.ascii_lowercase for b in 'aeiou']


def make_tasks() -> dict[str, list[dict]]:
    """Seven records a type; their lengths differ, and some hold EOS."""
    texts = [' '.join(WORDS[i:3 * i + 2]) for i in range(6)]
    texts.append(f'{texts[5]} {EOS} {texts[2]}')
    return {
        'language_modeling': [
            {
                'context': text,
                # The longest ends in the token that may be padding, too.
                'continuation': f'{text[:2]}{EOS if EOS in text else ""}',
            } for text in texts
        ],
        'multiple_choice': [{
            'query': text,
            'choices': [f'{text[:2]} is', 'a', f'{text[-9:]}'],
            'gold': i % 3,
        } for i, text in enumerate(texts)],
        'schema': [{
            'context_options': [f'{text} a', f'b {text}'],
            'continuation': text[-8:],
            'gold': i % 2,
        } for i, text in enumerate(texts)],
        'generation_task_with_answers': [{
            'context': text,
            'answer': text[:3],
            'aliases': [text[:2], text[-5:]],
        } for text in texts],
    }


@pytest.fixture(autouse=True)
def one_thread():
    # So little work is done faster by one, and on a busy machine much faster.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope='module')
def tasks(tmp_path_factory) -> Callable[..., list[Evaluator]]:
    """Foundry's own data loaders for every type of task, 0- and 2-shot."""
    folder = tmp_path_factory.mktemp('tasks')
    tokenizer = train_tokenizer([' '.join(WORDS)], VOCAB, folder / 'tokenizer')
    configs = []
    for name, records in make_tasks().items():
        path = folder / f'{name}_records.jsonl'
        path.write_text(''.join(json.dumps(r) + '\n' for r in records))
        configs.append({
            'label': name,
            'icl_task_type': name,
            'dataset_uri': str(path),
            'num_fewshot': [0, 2],
        })

    def build(pad: str = PAD, **changes: Any) -> list[Evaluator]:
        padding = copy.deepcopy(tokenizer)
        padding.pad_token = pad
        built, _ = build_icl_evaluators(
            copy.deepcopy(configs),
            padding,
            default_max_seq_len=SEQ,
            default_batch_size=6,
            destination_dir=str(folder),
        )
        return [
            Evaluator(
                label=evaluator.label,
                dataloader=evaluator.dataloader,
                metric_names=evaluator.metric_names,
                **changes,
            ) for evaluator in built
        ]

    return build


class Recorder(Callback):
    """What each task computed; comes after the callback under test."""

    def __init__(self, model: ComposerModel):
        self.outputs: dict[str, list] = {}
        self.scored: dict[str, list[int]] = {}
        self.positions: dict[str, int] = {}
        self.label = ''
        embedding = model.model.transformer.wte
        embedding.register_forward_hook(self.count)

    def count(self, module: Any, args: Any, output: Any) -> None:
        del module, output
        n = self.positions.get(self.label, 0)
        self.positions[self.label] = n + args[0].numel()

    def eval_start(self, state: Any, logger: Any) -> None:
        self.label = state.dataloader_label

    def eval_after_forward(self, state: Any, logger: Any) -> None:
        outputs = state.outputs
        self.outputs.setdefault(self.label, []).append(outputs)
        indices = state.batch.get('continuation_indices')
        if indices is not None:
            length = int(max(i.max() for i in indices)) + 1
            self.scored.setdefault(self.label, []).append(length)


def evaluate(
    model: ComposerModel,
    evaluators: list[Evaluator],
    trim: bool,
) -> tuple[Recorder, dict[str, float]]:
    recorder = Recorder(model)
    trimming = [build_callback('trim_icl_padding', {})] if trim else []
    # Generation decodes with the tokenizer of the task.
    model.tokenizer = evaluators[0].dataloader.dataloader.dataset.tokenizer
    trainer = tiny.make_trainer(model, callbacks=[*trimming, recorder])
    trainer.eval(eval_dataloader=evaluators)
    metrics = {
        label: metric.compute().item()
        for label, metrics in trainer.state.eval_metrics.items()
        for metric in metrics.values()
    }
    trainer.close()
    return recorder, metrics


def build(name: str, changes: dict[str, Any]) -> ComposerModel:
    if name == 'dense':
        return tiny.build_dense(**changes)
    model = tiny.build_moe(**changes)
    model.mark_weights_loaded()
    return model


@pytest.mark.parametrize(
    'name,changes,pad',
    [
        ('dense', ROPE, PAD),
        ('dense', ROPE, EOS),
        ('dense', LEARNED, EOS),
        ('moe', ROPE, EOS),
        ('moe', LEARNED, PAD),
    ],
    ids=['rope', 'rope_eos', 'learned_eos', 'moe_rope_eos', 'moe_learned'],
)
def test_nothing_changes_but_the_work(tasks, name, changes, pad):
    # The trimmed run first: the second would see what it broke.
    evaluators = tasks(pad)
    trimmed, metrics = evaluate(build(name, changes), evaluators, trim=True)
    padded, expected = evaluate(build(name, changes), evaluators, trim=False)
    assert len(metrics) == 8
    assert metrics == expected
    assert any(0 < value < 1 for value in metrics.values())
    for label in metrics:
        assert trimmed.positions[label] < 0.8 * padded.positions[label]
        outputs = zip(trimmed.outputs[label], padded.outputs[label])
        if label.startswith('generation'):
            assert all(first == second for first, second in outputs)
            continue
        # As short as can be: what is scored comes last.
        lengths = [logits.shape[1] for logits in trimmed.outputs[label]]
        assert lengths == padded.scored[label]
        for (first, second), length in zip(outputs, lengths):
            assert second.shape[1] == SEQ
            torch.testing.assert_close(first, second[:, :length])


def test_each_microbatch_is_cut_to_its_own_length(tasks):
    # Foundry itself fails on microbatches of questions with choices: their
    # `choice_groupings` go on counting from the start of the batch.
    runs = []
    for size in (6, 1):
        evaluators = [
            evaluator for evaluator in tasks(device_eval_microbatch_size=size)
            if evaluator.label.startswith(('language', 'generation'))
        ]
        runs.append(evaluate(build('moe', ROPE), evaluators, trim=True))
    (whole, expected), (split, metrics) = runs
    assert len(metrics) == 4
    assert metrics == expected
    for label in metrics:
        assert split.positions[label] < whole.positions[label]


def test_other_evaluation_data_is_left_alone():
    model = tiny.build_dense()
    recorder = Recorder(model)
    samples = tiny.make_samples(4)
    for sample in samples:
        sample['attention_mask'] = torch.arange(tiny.SEQ) < 5
    trainer = tiny.make_trainer(
        model,
        callbacks=[build_callback('trim_icl_padding', {}), recorder],
    )
    text = Evaluator(
        label='text',
        dataloader=DataLoader(samples, batch_size=4),
        metric_names=['LanguageCrossEntropy'],
    )
    trainer.eval(eval_dataloader=[text])
    assert recorder.positions == {'text': 4 * tiny.SEQ}
    trainer.close()


def cut(**batch: Any) -> dict[str, Any]:
    state: Any = SimpleNamespace(batch=batch)
    callback: Any = build_callback('trim_icl_padding', {})
    callback.eval_before_forward(state, None)
    return state.batch


def test_text_after_the_continuation_is_kept():
    ids = torch.tensor([[5, 6, 7, 0, 0, 0], [8, 9, 3, 4, 0, 0]])
    batch = cut(
        mode='icl_task',
        input_ids=ids,
        labels=ids.clone(),
        attention_mask=ids != 0,
        continuation_indices=[torch.tensor([1]),
                              torch.tensor([1, 2])],
    )
    for key in ('input_ids', 'labels', 'attention_mask'):
        assert batch[key].shape == (2, 4), key
    assert ids.shape == (2, 6)


def test_prompts_of_nothing_but_padding_are_left_alone():
    ids = torch.zeros(2, 5, dtype=torch.long)
    batch = cut(mode='generate', input_ids=ids, attention_mask=ids != 0)
    assert batch['input_ids'].shape == (2, 5)
