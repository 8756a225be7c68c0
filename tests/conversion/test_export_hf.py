import json
from pathlib import Path

import pytest
import tiny
import tiny_hf
import torch
from llmfoundry.models.mpt import MPTForCausalLM
from transformers import AutoTokenizer

from foundry_upcycle.checkpoints.mixture import Mixture
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.manifest import read_manifest
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    UpcyclingWarning,
)


@pytest.fixture
def moe(tmp_path) -> str:
    """A mixture of different experts, behind routers that choose clearly."""
    model = tiny.build_moe({'moe_normalize_expert_weights': 1})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 1.0 if 'router' in name else 0.1
            parameter.add_(torch.randn_like(parameter) * std)
    return tiny.save_dense(model, tmp_path / 'moe.pt')


def test_a_mixture_becomes_a_mixtral(moe, tmp_path):
    export_hf(moe, str(tmp_path / 'out'))
    mixtral = tiny_hf.load(tmp_path / 'out')
    assert mixtral.config.model_type == 'mixtral'
    model = tiny.build_moe().eval()
    state = torch.load(moe, weights_only=True)['state']['model']
    model.load_state_dict(state)
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = model(batch).logits
        found = mixtral(batch['input_ids']).logits
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize('top_k,expected', [(None, 3), (1, 1)])
def test_a_k_that_varied_becomes_one(tmp_path, top_k, expected):
    ffn = {'moe_top_k': {'until': {'0.5dur': 3, '1dur': 1}}}
    source = tiny.save_dense(tiny.build_moe(ffn), tmp_path / 'moe.pt')
    export_hf(source, str(tmp_path / 'out'), top_k=top_k)
    mixtral = tiny_hf.load(tmp_path / 'out')
    assert mixtral.config.num_experts_per_tok == expected
    assert read_manifest(tmp_path / 'out')['settings']['top_k'] == top_k
    facts = dict(describe(source))
    assert 'experts, top-3 until 0.5dur, then 1, in 3' in facts['model']
    assert Mixture.of(open_checkpoint(source)).top_k == 3
    # Without the plugin, too.
    tiny.build_moe(ffn).model.save_pretrained(tmp_path / 'stock')
    stock = MPTForCausalLM.from_pretrained(tmp_path / 'stock')
    assert stock.config.ffn_config['moe_top_k'] == 3


@pytest.mark.parametrize(
    'build,top_k,problem',
    [
        (tiny.build_moe, 9, 'the model has 8 experts'),
        (tiny.build_moe, True, 'the model has 8 experts'),
        (tiny.build_dense, 1, 'the model is dense'),
    ],
)
def test_a_k_that_there_is_not(tmp_path, build, top_k, problem):
    source = tiny.save_dense(build(), tmp_path / 'source.pt')
    with pytest.raises(ConfigError, match=f'top_k={top_k}: {problem}'):
        export_hf(source, str(tmp_path / 'out'), top_k=top_k)
    assert not (tmp_path / 'out').exists()


def test_tokenizer_configs_and_token_ids_come_along(moe, tmp_path):
    like, out = tmp_path / 'like', tmp_path / 'out'
    tiny_hf.save_llama(like)
    config = json.loads((like / 'generation_config.json').read_text())
    config['temperature'] = 0.5
    (like / 'generation_config.json').write_text(json.dumps(config))
    export_hf(moe, str(out), like=str(like))
    mixtral = tiny_hf.load(out)
    assert mixtral.generation_config.temperature == 0.5
    assert mixtral.config.eos_token_id == 2
    assert (out /
            'tokenizer.json').read_bytes() == (like /
                                               'tokenizer.json').read_bytes()


def test_without_a_tokenizer_no_token_id_is_made_up(moe, tmp_path):
    with pytest.warns(UpcyclingWarning, match='moe.pt: it has no tokenizer'):
        export_hf(moe, str(tmp_path / 'out'))
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['bos_token_id'] is config['eos_token_id'] is None


def test_a_dense_model_goes_back_where_it_came_from(tmp_path):
    source = tmp_path / 'llama'
    llama = tiny_hf.save_llama(source)
    import_hf(str(source), str(tmp_path / 'mpt'))
    export_hf(
        str(tmp_path / 'mpt' / 'checkpoint.pt'),
        str(tmp_path / 'out'),
        like=str(tmp_path / 'mpt' / 'hf'),
    )
    again = tiny_hf.load(tmp_path / 'out')
    assert again.config.model_type == 'llama'
    expected = llama.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


