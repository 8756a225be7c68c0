"""LLM Foundry's in-context accuracies beside lm-evaluation-harness's.

    benchmarks/evaluation/install_lm_eval.sh
    python benchmarks/evaluation/compare.py MODEL DATA

Both answer the same records with the same prompts, in float32 on the CPU.
MODEL is a Hugging Face folder with a tokenizer, DATA what `foundry-upcycle
gauntlet prepare` wrote. Prints a table; docs/evaluation/lm_eval.md explains one.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator, Optional

from omegaconf import OmegaConf
from scoring import (
    Comparison,
    Request,
    closest_call,
    foundry_verdict,
    read_samples,
    short_choices,
)

from foundry_upcycle.gauntlet.results import read_results

__all__ = ['compare']

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_EVAL = _ROOT / 'eval.py'
_TASKS = sorted(path.stem for path in (_HERE / 'lm_eval_tasks').glob('*.yaml'))
_HEADER = """\
| task | records | Foundry | lm-eval `acc` | agree | `acc_norm` | agree \
| lm-eval, Foundry's rule | agree | same tokens |
|---|---|---|---|---|---|---|---|---|---|"""


def copy_records(args: argparse.Namespace) -> None:
    """The first records of each task's file, for both to read."""
    shutil.rmtree(args.out / 'records', ignore_errors=True)
    for task in foundry_config(args)['icl_tasks']:
        copy = Path(task['dataset_uri'])
        name = copy.relative_to(args.out / 'records')
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(args.data / name, 'rb') as file:
            copy.write_bytes(b''.join(itertools.islice(file, args.records)))


def run_foundry(config: dict[str, Any], out: Path) -> None:
    """Evaluates by eval.py; the callback icl_results writes to ``out``."""
    shutil.rmtree(out / 'foundry', ignore_errors=True)
    path = out / 'foundry.yaml'
    OmegaConf.save(OmegaConf.create(config), path)
    _run(out, 'foundry.log', sys.executable, str(_EVAL), str(path))


def run_lm_eval(args: argparse.Namespace) -> None:
    """Evaluates by lm-eval, in its own environment."""
    _run(
        args.out,
        'lm_eval.log',
        str(args.lm_eval),
        str(_HERE / 'ask_lm_eval.py'),
        str(args.model),
        str(args.out / 'records'),
        str(args.out),
        *args.tasks,
        '--batch-size',
        str(args.batch_size),
    )


def _run(out: Path, log: str, *command: str) -> None:
    print(f"{' '.join(command)} > {out / log}", flush=True)
    with open(out / log, 'w', encoding='utf-8') as file:
        done = subprocess.run(
            command,
            cwd=out,  # Foundry leaves links to the tasks' files there.
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                'HF_HUB_OFFLINE': '1',
            },
        )
    if done.returncode:
        sys.exit(f'{command[1]} failed: {out / log} says why.')


def foundry_config(args: argparse.Namespace) -> dict[str, Any]:
    """foundry.yaml of these tasks, its variables set."""
    config = OmegaConf.load(_HERE / 'foundry.yaml')
    config.variables = {
        'model': str(args.model),
        'data': str(args.out / 'records'),
        'out': str(args.out / 'foundry'),
    }
    config.device_eval_batch_size = args.batch_size
    config = OmegaConf.to_container(config, resolve=True)
    assert isinstance(config, dict)
    config['icl_tasks'] = [
        task for task in config['icl_tasks'] if task['label'] in args.tasks
    ]
    return config


def foundry_requests(
    config: dict[str, Any],
) -> Iterator[tuple[str, list[tuple[Request, ...]]]]:
    """The tokens that Foundry's data loaders make of each task's records."""
    # Here, as they take seconds to import.
    from datasets import disable_progress_bars
    from llmfoundry.utils.builders import build_icl_evaluators, build_tokenizer
    disable_progress_bars()
    settings = config['models'][0]['tokenizer']
    tokenizer = build_tokenizer(settings['name'], settings['kwargs'])
    with tempfile.TemporaryDirectory() as folder:
        evaluators, _ = build_icl_evaluators(
            config['icl_tasks'],
            tokenizer,
            config['max_seq_len'],
            config['device_eval_batch_size'],
            folder,
        )
        for evaluator in evaluators:
            dataset = evaluator.dataloader.dataloader.dataset
            yield evaluator.label, [
                _requests(dataset[i], dataset.context_key)
                for i in range(len(dataset))
            ]


