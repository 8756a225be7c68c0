import json
import resource
import tempfile
import warnings

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
from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    UpcyclingWarning,
)


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
    assert manifest['source']['sha256'] == hash_files(
        open_checkpoint(str(source)).files
    )


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


def test_tokens_without_a_row_are_warned_of_and_the_weights_imported(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({'additional_special_tokens': ['<image>']})
    tokenizer.save_pretrained(source)
    with pytest.warns(UpcyclingWarning, match="1 of .* id 128 .'<image>'.*128"):
        import_hf(str(source), str(out))
    assert AutoTokenizer.from_pretrained(out / 'hf').vocab['<image>'] == 128
    assert open_checkpoint(str(out / 'checkpoint.pt')).tensors


def test_what_transformers_5_saved_can_be_trained_on(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    tiny_hf.save_tokenizer_5(source)
    with pytest.raises(ValueError, match='TokenizersBackend does not exist'):
        AutoTokenizer.from_pretrained(source)
    import_hf(str(source), str(out))
    tokenizer = AutoTokenizer.from_pretrained(out / 'hf')
    assert tokenizer.eos_token_id == 2
    assert tokenizer.all_special_ids == [1, 2, 0, 127]
    # The class of transformers 5 gives no token_type_ids.
    assert [*tokenizer('w0 w124')] == ['input_ids', 'attention_mask']
    assert tokenizer('w0 w124').input_ids == [3, 127]
    assert tokenizer.chat_template == 'chat {{ messages }}\n'
    for file in source.rglob('*.j*'):
        if file.name not in ('tokenizer_config.json', 'model.safetensors'):
            copy = out / 'hf' / file.relative_to(source)
            assert copy.read_bytes() == file.read_bytes()


def test_a_tokenizer_with_code_is_copied_and_not_run(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    code = {
        'tokenization_own.py': 'from .words import WORDS\nraise SystemExit(9)',
        'words.py': 'WORDS = ()\n',
        'own.tiktoken': 'IQ== 0\n',
        # No bytes at all are a call to pickle.
        'empty.tiktoken': '',
    }
    for name, text in code.items():
        (source / name).write_text(text)
    (source / 'modeling_own.py').write_text('')
    (source / 'tokenizer.json').unlink()
    (source / 'tokenizer_config.json').write_text(
        json.dumps({
            'tokenizer_class': 'OwnTokenizer',
            'auto_map': {
                'AutoTokenizer': ['tokenization_own.OwnTokenizer', None],
            },
        }),
    )
    with pytest.warns(UpcyclingWarning) as warned:
        import_hf(str(source), str(out))
    assert 'trust_remote_code: true' in ' '.join(str(w.message) for w in warned)
    for name, text in code.items():
        assert (out / 'hf' / name).read_text() == text
    assert not (out / 'hf' / 'modeling_own.py').exists()
    # And through a Composer file.
    export_hf(str(out / 'checkpoint.pt'), str(tmp_path / 'exported'))
    for name, text in code.items():
        assert (tmp_path / 'exported' / name).read_text() == text


def test_a_damaged_tokenizer_keeps_no_weights_back(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    (source / 'tokenizer.json').write_text('{')
    with pytest.raises(CheckpointError, match='tokenizer.*--no-tokenizer'):
        import_hf(str(source), str(out))
    assert not out.exists()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UpcyclingWarning)
        import_hf(str(source), str(out), with_tokenizer=False)
    assert not (out / 'hf' / 'tokenizer.json').exists()
    assert 'tokenizer' not in yaml.safe_load((out / 'model.yaml').read_text())


def test_a_source_without_tokenizer_is_warned_of(tmp_path):
    tiny_hf.build_llama().save_pretrained(tmp_path / 'llama')
    with pytest.warns(UpcyclingWarning, match='it has no tokenizer.*--tokeniz'):
        import_hf(str(tmp_path / 'llama'), str(tmp_path / 'out'))


def test_a_tokenizer_that_ends_no_text_is_warned_of(tmp_path):
    source = tmp_path / 'llama'
    tiny_hf.save_llama(source)
    for file in ('config.json', 'generation_config.json'):
        content = json.loads((source / file).read_text())
        (source /
         file).write_text(json.dumps({
             **content, 'eos_token_id': None
         }))
    for file in ('tokenizer_config.json', 'special_tokens_map.json'):
        content = json.loads((source / file).read_text())
        (source / file).write_text(json.dumps({**content, 'eos_token': None}))
    with pytest.warns(UpcyclingWarning, match='nothing says .*eos_token'):
        import_hf(str(source), str(tmp_path / 'out'))


def test_another_tokenizer_brings_its_own_ids(tmp_path):
    source, other, out = (tmp_path / name for name in ('llama', 'b', 'out'))
    tiny_hf.save_llama(source)
    tiny_hf.save_tokenizer(other)
    AutoTokenizer.from_pretrained(
        other,
        eos_token='w0',
    ).save_pretrained(other)
    import_hf(str(source), str(out), tokenizer=str(other))
    config = json.loads((out / 'hf' / 'config.json').read_text())
    assert config['eos_token_id'] == 3
    # That of the source names the other one.
    assert not (out / 'hf' / 'generation_config.json').exists()
    assert AutoTokenizer.from_pretrained(out / 'hf').eos_token_id == 3


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    source, out = str(tmp_path / 'llama'), str(tmp_path / 'out')
    tiny_hf.save_llama(source)
    with pytest.raises(CheckpointError, match='absent: there is no such file '):
        import_hf(source, out, tokenizer=str(tmp_path / 'absent'))
    with pytest.raises(CheckpointError, match='it has no tokenizer'):
        import_hf(source, out, tokenizer=str(tmp_path))
    with pytest.raises(ConfigError, match='--no-tokenizer contradicts it'):
        import_hf(source, out, tokenizer=source, with_tokenizer=False)


@pytest.mark.parametrize('wanted,found', [(None, 4096), (8192, 8192)])
def test_max_seq_len(tmp_path, wanted, found):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source, max_position_embeddings=131072)
    lengths = import_hf(str(source), str(out), max_seq_len=wanted)
    assert lengths == (found, 131072)
    sections = yaml.safe_load((out / 'model.yaml').read_text())
    assert sections['max_seq_len'] == sections['model']['max_seq_len'] == found
    assert sections['tokenizer']['kwargs'] == {'model_max_length': found}
    # What the model can do is not lost.
    config = open_checkpoint(str(out / 'checkpoint.pt')).model_config
    assert config['max_seq_len'] == 131072


@pytest.mark.parametrize('wanted', [0, 65])
def test_max_seq_len_that_the_model_has_not_is_refused(tmp_path, wanted):
    tiny_hf.save_llama(tmp_path / 'llama')
    with pytest.raises(ConfigError, match=f'--max-seq-len={wanted}: .*1 to 64'):
        import_hf(
            str(tmp_path / 'llama'),
            str(tmp_path / 'out'),
            max_seq_len=wanted,
        )


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
    weights = []
    for i, source in enumerate((gguf_file, gguf_file.parent / 'original')):
        out = tmp_path / f'{i}.pt'
        convert(UpcyclingConfig(str(source)), str(out), 'pt')
        weights.append(torch.load(out, weights_only=True)['state']['model'])
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    # The original has no tokenizer.
    export_hf(str(tmp_path / '0.pt'), str(tmp_path / 'exported'))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / 'exported')
    config = json.loads((tmp_path / 'exported' / 'config.json').read_text())
    assert tokenizer.eos_token_id == config['eos_token_id'] is not None
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
    with pytest.raises(CheckpointError, match="'!' has the id .*, in this tok"):
        convert(
            UpcyclingConfig(str(source)),
            str(tmp_path / 'never'),
            'pt',
            tokenizer=str(tmp_path / 'foreign'),
        )
    assert not (tmp_path / 'never').exists()


def test_what_is_no_hugging_face_model_is_refused(tmp_path, gguf_file):
    with pytest.raises(CheckpointError,
                       match=f'GGUF files .* one: {gguf_file}'):
        import_hf(str(gguf_file.parent), str(tmp_path / 'out'))
    convert(UpcyclingConfig(str(gguf_file)), str(tmp_path / 'moe.pt'), 'pt')
    with pytest.raises(CheckpointError,
                       match="it is Composer's.* Fix: give it"):
        import_hf(str(tmp_path / 'moe.pt'), str(tmp_path / 'out'))


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
    with pytest.raises(CheckpointError, match='there is no such file'):
        import_hf(str(tmp_path / 'absent'), str(tmp_path / 'out'))
