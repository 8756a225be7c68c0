"""Memory and time of conversions, beside `cp` and beside other tools.

    python benchmarks/conversion/convert.py [--sizes 30m 120m 430m 1b] \
        [--rounds 3] [--folder FOLDER] [--mergekit PYTHON] [--out FOLDER]

Each job runs in a process of its own, which reports its peak memory (resident,
mapped pages included) and its time without imports. What it wrote is then
copied with `cp` on the same disk, in the same round: shared machines drift,
which pairs within a round cancel. All of it is synced to the disk before each
timed thing and not after it, for `cp` as for the jobs: what is timed is
writing to the page cache, and to the disk as soon as that is full.

Peers, from a Hugging Face folder to one: `load_everything.py`, and mergekit
from an environment of its own (`install_mergekit.sh`). Whether they wrote the
same experts is checked, outside of what is timed.

Sources are made once and kept in the folder. The figures go to OUT:
results.json (each sample), results.md, memory.png, memory.svg. Sizes that are
not measured now keep the figures they have there.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator, Optional

from report import machine, write_report
from samples import Sample, bound_mib

_HERE = Path(__file__).parent
_MERGEKIT = _HERE.parents[1] / '.venv-mergekit/bin/python'
_DTYPES = {'bfloat16': 2, 'float32': 4}
_SIZES = ('tiny', '30m', '120m', '430m', '1b')
_TOO_LARGE = ('1b', 'float32')


@dataclass(frozen=True)
class Job:
    """What is run on each model.

    Attributes:
        name: In the results.
        script: Beside this file.
        source: What it reads, in the model's folder.
        out: What it writes, there.
        file_format: The script's first argument, if it takes one.
        is_peer: Whether it is not ours.
    """
    name: str
    script: str
    source: str
    out: str
    file_format: Optional[str] = None
    is_peer: bool = False


_LLAMA = 'llama-{dtype}'
_JOBS = {
    job.name: job
    for job in (
        Job('pt', 'ours.py', 'dense.pt', 'moe.pt', 'pt'),
        Job('export-hf', 'ours.py', 'moe.pt', 'exported', 'export-hf'),
        Job('dcp', 'ours.py', 'dense.pt', 'moe-dcp', 'dcp'),
        Job('safetensors', 'ours.py', 'dense.pt', 'moe-hf', 'safetensors'),
        Job('llama', 'ours.py', _LLAMA, 'mixtral', 'safetensors'),
        Job(
            'load-everything',
            'load_everything.py',
            _LLAMA,
            'loaded',
            is_peer=True,
        ),
        Job('mergekit', 'mergekit_moe.py', _LLAMA, 'merged', is_peer=True),
    )
}


class Bench:
    """Measures jobs on one model.

    Args:
        size: Of the model.
        dtype: Of what is written.
        folder: Where the sources are and outputs go.
        pythons: Job -> the interpreter that runs it; others run by this one.
    """

    def __init__(
        self,
        size: str,
        dtype: str,
        folder: Path,
        pythons: dict[str, str],
    ):
        self.size = size
        self.dtype = dtype
        self.folder = folder
        self._pythons = pythons
        config = json.loads((folder /
                             f'llama-{dtype}/config.json').read_text(), )
        # w1, v1 and w2 of one layer, 8 experts.
        self.group_bytes = (
            8 * 3 * config['hidden_size'] * config['intermediate_size'] *
            _DTYPES[dtype]
        )
        # But for routers and headers.
        self.dense_bytes = _n_bytes(folder / f'llama-{dtype}')
        self.output_bytes = self.dense_bytes + int(
            7 / 8 * self.group_bytes * config['num_hidden_layers'],
        )

    def round(self, jobs: list[Job], index: int) -> Iterator[Sample]:
        """Runs each job once; those of ours with `cp` after it."""
        self._remove_outputs()  # Those of an interrupted run.
        for job in jobs:
            sample = self._run(job, index)
            out = self.folder / job.out
            if job.is_peer:
                reference = self.folder / _JOBS['llama'].out
                if index == 0 and reference.exists():
                    _python('same_outputs.py', str(reference), str(out))
                    sample.is_same = True
            else:
                self._copy(out, sample)
            yield sample
            # What later jobs need stays.
            if job.name == 'llama' or job.is_peer:
                self._remove('loaded', 'merged')
            elif job.name != 'pt':
                self._remove(job.out)
            if job.name == 'export-hf':
                self._remove('moe.pt')
        self._remove_outputs()

    def _remove_outputs(self) -> None:
        self._remove('copy', *(job.out for job in _JOBS.values()))

    def _run(self, job: Job, index: int) -> Sample:
        source = job.source.format(dtype=self.dtype)
        arguments = [str(self.folder / p) for p in (source, job.out)]
        if job.file_format:
            arguments.insert(0, job.file_format)
        os.sync()
        load = os.getloadavg()[0]
        start = time.perf_counter()
        printed = _python(
            job.script,
            *arguments,
            self.dtype,
            python=self._pythons.get(job.name, sys.executable),
        )
        process_seconds = time.perf_counter() - start
        return Sample(
            size=self.size,
            dtype=self.dtype,
            job=job.name,
            round=index,
            output_bytes=_n_bytes(self.folder / job.out),
            group_bytes=self.group_bytes,
            process_seconds=process_seconds,
            load=load,
            **json.loads(printed.splitlines()[-1]),
        )

    def _copy(self, path: Path, sample: Sample) -> None:
        copy = path.with_name('copy')
        os.sync()
        start, cpu_start = time.perf_counter(), _cpu_of_children()
        subprocess.run(['cp', '-r', path, copy], check=True)
        sample.cp_seconds = time.perf_counter() - start
        sample.cp_cpu_seconds = _cpu_of_children() - cpu_start
        self._remove('copy')

    def _remove(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.with_name(f'{name}.manifest.json').unlink(missing_ok=True)


def _python(script: str, *arguments: str, python: str = sys.executable) -> str:
    """Runs a script of this folder; returns what it printed."""
    done = subprocess.run(
        [python, str(_HERE / script), *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'HF_HUB_OFFLINE': '1',
        },
    )
    if done.returncode:
        raise RuntimeError(f'{script} {arguments} failed:\n{done.stderr}')
    return done.stdout


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _n_bytes(path: Path) -> int:
    files = path.rglob('*') if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def prepare(size: str, folder: Path, dtypes: list[str]) -> None:
    """Makes the sources, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ['dense.pt', *(f'llama-{dtype}' for dtype in dtypes)]
    if not all((folder / name).exists() for name in names):
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)
        print(f'{size}: making the dense model', flush=True)
        _python('sources.py', size, str(folder), *dtypes)


