"""Do two models answer a gauntlet alike, prompt by prompt?

    python benchmarks/evaluation/same_answers.py yamls/eval_smollm2.yaml \
        icl_subset_num_batches=8

Takes the first two models of an eval YAML (a dense model and the mixture that
it becomes at step 0) and its tasks, and runs both on the same batches: for each
task the number of examples, both accuracies, on how many examples they agree,
the largest difference of logits at any token of any prompt, and the seconds of
each. Ends with 1 where an answer differs, or logits by more than 1e-4.

Excludes what Foundry's evaluation does around the model: loading, tokenising.
Generation counts the prompt's logits, and compares what is written.
"""

import copy
import itertools
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from composer import Evaluator
from composer.models import ComposerModel
from llmfoundry.utils.builders import (
    build_composer_model,
    build_icl_evaluators,
    build_tokenizer,
)
from omegaconf import DictConfig, OmegaConf

from foundry_upcycle.callbacks.trim_icl_padding import TrimICLPadding
from foundry_upcycle.gauntlet.preflight import check_eval

TOLERANCE = 1e-4


@dataclass
class Answers:
    """What one model answered on a task."""

    correct: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct)


def load(entry: dict[str, Any]) -> tuple[ComposerModel, Any]:
    tokenizer = build_tokenizer(
        entry['tokenizer']['name'],
        entry['tokenizer'].get('kwargs', {}),
    )
    settings = dict(entry['model'])
    model = build_composer_model(settings.pop('name'), settings, tokenizer)
    if 'load_path' in entry:
        content = torch.load(entry['load_path'], weights_only=True, mmap=True)
        model.load_state_dict(content['state']['model'])
    return model.eval(), tokenizer


def answer(
    model: ComposerModel,
    batch: dict[str, Any],
    metric: Any,
    answers: Answers,
) -> torch.Tensor:
    """Answers a batch; returns the logits of its prompts."""
    batch = copy.deepcopy(batch)
    started = time.perf_counter()
    outputs = model.eval_forward(batch)
    answers.seconds += time.perf_counter() - started
    answers.correct += model.update_metric(batch, outputs, metric)['result']
    if isinstance(outputs, torch.Tensor):
        return outputs
    answers.texts += outputs
    return model({
        'input_ids': batch['input_ids'],
        'attention_mask': batch['attention_mask'],
    }).logits


@torch.no_grad()
def compare(
    evaluator: Evaluator,
    models: list[ComposerModel],
    n_batches: int | None,
) -> bool:
    """Prints a row for a task; returns whether the answers are the same."""
    trim = TrimICLPadding()
    (name, ) = evaluator.metric_names
    both = [Answers(), Answers()]
    difference = torch.zeros(())
    batches = evaluator.dataloader.dataloader
    for batch in itertools.islice(batches, n_batches):
        state = SimpleNamespace(batch=batch)
        trim.eval_before_forward(state, None)  # type: ignore
        first, second = (
            answer(model, state.batch, model.val_metrics[name], answers)
            for model, answers in zip(models, both, strict=True)
        )
        used = state.batch['attention_mask']
        apart = first.sub_(second).abs_().amax(dim=-1)[used].max()
        # As `max` would not: what is not a number stays so.
        difference = torch.maximum(difference, apart)
    a, b = both
    agree = sum(x == y for x, y in zip(a.correct, b.correct, strict=True))
    print(
        f'| {evaluator.label} | {len(a.correct)} | {a.accuracy:.4f} | '
        f'{b.accuracy:.4f} | {agree} | {difference:.1e} | {a.seconds:.1f} | '
        f'{b.seconds:.1f} |',
        flush=True,
    )
    same = agree == len(a.correct) and a.texts == b.texts
    return same and difference.item() <= TOLERANCE


def main(args: list[str]) -> int:
    """Takes an eval YAML and overrides, as ``eval.py`` does."""
    check_eval(args[0], args[1:])
    config = OmegaConf.merge(
        OmegaConf.load(args[0]),
        OmegaConf.from_cli(args[1:]),
    )
    assert isinstance(config, DictConfig)
    settings: Any = OmegaConf.to_container(config, resolve=True)
    loaded = [load(entry) for entry in settings['models'][:2]]
    evaluators, _ = build_icl_evaluators(
        settings['icl_tasks'],
        loaded[0][1],
        settings['max_seq_len'],
        settings['device_eval_batch_size'],
    )
    names = [entry['model_name'] for entry in settings['models'][:2]]
    columns = (
        'task',
        'n',
        *names,
        'agree',
        'largest difference of logits',
        *(f'{name} (s)' for name in names),
    )
    print(f"| {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) - 1)}")
    models = [model for model, _ in loaded]
    n_batches = settings.get('icl_subset_num_batches')
    same = [compare(evaluator, models, n_batches) for evaluator in evaluators]
    return 0 if all(same) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
