"""The results as Markdown."""

import statistics
from typing import Any, Callable, Mapping, Optional, Sequence

from foundry_upcycle.markdown import cells

__all__ = ['report']

Record = Mapping[str, Any]

_TITLES = {
    'correctness': 'Correctness',
    'layer': 'The layer',
    'training': 'Training',
    'study': 'Continue or upcycle',
}
_NOTES = {
    'correctness':
    'Errors of layers, logits and losses are the largest difference of the '
    'largest value expected (of losses and monitored values: of 1, if that '
    'is more). Excluded: more than one rank.',
    'layer':
    'In bfloat16. "Of dense" is the time of a dense GLU with the same active '
    'FLOPs over the time, in the same round: median, lowest and highest. GiB '
    'is what was allocated beyond weights and input. Excluded: attention and '
    'the rest of a block, the auxiliary loss, the optimizer (which sees E * F, '
    'not K * F, hidden channels), communication; TFLOP/s count the experts\' '
    'products only.',
}


def report(results: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        results: ``machine`` and ``parts``, as ``results.json`` has them.
    """
    lines = ['# foundry_upcycle on this machine', '']
    facts = results['machine'].items()
    known = [(name, value) for name, value in facts if value is not None]
    lines += _table(('', ''), known)
    if results['machine']['device'] == 'cpu':
        lines += ['', 'At tiny size on a CPU: it runs; no figure means more.']
    for part, records in results['parts'].items():
        lines += ['', f'## {_TITLES[part]}', '', _NOTES[part], '']
        lines += _TABLES[part](records)
        lines += _not_measured(records)
    return '\n'.join(lines) + '\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(cells(row))} |" for row in rows),
    ]


def _not_measured(records: Sequence[Record]) -> list[str]:
    lines = []
    for kind, title in (('error', 'Failed'), ('left_out', 'Left out')):
        of_kind = [each for each in records if kind in each]
        if of_kind:
            lines += ['', f'{title}:', '']
            lines += [
                f"- {' : '.join(cells((each['name'], each[kind])))}"
                for each in of_kind
            ]
    return lines


def _correctness(records: Sequence[Record]) -> list[str]:
    rows = [(
        each['name'],
        check['what'],
        f"{check['error']:.1e}",
        f"{check['tolerance']:.1e}",
        'yes' if check['error'] <= check['tolerance'] else 'NO',
    ) for each in records for check in each.get('checks', ())]
    return _table(('case', 'what', 'error', 'tolerance', 'within'), rows)


def _layer(records: Sequence[Record]) -> list[str]:
    lines: list[str] = []
    for title, of_pass, cell in (
        ('Of dense, forward and backward', 'forward + backward', _of_dense),
        ('Of dense, forward', 'forward', _of_dense),
        ('Forward and backward', 'forward + backward', _speed),
        ('Forward', 'forward', _speed),
        ('GiB, forward and backward', 'forward + backward', _peak),
    ):
        samples = {
            each['name']: each['passes'][of_pass]
            for each in records
            if 'passes' in each
        }
        names = dict.fromkeys(n for row in samples.values() for n in row)
        rows = [(case, *(_layer_cell(row.get(name), cell)
                         for name in names))
                for case, row in samples.items()]
        lines += [f'{title}:', '', *_table(('', *names), rows), '']
    missing: dict[str, str] = {}
    for each in records:
        missing.update(each.get('missing', {}))
    return lines + [
        f"- not measured: {': '.join(cells(each))}" for each in missing.items()
    ]


def _layer_cell(sample: Optional[Record], cell: Callable[[Any], str]) -> str:
    if sample is None:
        return ''
    return sample['error'] if 'error' in sample else cell(sample)


def _of_dense(sample: Record) -> str:
    if 'of_dense' not in sample:
        return ''
    return '{:.2f} ({:.2f} to {:.2f})'.format(*sample['of_dense'])


def _speed(sample: Record) -> str:
    median = statistics.median(sample['seconds'])
    return f"{median * 1e3:.2f} ms, {sample['flops'] / median / 1e12:.1f} TF/s"


def _peak(sample: Record) -> str:
    peak = sample['peak_bytes']
    return '' if peak is None else f'{peak / 2**30:.2f}'


_TABLES: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    'correctness': _correctness,
    'layer': _layer,
}