def _requests(example: dict[str, Any], key: str) -> tuple[Request, ...]:
    inputs, spans = example[key], example['continuation_indices']
    if isinstance(spans[0], int):  # One continuation, not one per choice.
        inputs, spans = [inputs], [spans]
    return tuple((
        tuple(tokens[:span[0]]),
        tuple(tokens[span[0]:span[-1] + 1]),
    ) for tokens, span in zip(inputs, spans, strict=True))


def compare(config: dict[str, Any], out: Path) -> Iterator[Comparison]:
    """Reads what both wrote to ``out``."""
    results = read_results(str(out / 'foundry'))
    for label, requests in foundry_requests(config):
        correct = results.tasks[label][label].correct
        assert correct is not None  # icl_results keeps it.
        task = label.partition('/')[0]
        with open(out / f'{task}.jsonl', encoding='utf-8') as file:
            samples = read_samples(file)
        yield Comparison(task, samples, correct.tolist(), requests)


def print_report(comparisons: list[Comparison]) -> None:
    print(f'\n{_HEADER}')
    for comparison in comparisons:
        print(comparison.row())
    print()
    for comparison in comparisons:
        _print_choices(comparison)
        _print_differences(comparison)


def _print_choices(comparison: Comparison) -> None:
    margin = closest_call(comparison.samples)
    if margin is None:
        return
    print(
        f'{comparison.task}: the two lowest mean losses of a record are at '
        f'least {margin:.1e} nats per token apart.'
    )
    short = short_choices(comparison.samples)
    if short['records']:
        print(
            f"{comparison.task}: {short['records']} records have one choice "
            f"of fewest tokens. acc takes it in {short['acc']}, Foundry's rule "
            f"in {short['foundry']}; it is right in {short['gold']}."
        )


def _print_differences(comparison: Comparison) -> None:
    """What the same prompts and the same rule do not explain."""
    others = comparison.other_tokens()
    if others:
        first = others[0]
        print(
            f'{comparison.task}: {len(others)} records have other tokens; '
            f'record {first}: lm-eval {comparison.samples[first].requests}, '
            f'Foundry {comparison.requests[first]}'
        )
    for index in comparison.other_verdicts():
        sample = comparison.samples[index]
        print(
            f'{comparison.task}, record {index}: Foundry says '
            f"{comparison.correct[index]}, its rule on lm-eval's "
            f'log-likelihoods {foundry_verdict(sample)}: {sample}'
        )


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('--tasks', nargs='+', default=_TASKS, choices=_TASKS)
    parser.add_argument(
        '--records',
        type=int,
        help='the first so many of each file; by default all',
    )
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--out', type=Path, default=_ROOT / 'runs/lm_eval')
    parser.add_argument(
        '--lm-eval',
        type=Path,
        default=_ROOT / '.venv-lm-eval/bin/python',
        help='Python of the environment with lm-eval',
    )
    parser.add_argument(
        '--only-report',
        action='store_true',
        help='of what an earlier run left in OUT',
    )
    args = parser.parse_args(arguments)
    if not args.lm_eval.is_file() and not args.only_report:
        parser.error(f'{args.lm_eval} is missing: run install_lm_eval.sh.')
    # Both run elsewhere. Links stay: a virtual environment's Python is one.
    for name in ('model', 'data', 'out', 'lm_eval'):
        setattr(args, name, getattr(args, name).absolute())
    return args


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    config = foundry_config(args)
    if not args.only_report:
        copy_records(args)
        run_foundry(config, args.out)
        run_lm_eval(args)
    print_report(list(compare(config, args.out)))


if __name__ == '__main__':
    main()