def why_not(job: Job, bench: Bench, mergekit: Path) -> str:
    """Why a job can't run on this machine; empty if it can."""
    disk = 3 * bench.output_bytes
    free = shutil.disk_usage(bench.folder).free
    if free < disk:
        return f'needs {disk / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free'
    memory = bench.dense_bytes + bench.output_bytes
    available = _available_memory()
    if job.name == 'load-everything' and available < memory + 2**30:
        return f'needs {memory / 1e9:.0f} GB of memory, ' \
            f'{available / 1e9:.0f} are available'
    if job.name == 'mergekit' and not mergekit.is_file():
        return 'not installed: run install_mergekit.sh'
    return ''


def _available_memory() -> int:
    with open('/proc/meminfo', encoding='ascii') as file:
        lines = dict(line.split(':') for line in file)
    return int(lines['MemAvailable'].removesuffix('kB\n')) * 1024


def measure_size(
    size: str,
    args: argparse.Namespace,
    skipped: list[str],
) -> Iterator[Sample]:
    """All jobs on a model; why one is left out goes to ``skipped``."""
    dtypes = [d for d in args.dtypes if (size, d) != _TOO_LARGE]
    if len(dtypes) < len(args.dtypes):
        skipped.append(f"{', '.join(_TOO_LARGE)}: 27 GB, three times")
    folder = args.folder / size
    prepare(size, folder, dtypes)
    for dtype in dtypes:
        bench = Bench(size, dtype, folder, {'mergekit': str(args.mergekit)})
        jobs = []
        for name in args.jobs:
            reason = why_not(_JOBS[name], bench, args.mergekit)
            if reason:
                skipped.append(f'{size}, {dtype}, {name}: {reason}')
                print(skipped[-1], flush=True)
            else:
                jobs.append(_JOBS[name])
        for index in range(args.rounds):
            yield from bench.round(jobs, index)


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--sizes', nargs='+', default=_SIZES[1:], choices=_SIZES
    )
    parser.add_argument('--dtypes', nargs='+', default=_DTYPES, choices=_DTYPES)
    parser.add_argument('--jobs', nargs='+', default=_JOBS, choices=_JOBS)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument(
        '--folder',
        type=Path,
        default=Path(tempfile.gettempdir(), 'conversion')
    )
    parser.add_argument('--mergekit', type=Path, default=_MERGEKIT)
    parser.add_argument('--out', type=Path, default=Path('docs/conversion'))
    args = parser.parse_args(arguments)
    args.jobs = [name for name in _JOBS if name in args.jobs]
    if 'export-hf' in args.jobs and 'pt' not in args.jobs:
        parser.error('--jobs export-hf exports what the job pt writes.')
    return args


def main() -> None:
    args = parse()
    results = args.out / 'results.json'
    skipped: list[str] = []
    samples: list[Sample] = []
    for size in args.sizes:
        for sample in measure_size(size, args, skipped):
            samples.append(sample)
            print(_line(sample), flush=True)
    kept = []
    if results.is_file():
        kept = [
            sample for sample in json.loads(results.read_text())['samples']
            if sample['size'] not in args.sizes
        ]
    content = {
        'machine': machine(_version_of_mergekit(args.mergekit)),
        'skipped': skipped,
        'samples': [*kept, *map(asdict, samples)],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(content, indent=1) + '\n')
    write_report(args.out)


def _line(sample: Sample) -> str:
    line = (
        f'{sample.size:5} {sample.dtype:9} {sample.job:16} '
        f'round {sample.round}: {sample.output_bytes / 1e9:6.2f} GB in '
        f'{sample.seconds:6.2f} s, peak {sample.peak_mib:6.0f} MiB'
    )
    if sample.cp_seconds is None:
        return line
    verdict = 'within' if sample.peak_mib <= bound_mib(sample) else 'ABOVE'
    return (
        f'{line} ({verdict} {bound_mib(sample):.0f}), '
        f'{sample.seconds / sample.cp_seconds:.2f} x cp'
    )


def _version_of_mergekit(python: Path) -> Optional[str]:
    if not python.is_file():
        return None
    show = (
        'from importlib.metadata import version as v; '
        'print(*(f"{n} {v(n)}" for n in ("mergekit", "torch", '
        '"transformers")), sep=", ")'
    )
    done = subprocess.run(
        [python, '-c', show],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


if __name__ == '__main__':
    main()
