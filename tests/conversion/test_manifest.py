import hashlib
import json

import pytest
import tiny
import tiny_hf

from foundry_upcycle.conversion.manifest import (
    Provenance,
    hash_files,
    is_output,
    manifest_path,
    read_manifest,
)
from foundry_upcycle.errors import CheckpointError


def digest(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(source, output, file) -> None:
    provenance = Provenance('convert', str(source), {'seed': 17})
    provenance.start()
    provenance.write({output.name: output}, file)


def test_a_file_is_hashed(tmp_path):
    path = tmp_path / 'dense.pt'
    tiny.save_dense(tiny.build_dense(), path)
    assert hash_files(str(path)) == {'dense.pt': digest(path)}


def test_a_folders_config_and_weights_are_hashed(tmp_path):
    tiny_hf.save_llama(tmp_path)
    names = ('config.json', 'model.safetensors')
    expected = {name: digest(tmp_path / name) for name in names}
    assert hash_files(str(tmp_path)) == expected


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


@pytest.mark.parametrize('content', ['{', '[]', '{"source": {}}'])
def test_a_manifest_of_another_tool_is_none(tmp_path, content: str):
    (tmp_path / 'manifest.json').write_text(content)
    assert read_manifest(tmp_path) is None
    assert not is_output(tmp_path)


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


def test_a_source_that_can_not_be_hashed_fails_when_written(tmp_path):
    provenance = Provenance('convert', str(tmp_path / 'absent.pt'), {})
    provenance.start()
    with pytest.raises(CheckpointError, match='not be read to its end'):
        provenance.write({}, tmp_path / 'manifest.json')
    assert not (tmp_path / 'manifest.json').exists()
