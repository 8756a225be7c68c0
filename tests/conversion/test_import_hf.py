import json

import pytest
import tiny_hf
import torch
import yaml

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.conversion.manifest import hash_files, read_manifest
from foundry_upcycle.errors import CheckpointError, ConfigError


@pytest.mark.parametrize('tied', [False, True])
def test_the_mpt_computes_the_same(tmp_path, tied: bool):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    llama = tiny_hf.save_llama(source, tie_word_embeddings=tied)
    import_hf(str(source), str(out))
    model = tiny_hf.build_from_section(
        out / 'model.yaml',
        out / 'checkpoint.pt',
    )

    def run(ids: torch.Tensor) -> torch.Tensor:
        return model({'input_ids': ids})

    difference = tiny_hf.logits(run) - tiny_hf.logits(llama)
    assert difference.abs().max() <= 1e-5


def test_what_is_written(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    import_hf(str(source), str(out))
    assert {file.name
            for file in out.iterdir()} == {
                'checkpoint.pt',
                'hf',
                'manifest.json',
                'model.yaml',
            }
    text = (out / 'model.yaml').read_text()
    assert f'load_path: {out}/checkpoint.pt' in text
    sections = yaml.safe_load(text)
    assert sections['model']['name'] == 'mpt_causal_lm'
    assert sections['tokenizer'] == {
        'name': f'{out}/hf',
        'kwargs': {
            'model_max_length': 64,
        },
    }
    manifest = read_manifest(out / 'checkpoint.pt')
    assert manifest is not None
    assert manifest['source']['sha256'] == hash_files(str(source))


def test_a_mixture_comes_back_from_mixtral(tmp_path):
    source, mixtral, out = (tmp_path / name for name in 'abc')
    tiny_hf.save_llama(source)
    convert(UpcyclingConfig(str(source)), str(mixtral), 'safetensors')
    import_hf(str(mixtral), str(out))
    sections = yaml.safe_load((out / 'model.yaml').read_text())
    assert sections['model']['name'] == 'upcycled_mpt'
    model = tiny_hf.build_from_section(
        out / 'model.yaml',
        out / 'checkpoint.pt',
    )
    difference = tiny_hf.logits(lambda ids: model({'input_ids': ids}),
                               ) - tiny_hf.logits(tiny_hf.load(mixtral))
    assert difference.abs().max() <= 1e-5


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_dtype(tmp_path, dtype):
    tiny_hf.save_llama(tmp_path / 'llama')
    import_hf(str(tmp_path / 'llama'), str(tmp_path / 'out'), dtype)
    checkpoint = open_checkpoint(str(tmp_path / 'out' / 'checkpoint.pt'))
    assert {info.dtype for info in checkpoint.tensors.values()} == {dtype}


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    source = tmp_path / 'llama'
    tiny_hf.save_llama(source)
    tiny_hf.save_tokenizer(source, vocab_size=200)
    with pytest.raises(CheckpointError, match='ids up to 199, the model a voc'):
        import_hf(str(source), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_what_mpt_can_not_express_is_refused(tmp_path):
    source = tmp_path / 'llama'
    tiny_hf.save_llama(source)
    config = json.loads((source / 'config.json').read_text())
    config['rope_scaling'] = {'rope_type': 'yarn', 'factor': 4.0}
    (source / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="rope_scaling.rope_type='yarn'"):
        import_hf(str(source), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='config.json: it is missing'):
        import_hf(str(tmp_path / 'absent'), str(tmp_path / 'out'))
