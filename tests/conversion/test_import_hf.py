import json
import resource
import tempfile

import pytest
import tiny_gguf
import tiny_hf
import torch
import yaml
from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.conversion.inspect import describe
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


def test_a_gemma_is_not_rounded(tmp_path):
    torch.manual_seed(0)
    config = GemmaConfig(**tiny_hf.LLAMA, head_dim=16)
    gemma = GemmaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in gemma.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    gemma.bfloat16().save_pretrained(tmp_path / 'gemma')
    source, out = str(tmp_path / 'gemma'), tmp_path / 'out'
    with pytest.raises(ConfigError, match="dtype='bfloat16': .*would round"):
        import_hf(source, str(out), torch.bfloat16)
    for file_format in ('pt', 'dcp'):
        with pytest.raises(ConfigError, match="dtype='bfloat16': .*would"):
            convert(
                UpcyclingConfig(source),
                str(out),
                file_format,
                dtype=torch.bfloat16,
            )
    assert not out.exists()
    import_hf(source, str(out))
    export_hf(
        str(out / 'checkpoint.pt'),
        str(tmp_path / 'again'),
        like=str(out / 'hf'),
        dtype=torch.bfloat16,
    )
    again = tiny_hf.load(tmp_path / 'again', torch_dtype='auto')
    for name, tensor in gemma.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_config_without_vocabulary_has_transformers_default(tmp_path):
    source = tmp_path / 'llama'
    tiny_hf.save_llama(source, vocab_size=32000)
    config = json.loads((source / 'config.json').read_text())
    del config['vocab_size']
    (source / 'config.json').write_text(json.dumps(config))
    import_hf(str(source), str(tmp_path / 'out'))


@pytest.fixture(scope='module')
def gguf_file(tmp_path_factory):
    """A GGUF file, and its original in the folder `original`."""
    folder = tmp_path_factory.mktemp('gguf')
    model = tiny_gguf.write_gguf(folder / 'tiny.gguf', tied=False)
    model.save_pretrained(folder / 'original')
    return folder / 'tiny.gguf'


def test_a_gguf_file_computes_the_same(tmp_path, gguf_file):
    import_hf(str(gguf_file), str(tmp_path / 'out'))
    model = tiny_hf.build_from_section(
        tmp_path / 'out' / 'model.yaml',
        tmp_path / 'out' / 'checkpoint.pt',
    )
    difference = tiny_hf.logits(
        lambda ids: model({'input_ids': ids}),
    ) - tiny_hf.logits(tiny_hf.load(gguf_file.parent / 'original'), )
    assert difference.abs().max() <= 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / 'out' / 'hf').vocab_size
    manifest = read_manifest(tmp_path / 'out' / 'checkpoint.pt')
    assert manifest is not None
    assert [*manifest['source']['sha256']] == ['tiny.gguf']


def test_a_gguf_file_need_not_be_imported(tmp_path, gguf_file):
    outputs = []
    for i, source in enumerate((gguf_file, gguf_file.parent / 'original')):
        convert(UpcyclingConfig(str(source)), str(tmp_path / f'{i}.pt'), 'pt')
        outputs.append((tmp_path / f'{i}.pt').read_bytes())
    assert outputs[0] == outputs[1]
    assert ('format', 'GGUF file') in describe(str(gguf_file))


def test_a_tokenizer_by_its_folder(tmp_path, gguf_file):
    import_hf(str(gguf_file), str(tmp_path / 'out'))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'out' / 'hf')
    tokenizer.add_tokens(['<more>'])
    tokenizer.save_pretrained(tmp_path / 'own')
    source = tmp_path / 'other.gguf'
    # Of a kind that is not read, and with room for the token.
    tiny_gguf.write_gguf(
        source,
        sizes={'vocab_size': 272},
        tokenizer__ggml__model='llama',
    )
    with pytest.raises(CheckpointError, match="kind 'llama'.* --tokenizer FOL"):
        import_hf(str(source), str(tmp_path / 'llama'))
    import_hf(
        str(source),
        str(tmp_path / 'llama'),
        tokenizer=str(tmp_path / 'own'),
    )
    found = AutoTokenizer.from_pretrained(tmp_path / 'llama' / 'hf')
    assert found.get_vocab() == tokenizer.get_vocab()
    tiny_hf.save_tokenizer(tmp_path / 'foreign')
    for folder, match in (
        ('foreign', "'!' has the id .*, in this tokenizer None"),
        ('empty', 'it has no tokenizer'),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=match):
            import_hf(
                str(source),
                str(tmp_path / 'never'),
                tokenizer=str(tmp_path / folder),
            )
    assert not (tmp_path / 'never').exists()


@pytest.mark.parametrize('kind', ['gguf', 'folder'])
def test_without_a_tokenizer(tmp_path, gguf_file, kind: str):
    if kind == 'folder':
        tiny_hf.save_llama(tmp_path / 'llama')
    source = gguf_file if kind == 'gguf' else tmp_path / 'llama'
    import_hf(str(source), str(tmp_path / 'out'), with_tokenizer=False)
    names = {path.name for path in (tmp_path / 'out' / 'hf').iterdir()}
    assert names == {'config.json', 'generation_config.json'}


@pytest.mark.parametrize('what', ['no such folder', 'full'])
def test_a_full_temporary_folder_is_named(
    tmp_path,
    monkeypatch,
    gguf_file,
    what: str,
):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'absent'))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if what == 'full':
        # No disk is full; but no file gets long, and the error is the same.
        (tmp_path / 'absent').mkdir()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match='could not be .* set TMPDIR'):
            import_hf(str(gguf_file), str(tmp_path / 'out'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / 'out').exists()


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='config.json: it is missing'):
        import_hf(str(tmp_path / 'absent'), str(tmp_path / 'out'))
