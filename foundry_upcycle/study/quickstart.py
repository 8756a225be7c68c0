"""The whole comparison at small scale, on any machine, in minutes.

``python -m foundry_upcycle.study.quickstart`` prepares real text, pretrains a
small dense model, and from its checkpoint trains twice on other text: on with
the dense model (CPT) and as a mixture of experts (upcycling), at equal FLOPs.
Each training run is Foundry's own trainer in a process of its own. Run again,
it skips what has finished and resumes what was interrupted.
"""

import argparse
import hashlib
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Mapping, Optional, Sequence

from foundry_upcycle.data.corpus import (
    DOMAIN_PART,
    PARTS,
    PRETRAINING_PART,
    SECOND_PHASE,
    collect,
)
from foundry_upcycle.data.tasks import write_tasks
from foundry_upcycle.study.figures import plot_expert_load, plot_loss
from foundry_upcycle.study.quickstart_plan import (
    PROJECT,
    SIZES,
    Size,
    TrainingPlan,
    plan_training,
)
from foundry_upcycle.study.report import Arm, Comparison, render_report
from foundry_upcycle.study.results import read_run
from foundry_upcycle.study.runner import (
    StageError,
    TrainingProgress,
    composer_command,
    run_process,
    run_stage,
)

__all__ = [
    'main',
    'run_quickstart',
]

_COMMAND = 'python -m foundry_upcycle.study.quickstart'
_LABELS = {
    'pretrain': 'dense start',
    'cpt': 'continued pretraining',
    'upcycle': 'upcycled',
}
_SEED = 17
# Every training run ends with the tasks of the gauntlet.
_GAUNTLET_YAMLS = (
    PROJECT / 'eval_gauntlet' / 'quickstart.yaml',
    PROJECT / 'eval_gauntlet' / 'quickstart_tasks.yaml',
)


def _prepare(folder: Path, size: Size, seq_len: int, vocab_size: int) -> None:
    """Collects text; writes tokenizer, streams and tasks."""
    # Imported here: a run that finds this stage finished need not wait.
    from foundry_upcycle.data.streams import write_stream
    from foundry_upcycle.data.tokenizer import train_tokenizer

    print('[prepare] collects text from the installed packages', flush=True)
    documents = collect({
        PRETRAINING_PART: size.pretrain_chars,
        **dict.fromkeys(SECOND_PHASE, size.part_chars),
    })
    print('[prepare] trains the tokenizer', flush=True)
    tokenizer = train_tokenizer(
        (text for part in PARTS for text in documents[part].train),
        vocab_size,
        folder / 'tokenizer',
    )
    for part in PARTS:
        to = folder / 'data' / part
        n_samples = write_stream(
            documents[part].train,
            tokenizer,
            seq_len,
            to / 'train',
        )
        write_stream(
            documents[part].held_out,
            tokenizer,
            seq_len,
            to / 'held_out',
            max_samples=size.n_held_out,
        )
        tokens = n_samples * seq_len
        print(f'[prepare] {part}: {tokens:,} training tokens', flush=True)
    write_tasks(
        domain=documents[DOMAIN_PART].held_out,
        code=documents['code'].held_out,
        folder=folder / 'tasks',
        n_examples=size.n_examples,
        seed=_SEED,
    )


def _train(folder: Path, plan: TrainingPlan) -> None:
    run_process(
        plan.name,
        composer_command(PROJECT / 'train.py', plan.yaml, plan.overrides),
        cwd=folder,
        log_path=folder / 'logs' / f'{plan.name}.log',
        progress=TrainingProgress(),
    )


def _content(yaml: Path) -> str:
    """A setting of a stage that changes with what the YAML says."""
    digest = hashlib.sha256(yaml.read_bytes()).hexdigest()
    return f'{yaml.name}={digest[:12]}'


def run_quickstart(size_name: str, folder: Path) -> Path:
    """Runs every stage that has not finished, and writes the report.

    Args:
        size_name: A key of ``SIZES``.
        folder: Everything goes here.

    Returns:
        The report.

    Raises:
        StageError: A stage failed, or has finished with another YAML or other
            settings.
    """
    size = SIZES[size_name]
    plans = plan_training(size)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    dense = plans['pretrain']
    seconds = {
        'prepare':
        run_stage(
            folder,
            'prepare',
            [
                repr(size),
                f'seq_len={dense.seq_len}',
                f'vocab_size={dense.shape.vocab_size}',
            ],
            partial(
                _prepare,
                folder,
                size,
                dense.seq_len,
                dense.shape.vocab_size,
            ),
        ),
    }
    for name, plan in plans.items():
        seconds[name] = run_stage(
            folder,
            name,
            [*plan.overrides, *map(_content, (plan.yaml, *_GAUNTLET_YAMLS))],
            partial(_train, folder, plan),
        )
    command = f'{_COMMAND} --size {size_name}'
    return _report(folder, plans, size.n_examples, seconds, command)


def _report(
    folder: Path,
    plans: Mapping[str, TrainingPlan],
    n_examples: int,
    seconds: Mapping[str, float],
    command: str,
) -> Path:
    tracking_uri = str(folder / 'mlruns')
    dense, cpt, upcycled = (
        Arm(
            label=_LABELS[name],
            total_params=plan.shape.n_total_params,
            active_params=plan.shape.n_active_params,
            steps=plan.n_steps,
            tokens=plan.tokens,
            flops=plan.flops,
            result=read_run(tracking_uri, name, plan.n_steps),
        ) for name, plan in plans.items()
    )
    plot_loss(
        {
            arm.label: (arm.result, arm.flops / arm.steps)
            for arm in (cpt, upcycled)
        },
        folder / 'figures' / 'loss.png',
    )
    plot_expert_load(upcycled.result, folder / 'figures' / 'expert_load.png')
    figures = {
        'Training loss of both arms against compute.': 'figures/loss.png',
        'How the token-slots spread over the experts.':
        'figures/expert_load.png',
    }
    comparison = Comparison(dense, cpt, upcycled, n_examples)
    path = folder / 'report.md'
    path.write_text(render_report(comparison, figures, seconds, command))
    return path


def main(args: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=_COMMAND,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--size', choices=sorted(SIZES), default='full')
    parser.add_argument(
        '--folder',
        type=Path,
        help='default: runs/quickstart, or runs/quickstart_tiny',
    )
    parsed = parser.parse_args(args)
    suffix = '' if parsed.size == 'full' else f'_{parsed.size}'
    folder = parsed.folder or Path(f'runs/quickstart{suffix}')
    # As Ctrl-C does: leave through the `finally` that ends a stage's processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        report = run_quickstart(parsed.size, folder)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    print(report.read_text())
    print(f'The report, with figures: {report}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