GRANITE = {
    'embedding_multiplier': 12.0,
    'attention_multiplier': 0.0147,
    'residual_multiplier': 0.22,
    'logits_scaling': 8.0,
    'tie_word_embeddings': True,
}


@pytest.mark.parametrize(
    'model_type,changes,serves,head',
    [
        ('phi3', {}, 'mixtral', 0),
        ('granite', GRANITE, 'mixtral', 1),
        ('qwen2', {}, 'qwen2_moe', 0),
    ],
)
def test_from_a_dense_folder_to_a_mixture_that_is_served(
    tmp_path,
    model_type,
    changes,
    serves,
    head,
):
    source, mpt, moe, served, again = (str(tmp_path / c) for c in 'abcde')
    dense = tiny_hf.save(source, tiny_hf.build(model_type, **changes))
    import_hf(source, mpt)
    convert(UpcyclingConfig(f'{mpt}/checkpoint.pt'), moe, 'dcp', 4, 2)
    assert verify(source, moe, tolerance=1e-5).passed
    export_hf(moe, served, like=f'{mpt}/hf')
    mixture = tiny_hf.load(served)
    assert mixture.config.model_type == serves
    difference = tiny_hf.logits(mixture) - tiny_hf.logits(dense)
    assert difference.abs().max() <= 1e-4
    # A Mixtral scales no logits: its head is not the embedding of a Granite.
    if head:
        assert not mixture.config.tie_word_embeddings
    else:
        assert verify(source, served, tolerance=1e-5).passed
    export_hf(f'{mpt}/checkpoint.pt', again, like=f'{mpt}/hf')
    back = tiny_hf.load(again)
    assert back.config.model_type == model_type
    expected = dense.state_dict()
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=2e-7)


def test_like_decides_between_architectures_that_both_fit(tmp_path):
    dense = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    like = tmp_path / 'like'
    tiny_hf.save_llama(like)
    config = json.loads((like / 'config.json').read_text())
    (like / 'config.json'
    ).write_text(json.dumps({
        **config, 'model_type': 'mistral'
    }), )
    export_hf(dense, str(tmp_path / 'out'), like=str(like))
    assert tiny_hf.load(tmp_path / 'out').config.model_type == 'mistral'


def test_dtype(moe, tmp_path):
    export_hf(moe, str(tmp_path / 'out'), dtype=torch.bfloat16)
    mixtral = tiny_hf.load(tmp_path / 'out', torch_dtype='auto')
    assert {p.dtype for p in mixtral.parameters()} == {torch.bfloat16}
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['torch_dtype'] == 'bfloat16'


def test_manifest(moe, tmp_path):
    export_hf(moe, str(tmp_path / 'out'))
    manifest = read_manifest(tmp_path / 'out')
    assert manifest is not None
    assert manifest['command'] == 'export-hf'
    assert list(manifest['source']['sha256']) == ['moe.pt']


