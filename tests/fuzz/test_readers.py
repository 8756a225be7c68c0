"""Whatever a file holds, it is read right or refused in our words.

Right: what a damaged checkpoint gives of a tensor is what was stored, unless
the damage is to the tensor's own numbers, which nothing tells from others.
"""

import json
import os
import resource
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Callable, Iterator

import pytest
import tiny
import tiny_gguf
import tiny_hf
import tiny_tasks
import torch
import torch.distributed.checkpoint as dcp
from fuzz.damage import (
    damage_bytes,
    damage_header,
    damage_json,
    damage_once,
    damage_pickle,
)

from foundry_upcycle.callbacks.expert_shares import read_expert_shares
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import as_mixture
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.manifest import is_output, read_manifest
from foundry_upcycle.errors import CheckpointError, ConfigError, TaskDataError
from foundry_upcycle.gauntlet.gauntlets import FOLDER, read_gauntlet
from foundry_upcycle.gauntlet.records import check_records
from foundry_upcycle.gauntlet.results import FORMAT, read_results
from foundry_upcycle.gauntlet.tasks import read_tasks
from foundry_upcycle.planning.budget import read_training_budget
from foundry_upcycle.study.config import read_study

hypothesis = pytest.importorskip('hypothesis')
from hypothesis import strategies as st  # noqa: E402

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings('ignore')]

# Of all readers together.
CASES = int(os.environ.get('FUZZ_CASES', 100_000))
# Of the processor: other processes don't count.
SECONDS = 20
MEMORY_BYTES = 2**31

TYPED = (CheckpointError, ConfigError, TaskDataError)


class TooSlow(BaseException):
    """One case took longer than ``SECONDS``; no reader catches it."""


