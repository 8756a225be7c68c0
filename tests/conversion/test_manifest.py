import hashlib
import json
import os

import pytest
import tiny
import tiny_hf

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.manifest import (
    Provenance,
    chain_of_manifests,
    hash_files,
    is_output,
    manifest_path,
    read_manifest,
)
from foundry_upcycle.errors import CheckpointError


def digest(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(source, output, file) -> None:
    files = open_checkpoint(str(source)).files
    provenance = Provenance('convert', str(source), {'seed': 17}, files)
    provenance.start()
    provenance.write({output.name: output}, file)


def test_a_file_is_hashed(tmp_path):
    path = tmp_path / 'dense.pt'
    tiny.save_dense(tiny.build_dense(), path)
    assert hash_files(open_checkpoint(str(path)).files) == {
        'dense.pt': digest(path)
    }


def test_a_folders_config_and_weights_are_hashed(tmp_path):
    tiny_hf.save_llama(tmp_path)
    names = ('config.json', 'model.safetensors')
    expected = {name: digest(tmp_path / name) for name in names}
    assert hash_files(open_checkpoint(str(tmp_path)).files) == expected


def test_what_is_written_is_read(tmp_path):
    source, out = tmp_path / 'dense.pt', tmp_path / 'moe.pt'
    tiny.save_dense(tiny.build_dense(), source)
    out.touch()
    write(source, out, manifest_path(out))
    assert manifest_path(out) == tmp_path / 'moe.pt.manifest.json'
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest['command'] == 'convert'
    assert manifest['settings'] == {'seed': 17}
    assert manifest['source'] == {
        'path': str(source),
        'sha256': {
            'dense.pt': digest(source),
        },
        'manifest': None,
    }
    assert manifest['versions']['torch'].startswith('2.')


def test_the_sources_own_manifest_is_kept(tmp_path):
    folder = tmp_path / 'imported'
    folder.mkdir()
    source = folder / 'checkpoint.pt'
    tiny.save_dense(tiny.build_dense(), source)
    write(source, source, manifest_path(folder))
    (tmp_path / 'moe.pt').touch()
    write(source, tmp_path / 'moe.pt', tmp_path / 'moe.pt.manifest.json')
    manifest = read_manifest(tmp_path / 'moe.pt')
    assert manifest is not None
    assert manifest['source']['manifest'] == json.loads(
        (folder / 'manifest.json').read_text(),
    )


def test_no_manifest(tmp_path):
    assert read_manifest(tmp_path / 'absent.pt') is None


OURS = {
    'command': 'convert',
    'created': '2026-01-01T00:00:00+00:00',
    'versions': {
        'foundry_upcycle': '0.1.0',
    },
    'settings': {},
    'source': {
        'path': '/dense.pt',
        'sha256': {
            'dense.pt': '0',
        },
        'manifest': None,
    },
    'outputs': ['moe.pt'],  # As they were written before fingerprints.
}


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '[]',
        '3',
        '[' * 100_000,
        '{"source": {}}',
        b'\xff',
        *({
            key: value
        }
          for key in OURS
          for value in (None, [], {}, 7)
          if (key, value) != ('settings', {})),
        {
            'source': {
                **OURS['source'], 'sha256': ['dense.pt']
            },
        },
        {
            'versions': {
                'torch': '9',
            },
        },
        {
            'outputs': [3],
        },
    ],
    ids=str,
)
def test_what_is_no_manifest_of_ours_is_none(tmp_path, content):
    path = tmp_path / 'moe.pt'
    tiny.save_dense(tiny.build_dense(), path)
    manifest = manifest_path(path)
    manifest.write_text(json.dumps(OURS))
    assert read_manifest(path) == OURS
    if isinstance(content, dict):
        content = json.dumps({**OURS, **content})
    data = content if isinstance(content, bytes) else content.encode()
    for place in (manifest, tmp_path / 'manifest.json'):
        place.write_bytes(data)
    assert read_manifest(path) is None
    assert not is_output(tmp_path)
    assert dict(describe(str(path)))['made by'] == (
        'not known: moe.pt.manifest.json is none that this version writes'
    )


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / 'manifest.json')
    assert read_manifest(tmp_path) is None and not is_output(tmp_path)


def test_a_chain_ends_where_a_manifest_is_not_ours(tmp_path):
    inner = {**OURS, 'source': {**OURS['source'], 'manifest': [1]}}
    outer = {**OURS, 'source': {**OURS['source'], 'manifest': inner}}
    (tmp_path / 'moe.pt').touch()
    (tmp_path / 'moe.pt.manifest.json').write_text(json.dumps(outer))
    assert chain_of_manifests(str(tmp_path / 'moe.pt')) == [outer, inner]


def test_a_folders_manifest_is_of_the_files_that_it_lists(tmp_path):
    source = tmp_path / 'checkpoint.pt'
    tiny.save_dense(tiny.build_dense(), source)
    write(source, source, manifest_path(tmp_path))
    assert read_manifest(source) is not None
    assert is_output(tmp_path)
    trained = tmp_path / 'latest-rank0.pt'
    trained.touch()
    assert read_manifest(trained) is None
    assert not is_output(tmp_path)


@pytest.mark.parametrize('when', ['hashed', 'written'])
def test_a_source_that_is_replaced_fails_when_written(tmp_path, when):
    source, other = tmp_path / 'dense.pt', tmp_path / 'other.pt'
    for seed, file in enumerate((source, other)):
        tiny.save_dense(tiny.build_dense(seed), file)
    files = open_checkpoint(str(source)).files
    provenance = Provenance('convert', str(source), {}, files)
    if when == 'written':
        provenance.start()
        provenance.write({}, tmp_path / 'before.json')  # When it is hashed.
    other.replace(source)
    if when == 'hashed':
        provenance.start()
    with pytest.raises(CheckpointError, match='dense.pt: it changed while'):
        provenance.write({}, tmp_path / 'manifest.json')
    assert not (tmp_path / 'manifest.json').exists()
