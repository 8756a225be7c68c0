"""A serving study of real weights that asks for quality."""

import json
from pathlib import Path
from typing import Any

__all__ = ['GREEDY', 'NAMES', 'TEXT', 'changes_in', 'write_models']

NAMES = {'dense': 1, 'moe': 8, 'kept': 4, 'mean': 1}
GREEDY = {'prompts': 1, 'input_tokens': 2, 'output_tokens': 4}
# Of 20 numbers, each the one before and 1: as the stub's mixtures count.
TEXT = {'prompt': list(range(20)), 'bytes': 40}


def write_models(folder: Path) -> None:
    """Folders of real weights, of 2 x 2 numbers each, and a text."""
    header = '{"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'
    weights = len(header).to_bytes(8, 'little') + header.encode() + bytes(16)
    for name, experts in NAMES.items():
        (folder / name).mkdir()
        config = {'vocab_size': 512, 'num_hidden_layers': 2}
        if experts > 1:
            config['num_local_experts'] = experts
        (folder / name / 'config.json').write_text(json.dumps(config))
        (folder / name / 'model.safetensors').write_bytes(weights)
    lines = (json.dumps(TEXT), json.dumps(TEXT))
    (folder / 'texts.jsonl').write_text('\n'.join(lines))


def changes_in(folder: Path) -> list[tuple[str, Any]]:
    """Of a study of real weights with two other models, and quality."""
    size = {name: {'folder': str(folder / name)} for name in NAMES}
    others = {name: size.pop(name) for name in ('kept', 'mean')}
    return [
        ('folder', str(folder / 'out')),
        ('load_format', 'real'),
        ('routing', None),
        ('sizes tiny', {
            **size, 'others': others
        }),
        (
            'quality',
            {
                'texts': str(folder / 'texts.jsonl'),
                'greedy': {
                    **GREEDY
                },
            },
        ),
    ]
