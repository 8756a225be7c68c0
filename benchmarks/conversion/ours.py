"""One conversion or export by this project, measured.

    python benchmarks/conversion/ours.py FORMAT SOURCE OUT DTYPE

FORMAT is `pt`, `dcp` or `safetensors` (foundry-upcycle convert), or
`export-hf`.
"""

import sys

import torch
from measure import measure

from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf

if __name__ == '__main__':
    file_format, source, out, dtype_name = sys.argv[1:]
    dtype = getattr(torch, dtype_name)
    if file_format == 'export-hf':
        measure(lambda: export_hf(source, out, dtype=dtype))
    else:
        config = UpcyclingConfig(source)
        measure(lambda: convert(config, out, file_format, dtype=dtype))