@pytest.fixture(scope='module', autouse=True)
def bounds() -> Iterator[None]:
    """What no case may need: much memory, or long."""

    def stop(*_: Any) -> None:
        raise TooSlow

    with open('/proc/self/statm') as stream:
        pages = int(stream.read().split()[0])
    used = pages * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    handler = signal.signal(signal.SIGPROF, stop)
    yield
    signal.signal(signal.SIGPROF, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Passes errors of ours, of a length that can be read."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except TYPED as error:
        message = str(error)
        assert ' Fix: ' in message
        assert len(message.encode()) < 10_000
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def cases(share: float) -> Callable[[Any], Any]:
    """Calls a test with that share of all cases, each a generator."""

    def decorate(test: Any) -> Any:
        return hypothesis.settings(
            max_examples=max(1, int(CASES * share)),
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(
            hypothesis.given(random=st.randoms(use_true_random=False))(test)
        )

    return decorate


MODEL: dict[str, Any] = {
    'd_model': 8,
    'n_heads': 2,
    'n_layers': 1,
    'vocab_size': 16,
    'max_seq_len': 8,
}


class Sample:
    """A valid checkpoint, to be damaged again and again.

    Args:
        path: Where it is: a file, or a folder of files.
    """

    def __init__(self, path: Path):
        self.path = path
        files = [path] if path.is_file() else sorted(path.iterdir())
        self.files = {file: file.read_bytes() for file in files}
        checkpoint = open_checkpoint(str(path))
        self.tensors = {
            name: checkpoint.read(name, 0, 0, info.shape[0]).clone()
            for name, info in checkpoint.tensors.items()
        }
        self.spans = {file: [*self._spans(file)] for file in files}

    def _spans(self, file: Path) -> Iterator[tuple[int, int]]:
        """Where the numbers of tensors are."""
        for tensor in self.tensors.values():
            for part in (tensor, *tensor.split(4)):
                numbers = part.contiguous().numpy().tobytes()
                start = self.files[file].find(numbers)
                if start >= 0:
                    yield start, start + len(numbers)

    def is_of_numbers(self, file: Path, before: bytes, data: bytes) -> bool:
        """Whether one damage is within tensors' numbers, and moves nothing."""
        if len(before) != len(data):
            return False
        if len(before) != len(self.files[file]):
            return True  # It may be: they lie elsewhere by now.
        changed = [i for i, (a, b) in enumerate(zip(before, data)) if a != b]
        return any(
            start <= i < stop
            for i in changed
            for start, stop in self.spans[file]
        )

    def check(
        self,
        file: Path,
        data: bytes,
        is_exact: bool = True,
        is_described: bool = False,
    ) -> None:
        """Reads it with one file's content replaced."""
        # Not written over: that would be a change while it is read.
        file.unlink()
        file.write_bytes(data)
        try:
            with in_our_words():
                checkpoint = open_checkpoint(str(self.path))
                for name, (shape, dtype) in checkpoint.tensors.items():
                    for n in shape[:1]:
                        found = checkpoint.read(name, 0, 0, n)
                        assert (found.shape, found.dtype) == (shape, dtype)
                        if is_exact and name in self.tensors:
                            assert torch.equal(found, self.tensors[name]), name
                checkpoint.files.check()
            if is_described:
                with in_our_words():
                    describe(str(self.path))
        finally:
            file.unlink()
            file.write_bytes(self.files[file])

    def damage(self, random: Random, suffix: str = '') -> None:
        names = [f for f in self.files if f.name.endswith(suffix)]
        file = random.choice(names)
        data, is_exact = self.files[file], True
        for _ in range(random.randint(1, 3)):
            damaged = damage_once(data, random)
            if self.is_of_numbers(file, data, damaged):
                is_exact = False
            data = damaged
        self.check(file, data, is_exact)


@pytest.fixture(scope='module')
def state() -> dict[str, Any]:
    model = tiny.build_dense(**MODEL)
    with torch.no_grad():
        for parameter in model.parameters():  # None is like another.
            parameter.normal_()
    return {
        'state': {
            'model': model.state_dict(),
            'integrations': {
                'huggingface': model.get_metadata(),
            },
        },
    }


@pytest.fixture(scope='module')
def pt(state, tmp_path_factory) -> Sample:
    path = tmp_path_factory.mktemp('pt') / 'dense.pt'
    torch.save(state, path)
    return Sample(path)


@pytest.fixture(scope='module')
def sharded(state, tmp_path_factory) -> Sample:
    path = tmp_path_factory.mktemp('dcp') / 'dense'
    # A config of little, as each setting is an archive of its own.
    few = {'n_layers': 1, 'd_model': 8, 'n_heads': 2}
    model = {'model': {'config': {'content': few}}}
    state = {**state['state'], 'integrations': {'huggingface': model}}
    dcp.save({'state': state}, checkpoint_id=path)
    return Sample(path)


@pytest.fixture(scope='module')
def hf(tmp_path_factory) -> Sample:
    path = tmp_path_factory.mktemp('hf')
    model = tiny_hf.build_llama(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=16,
        max_position_embeddings=8,
    )
    model.save_pretrained(path, max_shard_size='1KB')
    return Sample(path)


@pytest.fixture(scope='module')
def gguf(tmp_path_factory) -> Sample:
    path = tmp_path_factory.mktemp('gguf') / 'dense.gguf'
    tiny_gguf.write_gguf(path)
    return Sample(path)


@cases(0.1)
def test_a_monolithic_file(pt, random):
    pt.damage(random)


@cases(0.08)
def test_a_monolithic_files_pickle(pt, random):
    data = damage_pickle(pt.files[pt.path], random)
    # Names, shapes and offsets may be others, which nothing shows.
    pt.check(pt.path, data, is_exact=False)


@cases(0.05)
def test_a_config_in_a_monolithic_file(state, pt, random):
    content = json.loads(json.dumps(state['state']['integrations']))
    damaged = json.loads(damage_config(json.dumps(content), random))
    path = pt.path.with_name('config.pt')
    torch.save(
        {'state': {
            **state['state'], 'integrations': damaged
        }},
        path,
    )
    with in_our_words():
        dense = open_checkpoint(str(path))
        as_mixture(dense, UpcyclingConfig(str(path)), 2, 1)
    with in_our_words():
        describe(str(path))


def damage_config(text: str, random: Random) -> bytes:
    while True:
        try:
            damaged = damage_json(text.encode(), random)
            json.loads(damaged)
            return damaged
        except (ValueError, RecursionError):
            continue


@cases(0.1)
def test_metadata_of_a_sharded_folder(sharded, random):
    sharded.damage(random, '.metadata')


@cases(0.08)
def test_a_file_of_a_sharded_folder(sharded, random):
    sharded.damage(random, '.distcp')


@cases(0.1)
def test_a_gguf_file(gguf, random):
    data = gguf.files[gguf.path]
    end = min(start for start, _ in gguf.spans[gguf.path])
    damaged = damage_bytes(data[:end], random) + data[end:]
    # Another place or shape of a tensor, which nothing shows.
    gguf.check(gguf.path, damaged, is_exact=False, is_described=True)


@cases(0.07)
def test_a_file_of_a_huggingface_folder(hf, random):
    hf.damage(random)


@cases(0.07)
def test_a_header_of_safetensors(hf, random):
    file = random.choice([f for f in hf.files if f.suffix == '.safetensors'])
    # Other offsets of tensors of one shape are other tensors.
    hf.check(file, damage_header(hf.files[file], random), is_exact=False)


@cases(0.1)
def test_json_of_a_huggingface_folder(hf, random):
    file = random.choice([f for f in hf.files if f.suffix == '.json'])
    hf.check(file, damage_json(hf.files[file], random), is_described=True)


TRAIN = """
max_seq_len: 8
model: {name: mpt_causal_lm, d_model: 8, n_heads: 2, n_layers: 1, vocab_size: 16}
global_train_batch_size: 4
max_duration: 10ba
"""
TASK = {
    'label': 'copa',
    'dataset_uri': 'copa.jsonl',
    'num_fewshot': [0],
    'icl_task_type': 'multiple_choice',
}
METRIC = 'InContextLearningMultipleChoiceAccuracy'
DOCUMENTS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    'manifest': (
        {
            'command': 'convert',
            'created': '2026-01-01T00:00:00',
            'versions': {
                'foundry_upcycle': '0.1'
            },
            'settings': {
                'seed': 17
            },
            'source': {
                'path': '/a.pt',
                'sha256': {
                    'a.pt': '00'
                },
                'manifest': None,
            },
            'outputs': ['moe.pt'],
        },
        lambda path: (read_manifest(path.parent), is_output(path.parent)),
    ),
    'shares': (
        {
            f'router/layer_{layer}/expert_{expert}/share': 0.5
            for layer in range(2)
            for expert in range(2)
        },
        lambda path: read_expert_shares(str(path)),
    ),
    'results': (
        {
            'format': FORMAT,
            'model': {
                'name': 'a',
                'source': None,
                'n_params': 5
            },
            'run_name': 'run',
            'batch': 3,
            'precision': 'fp32',
            'tasks': {
                'copa/0-shot': {
                    'metric': METRIC,
                    'accuracy': 0.5,
                    'n': 2,
                    'correct': '01',
                    'seconds': 1.5,
                },
            },
        },
        lambda path: read_results(str(path)),
    ),
    'metrics': (
        {
            f'metrics/copa/0-shot/{METRIC}': 0.5,
            'icl/n_examples/copa/0-shot': 2,
        },
        lambda path: read_results(str(path)),
    ),
    'tasks': ({
        'icl_tasks': [TASK]
    }, read_tasks),
    'gauntlet': (
        (FOLDER / 'paper.yaml'),
        read_gauntlet,
    ),
    'study': (
        Path(__file__).parents[2] / 'yamls' / 'study_quickstart.yaml',
        read_study,
    ),
    'train': (TRAIN, lambda path: read_training_budget(str(path))),
    **{
        f'records of {kind}': (
            record,
            lambda path, kind=kind: check_records(path, kind, {}, False),
        )
        for kind, record in tiny_tasks.RECORDS.items()
    },
}


def as_json(content: Any) -> bytes:
    """JSON is YAML as well."""
    if isinstance(content, Path):
        content = content.read_text()
    if isinstance(content, str):
        from omegaconf import OmegaConf
        content = OmegaConf.to_container(OmegaConf.create(content))
    return json.dumps(content).encode()


@pytest.mark.parametrize('kind', DOCUMENTS)
def test_a_document(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp('documents') / 'manifest.json'
    content, read = DOCUMENTS[kind]
    data = as_json(content)
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)

        @cases(0.25 / len(DOCUMENTS))
        def check(random: Random) -> None:
            damage = random.choice((damage_bytes, damage_json))
            path.write_bytes(damage(data, random))
            with in_our_words():
                read(path)

        check()
