import copy
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny
import tiny_hf
import torch
from tqdm import tqdm

from foundry_upcycle.checkpoints.base import nest
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import as_mixture, convert
from foundry_upcycle.conversion.manifest import hash_files, read_manifest
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError, ConfigError


@pytest.fixture
def source(tmp_path) -> str:
    return tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')


def read_all(path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(str(path))
    return {
        name: checkpoint.read(name, 0, 0, info.shape[0]).clone()
        for name, info in checkpoint.tensors.items()
    }


def mixture_of_a_run(source: str, ffn=None) -> dict[str, torch.Tensor]:
    """What the callback makes of a dense checkpoint."""
    # Imported here: a run, and its trainer, are not what these tests are of.
    from llmfoundry.utils.builders import build_callback
    callback = build_callback('sparse_upcycling', {'source_path': source})
    trainer = tiny.make_trainer(tiny.build_moe(ffn), callbacks=[callback])
    return tiny.full_state(trainer.state.model)


@pytest.mark.parametrize('file_format', ['pt', 'dcp'])
def test_equals_what_a_run_starts_from(source, tmp_path, file_format):
    out = tmp_path / 'moe'
    convert(UpcyclingConfig(source), str(out), file_format)
    found, expected = read_all(out), mixture_of_a_run(source)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize('file_format', ['pt', 'dcp'])
def test_some_layers_equal_what_a_run_starts_from(
    source,
    tmp_path,
    file_format,
):
    out = tmp_path / 'moe'
    convert(UpcyclingConfig(source), str(out), file_format, moe_layers=[2, 0])
    ffn = {'moe_layers': [0, 2]}
    found, expected = read_all(out), mixture_of_a_run(source, ffn)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    config = nest(open_checkpoint(str(out)).model_config)
    assert config['ffn_config']['moe_layers'] == [0, 2]


def test_a_hugging_face_folder_holds_experts_in_all_layers(tmp_path):
    source, out = str(tmp_path / 'llama'), str(tmp_path / 'out')
    tiny_hf.save_llama(source)
    with pytest.raises(
            ConfigError,
            match=r'moe_layers=\[1\]: a Hugging Face mixtral can hold only None',
    ):
        convert(UpcyclingConfig(source), out, 'safetensors', moe_layers=[1])


# As in a SmolLM3: no rope in the last block.
NO_ROPE = {
    'learned_pos_emb': False,
    'block_overrides': {
        'order': [{
            'name': 'default',
            'repeat': 2,
        }, {
            'name': 'no_rope',
        }],
        'overrides': {
            'no_rope': {
                'attn_config': {
                    'nope': True,
                },
            },
        },
    },
}


@pytest.mark.parametrize(
    'moe_layers,changes',
    [(None, {}), ([1], {}), (None, NO_ROPE), ([2], NO_ROPE)],
)
def test_a_run_loads_it_and_starts_from_the_dense_model(
    tmp_path,
    moe_layers,
    changes,
):
    dense = tiny.build_dense(**copy.deepcopy(changes)).eval()
    source = tiny.save_dense(dense, tmp_path / 'dense.pt')
    out = tmp_path / 'moe.pt'
    convert(UpcyclingConfig(source), str(out), 'pt', moe_layers=moe_layers)
    trainer = tiny.make_trainer(
        tiny.build_moe({'moe_layers': moe_layers}, **copy.deepcopy(changes)),
        load_path=str(out),
        load_weights_only=True,
        duration='1ba',
    )
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = dense(batch).logits
        found = trainer.state.model.eval()(batch).logits
    assert (found - expected).abs().max() <= 1e-5
    assert verify(source, str(out), tolerance=1e-5).passed
    trainer.fit()


def test_config_describes_the_mixture(source, tmp_path):
    out = tmp_path / 'moe.pt'
    convert(
        UpcyclingConfig(source),
        str(out),
        'pt',
        moe_num_experts=4,
        moe_top_k=1,
    )
    config = nest(open_checkpoint(str(out)).model_config)
    assert config['ffn_config'] == {
        'ffn_type': 'upcycled_dmoe',
        'ffn_hidden_size': tiny.HIDDEN,
        'ffn_act_fn': {
            'name': 'silu',
        },
        'mlp_type': 'glu',
        'moe_num_experts': 4,
        'moe_top_k': 1,
        'moe_normalize_expert_weights': 1,
    }
    assert config['n_heads'] == 4


def test_an_mlp_becomes_experts_of_mlps(tmp_path):
    ffn = {'ffn_type': 'mptmlp', 'ffn_hidden_size': tiny.HIDDEN}
    dense = tiny.build_dense(ffn_config=ffn)
    source = tiny.save_dense(dense, tmp_path / 'dense.pt')
    mixture = as_mixture(
        open_checkpoint(source),
        UpcyclingConfig(source),
        8,
        2,
    )
    moe = tiny.build_moe({'mlp_type': 'mlp'})
    shapes = {n: tuple(p.shape) for n, p in moe.named_parameters()}
    assert {n: i.shape for n, i in mixture.tensors.items()} == shapes
    assert mixture.model_config['ffn_config.mlp_type'] == 'mlp'


def test_dtype(source, tmp_path):
    out = tmp_path / 'moe.pt'
    convert(UpcyclingConfig(source), str(out), 'pt', dtype=torch.bfloat16)
    expected = mixture_of_a_run(source)
    for name, tensor in read_all(out).items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


def test_safetensors_are_a_mixtral_with_the_sources_tokenizer(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'mixtral'
    dense = tiny_hf.save_llama(source)
    convert(UpcyclingConfig(str(source)), str(out), 'safetensors')
    mixture = tiny_hf.load(out)
    assert mixture.config.model_type == 'mixtral'
    assert mixture.config.eos_token_id == dense.config.eos_token_id
    difference = tiny_hf.logits(mixture) - tiny_hf.logits(dense)
    assert difference.abs().max() <= 1e-4
    assert (out / 'tokenizer.json').is_file()
    assert (out / 'generation_config.json').is_file()


def test_manifest(source, tmp_path):
    out = tmp_path / 'moe.pt'
    convert(UpcyclingConfig(source, seed=3), str(out), 'pt')
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest['source']['sha256'] == hash_files(
        open_checkpoint(source).files
    )
    assert manifest['settings']['seed'] == 3
    assert manifest['settings']['recipe'] == {'name': 'copy'}


def test_seed_decides_the_routers_alone(source, tmp_path):
    for seed in (1, 2):
        out = str(tmp_path / f'{seed}.pt')
        convert(UpcyclingConfig(source, seed=seed), out, 'pt')
    first, second = read_all(tmp_path / '1.pt'), read_all(tmp_path / '2.pt')
    for name in first:
        assert torch.equal(first[name], second[name]) != ('router' in name)


def test_a_mixture_is_refused(tmp_path):
    source = tiny.save_dense(tiny.build_moe(), tmp_path / 'moe.pt')
    with pytest.raises(CheckpointError, match='a mixture of experts already'):
        convert(UpcyclingConfig(source), str(tmp_path / 'out.pt'), 'pt')


def test_a_source_without_config_is_refused(tmp_path):
    source = tmp_path / 'dense.pt'
    state = {'state': {'model': tiny.build_dense().state_dict()}}
    torch.save(state, source)
    with pytest.raises(CheckpointError, match='no model config.*sparse_upcyc'):
        convert(UpcyclingConfig(str(source)), str(tmp_path / 'out.pt'), 'pt')


def test_what_is_no_mpt_is_refused(source, tmp_path):
    content = torch.load(source, weights_only=True)
    names = ('weight', 'bias', 'scale')
    content['state']['model'] = {name: torch.zeros(2, 2) for name in names}
    torch.save(content, source)
    with pytest.raises(CheckpointError, match='it has no .*down_proj.weight'):
        convert(UpcyclingConfig(source), str(tmp_path / 'out.pt'), 'pt')


@pytest.mark.parametrize(
    'removed',
    ['blocks.1.ffn.up_proj.weight', 'blocks.2.', 'norm_f.weight'],
)
def test_a_source_that_lacks_tensors_is_refused(source, tmp_path, removed):
    saved = torch.load(source, weights_only=False)
    model = saved['state']['model']
    for name in [name for name in model if f'transformer.{removed}' in name]:
        del model[name]
    torch.save(saved, source)
    with pytest.raises(CheckpointError, match=f'transformer.{removed}'):
        convert(UpcyclingConfig(source), str(tmp_path / 'out'), 'pt')
    assert os.listdir(tmp_path) == ['dense.pt']


def test_a_source_of_more_than_its_config_is_refused(source, tmp_path):
    saved = torch.load(source, weights_only=False)
    model = saved['state']['model']
    model['model.transformer.scale'] = torch.tensor(1.0)
    torch.save(saved, source)
    with pytest.raises(CheckpointError, match='model.transformer.scale'):
        convert(UpcyclingConfig(source), str(tmp_path / 'out'), 'pt')


def test_only_a_hugging_face_folder_is_like_one(source, tmp_path):
    with pytest.raises(ConfigError, match="like='x': a pt output .*--tokeniz"):
        convert(
            UpcyclingConfig(source),
            str(tmp_path / 'out.pt'),
            'pt',
            like='x',
        )


@pytest.mark.parametrize(
    'settings,message',
    [
        ({
            'moe_num_experts': 0,
        }, 'moe_num_experts=0: .*from 1'),
        ({
            'moe_top_k': 9,
        }, 'moe_top_k=9: .*to moe_num_experts=8'),
        ({
            'moe_layers': [3],
        }, r'moe_layers=\[3\]: the model has blocks 0 to 2'),
    ],
)
def test_impossible_mixtures_are_refused(source, tmp_path, settings, message):
    out = tmp_path / 'out.pt'
    with pytest.raises(ConfigError, match=message):
        convert(UpcyclingConfig(source), str(out), 'pt', **settings)
    assert list(tmp_path.iterdir()) == [Path(source)]


@pytest.mark.parametrize('file_format', ['pt', 'dcp'])
def test_a_conversion_that_is_killed_can_be_done_again(
    source,
    tmp_path,
    file_format,
):
    out = tmp_path / 'out'
    config = UpcyclingConfig(source)
    begun = 0
    for delay in (0.005 * step for step in range(1000)):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # The parent's are not here.
                # tqdm's is shared with the parent, which would wait for ever
                # for a child that is killed while it holds it.
                tqdm.set_lock(threading.RLock())
                convert(config, str(out), file_format)
                os._exit(0)
            finally:
                os._exit(1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
        if not out.exists():
            begun += (tmp_path / 'out.partial' / 'new').exists()
            continue
        # What is there is complete, and says where it comes from.
        assert read_manifest(out) is not None
        open_checkpoint(str(out))
        break
    assert begun
    convert(config, str(out), file_format, overwrite=True)
    assert verify(source, str(out)).passed
    assert not list(tmp_path.glob('*.partial'))
