"""The results as Markdown."""

import statistics
from typing import Any, Callable, Mapping, Optional, Sequence

from foundry_upcycle.markdown import cells, code
from foundry_upcycle.study.report.cells import markdown_table

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
    'training':
    'Steps of 16 sequences of random tokens in microbatches, by Foundry\'s '
    'trainer, from the YAMLs of those names; attention and loss by flash-attn '
    'where it is installed, else by `scaled_dot_product_attention` (`attn_impl: '
    'torch` by itself is slower) and torch. FLOPs are those of '
    '`foundry-upcycle flops`: the masked half of attention counts, '
    'recomputation, balancing loss and optimizer do not. GiB is the most that '
    'was allocated. Operations are named by what starts their kernels. '
    'Excluded: more than one GPU, and with it FSDP; start-up, evaluation, '
    'checkpoints; routers are untrained.',
    'study':
    'A small model, overtrained on text of the installed packages, goes on as '
    'a dense model and as a mixture of 8 experts for the same FLOPs. One seed: '
    'no intervals over seeds.',
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
    return markdown_table(head, rows, n_left=len(head)).splitlines()


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


def _training(records: Sequence[Record]) -> list[str]:
    measured = [each for each in records if 'sizes' in each]
    rows = []
    for each in measured:
        fastest = _fastest(each)
        for size in each['sizes']:
            best = ' (best)' if size is fastest else ''
            row = [each['name'], f"{size['microbatch']}{best}"]
            if 'error' in size:
                rows.append([*row, size['error'], '', '', ''])
                continue
            flops = size['tokens_per_s'] * each['flops_per_token']
            peak, of = size['peak_bytes'], each['peak_flops']
            rows.append([
                *row,
                f"{size['tokens_per_s']:,.0f}",
                f'{flops / 1e12:.1f}',
                f'{flops / of:.3f}' if of else '',
                '' if peak is None else f'{peak / 2**30:.1f}',
            ])
    head = 'run', 'microbatch', 'tokens/s', 'TFLOP/s', 'MFU', 'GiB'
    lines = _table(head, rows)
    if any(size.get('peak_bytes')
           for each in measured
           for size in each['sizes']):
        lines += _targets(measured)  # On a CPU they would mean nothing.
    for each in measured:
        lines += ['', f"Where a step of {each['name']} goes:", '']
        lines += _table(
            ('operation', 'calls', 'ms', 'share'),
            [(
                op['name'],
                op['calls'],
                f"{op['seconds'] * 1e3:.1f}",
                f"{op['share']:.3f}",
            ) for op in each['operations']],
        )
    return lines


def _fastest(record: Record) -> Record:
    sizes = [each for each in record['sizes'] if 'tokens_per_s' in each]
    return max(sizes, key=lambda each: each['tokens_per_s'])


def _targets(records: Sequence[Record]) -> list[str]:
    """FLOP/s of the upcycled 430M over those of what it is to keep up with."""
    speeds = {
        each['name']: _fastest(each)['tokens_per_s'] * each['flops_per_token']
        for each in records
    }
    ours = speeds.get('upcycle_430m')
    lines = []
    for name, other, least in (
        ("the dense model's MFU", 'pretrain_430m', 0.8),
        ("MegaBlocks' speed", 'upcycle_430m, MegaBlocks', 1.0),
    ):
        if ours is None or other not in speeds:
            lines.append(f'- upcycled 430M at {least} of {name}: not measured')
            continue
        ratio = ours / speeds[other]
        word = 'met' if ratio >= least else 'NOT met'
        lines.append(
            f'- upcycled 430M at {least} of {name}: {ratio:.2f}, {word}',
        )
    return ['', 'Targets:', '', *lines]


def _study(records: Sequence[Record]) -> list[str]:
    lines = _table(
        ('step', 'seconds'),
        [(each['name'], each['seconds'])
         for each in records
         if 'seconds' in each],
    )
    for each in records:
        if 'verdict' in each:
            lines += [
                '', each['verdict'], '', f"All of it: {code(each['report'])}"
            ]
    return lines


_TABLES: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    'correctness': _correctness,
    'layer': _layer,
    'training': _training,
    'study': _study,
}
