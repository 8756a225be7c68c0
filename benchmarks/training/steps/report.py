"""What was measured, as docs/performance.md."""

import statistics
from typing import Any, Mapping

from benchmarks.training.layers import paired_ratio
from foundry_upcycle.study.report.cells import markdown_table

__all__ = ['report']

_NAMES = {
    'before': 'as before',
    'yaml': 'the YAML',
    'plain': 'plain PyTorch',
}

_TITLES = (
    'model',
    'trained by',
    'tokens/s',
    'GF/s',
    'cores busy',
    'speed / before',
    'the same by CPU time',
    'speed / plain',
    'the same by CPU time',
)

_HEAD = '''\
# Speed
Written by `make bench`; the figures are of one run of it, `{command}`.

{machine}

## Training on a CPU
The callback `cpu_training: {{}}`, which the quickstart's YAMLs have, computes the same, faster: attention by torch's fused kernel instead of one that writes all scores, training metrics of the loss that is there instead of two more cross entropies, and freed memory that stays with the process instead of being cleared by the system at each step. They also read their data without a process of its own (`num_workers: 0`), which would send the lengths of each sequence as a tensor, by a file descriptor. Below are steps of models like the quickstart's of 1M (d_model 128, 4 layers, vocabulary 2048, 16 sequences of 256 tokens) and 0.2M parameters (d_model 64, 4 layers, vocabulary 512, 64 sequences of 128), dense and as mixtures of 8 experts, 2 a token, trained

- without the callback, and with Foundry's own dataloader process, as before;
- as the YAML says, with both;
- by a loop in plain PyTorch (`benchmarks/training/steps/plain.py`): the same layers and optimizer, torch's fused attention and cross entropy, the mixture's experts one after the other, and no dataloader, metrics or logging.

Each is a process of its own, and they take turns of {n_steps} steps. Figures are medians of {rounds} rounds, in brackets the lowest and highest; ratios are of turns of the same round, by the clock and by the CPUs' own time, which other work on the machine changes less. FLOPs are counted as Foundry does, with attention whole. Runs log to MLflow, as in a study. Left out: start-up, checkpoints, evaluation, and that a mixture which began as a dense model routes otherwise (the experts here are random).
'''

_PARTS_HEAD = '''\
### Where the time goes
Milliseconds of a step, by hooks on the modules, which cost some themselves; in turns of their own. `backward` alone is what is in no module: the loss's, sums of residuals, and the load-balancing loss's.
'''

_LAYER_HEAD = '''\
## The layer
The mixture alone beside others that compute the same function, and beside a dense GLU of the same active FLOPs.'''


def report(results: Mapping[str, Any]) -> str:
    """The page, in Markdown.

    Args:
        results: ``command`` and ``machine`` (a sentence), ``rounds``, ``n_steps``; ``shapes``
            (what ``measure_shape`` returned, by name); ``layer`` (what the
            layer's benchmark printed, by its command line).
    """
    lines = [
        _HEAD.format(**results),
        markdown_table(
            _TITLES,
            [
                row for shape, measured in results['shapes'].items()
                for row in _rows(shape, measured)
            ],
            n_left=2,
        ),
        '',
        _PARTS_HEAD,
        _parts(results['shapes']),
    ]
    if results['layer']:
        lines += ['', _LAYER_HEAD]
    for command, printed in results['layer'].items():
        lines += ['', f'`{command}`', '', '```', printed.strip(), '```']
    return '\n'.join(lines) + '\n'


def _rows(shape: str, measured: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for arm, of_arm in measured['arms'].items():
        seconds = statistics.median(of_arm['turns'])
        cpu_seconds = statistics.median(of_arm['cpu_turns'])
        rows.append([
            shape,
            _NAMES[arm],
            f"{measured['tokens_per_step'] / seconds:,.0f}",
            f"{measured['flops_per_step'] / seconds / 1e9:.0f}",
            f'{cpu_seconds / seconds:.1f}',
            *(
                _ratio(measured['arms'], base, arm, key)
                for base in ('before', 'plain')
                for key in ('turns', 'cpu_turns')
            ),
        ])
    return rows


def _ratio(arms: Mapping[str, Any], base: str, arm: str, key: str) -> str:
    if base not in arms or base == arm:
        return ''
    median, low, high = paired_ratio(arms[base][key], arms[arm][key])
    return f'{median:.2f} ({low:.2f} to {high:.2f})'


def _parts(shapes: Mapping[str, Any]) -> str:
    columns = [(f'{shape}, {_NAMES[arm]}', of_arm['parts'])
               for shape, measured in shapes.items()
               for arm, of_arm in measured['arms'].items()
               if 'parts' in of_arm]
    # By their share of all columns.
    names = sorted(
        {name
         for _, parts in columns
         for name in parts},
        key=lambda name: -sum(parts.get(name, 0) for _, parts in columns),
    )
    table = [[name, *(parts.get(name, 0)
                      for _, parts in columns)]
             for name in names]
    table.append(['all', *(sum(parts.values()) for _, parts in columns)])
    return markdown_table(
        ['part', *(title for title, _ in columns)],
        [[name, *(f'{1e3 * s:.0f}'
                  for s in seconds)]
         for name, *seconds in table],
    )
