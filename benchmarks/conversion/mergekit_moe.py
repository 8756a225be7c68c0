"""A peer: `mergekit-moe`, measured. Run it with mergekit's Python.

    .venv-mergekit/bin/python benchmarks/conversion/mergekit_moe.py \
        SOURCE OUT DTYPE

SOURCE is a Hugging Face folder of a Llama with a tokenizer, OUT one of a
Mixtral: SOURCE as each of 8 experts, random routers, mergekit's defaults.
"""

import json
import sys
import tempfile

from measure import measure
from mergekit.scripts.moe import main

if __name__ == '__main__':
    source, out, dtype_name = sys.argv[1:]
    config = {
        'base_model': source,
        'experts': [{
            'source_model': source,
        }] * 8,
        'experts_per_token': 2,
        'gate_mode': 'random',
        'dtype': dtype_name,
    }
    with tempfile.NamedTemporaryFile('w', suffix='.yaml') as file:
        json.dump(config, file)  # JSON is YAML.
        file.flush()
        arguments = [
            file.name,
            out,
            '--quiet',
            '--i-understand-this-is-not-useful-without-training',
        ]
        measure(lambda: main(arguments, standalone_mode=False))