def test_what_no_architecture_holds_is_refused_by_name(tmp_path):
    model = tiny.build_moe({'moe_normalize_expert_weights': None})
    source = tiny.save_dense(model, tmp_path / 'moe.pt')
    with pytest.raises(ConfigError, match='moe_normalize_expert_weights=None'):
        export_hf(source, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_layers_that_stay_dense_are_refused(tmp_path):
    model = tiny.build_moe({'moe_layers': [1]})
    source = tiny.save_dense(model, tmp_path / 'moe.pt')
    with pytest.raises(
            ConfigError,
            match=r'model.ffn_config.moe_layers=\[1\]: a Hugging Face mixtral '
            'can hold only None.*keep this model in a Compos',
    ):
        export_hf(source, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_a_tokenizer_with_more_tokens_is_refused(moe, tmp_path):
    like = tmp_path / 'like'
    tiny_hf.save_llama(like, vocab_size=256)
    with pytest.raises(CheckpointError, match='ids up to 255, the model a voc'):
        export_hf(moe, str(tmp_path / 'out'), like=str(like))
    assert not (tmp_path / 'out').exists()


def test_an_existing_folder_is_kept(moe, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match='did not write .*--overw'):
            export_hf(moe, str(out), overwrite=overwrite)
    assert [file.name for file in out.iterdir()] == ['mine.txt']


def test_what_was_put_into_an_export_is_kept(moe, tmp_path):
    out = tmp_path / 'out'
    export_hf(moe, str(out))
    (out / 'mine.txt').write_text('mine')
    with pytest.raises(CheckpointError, match='did not write .*does not list'):
        export_hf(moe, str(out), overwrite=True)
    assert (out / 'mine.txt').read_text() == 'mine'


def test_quantised_weights_are_refused(moe, tmp_path):
    content = torch.load(moe, weights_only=True)
    weights = content['state']['model']
    name = 'model.transformer.wte.weight'
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    torch.save(content, moe)
    with pytest.raises(CheckpointError, match='wte.weight has dtype torch.flo'):
        export_hf(moe, str(tmp_path / 'out'))


def test_another_models_checkpoint_is_refused(moe, tmp_path):
    content = torch.load(moe, weights_only=True)
    model = content['state']['integrations']['huggingface']['model']
    model['config']['content']['model_type'] = 'llama'
    torch.save(content, moe)
    with pytest.raises(CheckpointError, match='checkpoint of a llama, not of'):
        export_hf(moe, str(tmp_path / 'out'))


def test_an_export_is_replaced_only_when_told(moe, tmp_path):
    out = tmp_path / 'out'
    export_hf(moe, str(out))
    before = (out / 'config.json').stat().st_mtime_ns
    with pytest.raises(CheckpointError, match='it exists.*--overwrite'):
        export_hf(moe, str(out), dtype=torch.bfloat16)
    assert (out / 'config.json').stat().st_mtime_ns == before
    export_hf(moe, str(out), dtype=torch.bfloat16, overwrite=True)
    config = json.loads((out / 'config.json').read_text())
    assert config['torch_dtype'] == 'bfloat16'


def test_the_source_is_not_overwritten(moe):
    before = Path(moe).read_bytes()
    with pytest.raises(CheckpointError, match='it is, holds or lies in the so'):
        export_hf(moe, moe, overwrite=True)
    with pytest.raises(CheckpointError, match='it is, holds or lies in the so'):
        export_hf(moe, str(Path(moe).parent), overwrite=True)
    assert Path(moe).read_bytes() == before


def test_what_import_hf_wrote_is_like_its_hf_folder(moe, tmp_path):
    tiny_hf.save_llama(tmp_path / 'llama')
    import_hf(str(tmp_path / 'llama'), str(tmp_path / 'mpt'))
    export_hf(moe, str(tmp_path / 'out'), like=str(tmp_path / 'mpt'))
    assert AutoTokenizer.from_pretrained(tmp_path / 'out').eos_token_id == 2


@pytest.mark.parametrize('key', ['like', 'tokenizer'])
@pytest.mark.parametrize(
    'name,message',
    [
        ('absent', 'no such file or folder. Fix: name a Hugging Face folder'),
        ('meta-llama/Llama-3.2-1B', 'ids .* not taken.*huggingface-cli down'),
        ('hf/tokenizer.json', 'one file of a folder. Fix: name the folder: hf'),
        ('moe.pt', 'it is not a folder'),
        ('hf', 'tokenizer.json: it is a pointer of git-lfs'),
    ],
)
def test_what_is_no_folder_of_a_tokenizer_is_called_what_it_is(
    moe,
    tmp_path,
    monkeypatch,
    name,
    message,
    key,
):
    monkeypatch.chdir(tmp_path)
    tiny_hf.save_llama(tmp_path / 'hf')
    (tmp_path / 'hf' / 'tokenizer.json'
    ).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
    with pytest.raises(CheckpointError, match=message):
        export_hf(moe, str(tmp_path / 'out'), **{key: name})
    assert not (tmp_path / 'out').exists()


def test_like_that_can_not_hold_a_dense_model_is_refused(tmp_path):
    dense = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    like = tmp_path / 'like'
    tiny_hf.save_llama(like)
    config = json.loads((like / 'config.json').read_text())
    (like /
     'config.json').write_text(json.dumps({
         **config, 'model_type': 'qwen3'
     }), )
    with pytest.raises(ConfigError, match='qk_gn'):
        export_hf(dense, str(tmp_path / 'out'), like=str(like))
