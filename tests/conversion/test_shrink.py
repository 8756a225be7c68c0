import json

import pytest
import tiny
import tiny_hf
import tiny_shrunk
import torch
from tiny_shrunk import FFN, load_in_foundry, logits, save_calibration

from foundry_upcycle.checkpoints.exactness import check_same_model
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import ShrinkingConfig, UpcyclingConfig
from foundry_upcycle.conversion.calibration import Calibration
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.shrink import shrink
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.planning.shrunk import shrunk_model

GLU = {}
MLP = {
    'tie_word_embeddings': True,
    'no_bias': False,
    'norm_type': 'low_precision_layernorm',
    'ffn_config': {
        'ffn_type': 'mptmlp',
        'ffn_hidden_size': tiny.HIDDEN,
    },
}
WAYS = [
    {
        'experts': 3,
        'by': 'load',
    },
    {
        'experts': 2,
        'by': 'norm',
    },
    {
        'experts': 3,
        'by': 'merge',
    },
    {
        'dense': 'mean',
    },
    {
        'dense': 'weighted',
    },
    {
        'dense': 'concat',
    },
    {
        'dense': 'concat',
        'keep': 3,
        'by': 'merge',
    },
    {
        'dense': 'concat',
        'keep': 1,
        'by': 'norm',
    },
]


def run(moe: str, out, calibration: str | None = None, **way) -> str:
    if way.get('dense') == 'mean':
        calibration = None
    config = ShrinkingConfig(**way, has_calibration=calibration is not None)
    shrink(moe, str(out), config, calibration)
    return str(out)


def read(path: str, name: str) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    return checkpoint.read(name, 0, 0, checkpoint.tensors[name].shape[0])


def experts_EFD(path: str, layer: int, weight: str, E: int) -> torch.Tensor:
    rows = read(path, f'{FFN.format(layer)}.experts.mlp.{weight}')
    return rows.view(E, -1, rows.shape[-1])


pytestmark = pytest.mark.filterwarnings(
    # None of these models has a tokenizer.
    'ignore:.*no tokenizer:foundry_upcycle.errors.UpcyclingWarning',
)


@pytest.fixture(scope='module')
def moe(tmp_path_factory) -> str:
    return tiny_shrunk.trained_moe(tmp_path_factory.mktemp('moe') / 'moe.pt')


@pytest.fixture(scope='module')
def calibration(moe) -> str:
    return save_calibration(moe, f'{moe}.json')


@pytest.mark.parametrize(
    'changes,moe_layers',
    [(GLU, None), (MLP, None), (MLP, [0, 2])],
)
def test_a_mixture_at_step_0_stays_the_dense_model(
    tmp_path,
    changes,
    moe_layers,
):
    dense = tiny.build_dense(**changes)
    if changes:  # Foundry starts from biases of 0, and experts have none.
        with torch.no_grad():
            dense.model.transformer.norm_f.bias.normal_()
    source = tiny.save_dense(dense, tmp_path / 'dense.pt')
    moe = str(tmp_path / 'moe.pt')
    convert(UpcyclingConfig(source), moe, 'pt', moe_layers=moe_layers)
    calibration = save_calibration(moe, tmp_path / 'calibration.json')
    expected = logits(dense)
    for i, way in enumerate(WAYS):
        is_wider = way.get('dense') == 'concat' and way.get('keep') != 1
        if moe_layers and is_wider:
            continue
        out = run(moe, tmp_path / f'{i}.pt', calibration, **way)
        found = logits(load_in_foundry(out))
        assert (found - expected).abs().max() <= 1e-5, way
        if way.get('by') == 'merge' and 'experts' in way:
            # The mean of copies is the dense layer, bit by bit.
            assert verify(source, out, tolerance=1e-5).passed


def test_what_is_planned_of_a_yaml_is_what_is_written(
    moe,
    calibration,
    tmp_path,
):
    section = {'name': 'upcycled_mpt', **tiny.moe_config()}
    for i, way in enumerate(WAYS):
        out = run(moe, tmp_path / f'{i}.pt', calibration, **way)
        planned = shrunk_model(
            section,
            ShrinkingConfig(**way, has_calibration=way.get('dense') != 'mean'),
        )
        check_same_model(open_checkpoint(out), planned, 'model')
        is_dense = planned['name'] == 'mpt_causal_lm'
        assert is_dense == ('dense' in way)


def test_experts_of_most_load_or_norm_are_kept(moe, calibration, tmp_path):
    statistics = Calibration.read(calibration).layers[1]
    load_E = torch.tensor(statistics.coactivation).diagonal()
    saliency_E = torch.tensor(statistics.weighted_norm) / load_E
    for by, score_E in (('load', load_E), ('norm', saliency_E)):
        out = run(moe, tmp_path / f'{by}.pt', calibration, experts=3, by=by)
        best = score_E.topk(3).indices.sort().values
        for weight in ('w1', 'v1', 'w2'):
            found = experts_EFD(out, 1, weight, 3)
            assert torch.equal(found, experts_EFD(moe, 1, weight, 8)[best])
        name = f'{FFN.format(1)}.router.layer.weight'
        assert torch.equal(read(out, name), read(moe, name)[best])
    assert not torch.equal(load_E.topk(3)[1], saliency_E.topk(3)[1])


@pytest.fixture(scope='module')
def twins(tmp_path_factory) -> str:
    """A mixture of which experts e and e + 4 are nearly the same."""
    model = tiny.build_moe()
    with torch.no_grad():
        for layer in model.moe_layers:
            for name in ('w1', 'v1', 'w2'):
                w_EFD = layer.experts.mlp.weight_EFD(name)
                w_EFD[4:] = w_EFD[:4] + 1e-4 * torch.randn_like(w_EFD[:4])
    path = tmp_path_factory.mktemp('twins') / 'moe.pt'
    return tiny.save_dense(model, path)


def test_similar_experts_are_merged(twins, tmp_path):
    out = run(twins, tmp_path / 'out.pt', experts=4, by='merge')
    for weight in ('w1', 'v1', 'w2'):
        w_EFD = experts_EFD(twins, 2, weight, 8)
        expected = (w_EFD[:4] + w_EFD[4:]) / 2
        found = experts_EFD(out, 2, weight, 4)
        torch.testing.assert_close(found, expected)
    name = f'{FFN.format(2)}.router.layer.weight'
    router_ED = read(twins, name)
    expected = (router_ED[:4] + router_ED[4:]) / 2
    torch.testing.assert_close(read(out, name), expected)


def test_merged_experts_weigh_by_load(twins, tmp_path):
    calibration = save_calibration(twins, tmp_path / 'calibration.json')
    out = run(twins, tmp_path / 'out.pt', calibration, experts=4, by='merge')
    kept = json.loads((tmp_path / 'out.pt.manifest.json').read_text())
    groups = [members for members, *_ in kept['settings']['kept']['2']]
    load_E = Calibration.read(calibration).layers[2].load_E
    name = f'{FFN.format(2)}.router.layer.weight'
    for row, group in zip(read(out, name), groups):
        weights = torch.tensor(load_E[group] / load_E[group].sum()).float()
        torch.testing.assert_close(row, weights @ read(twins, name)[group])


def test_experts_of_the_same_tokens_are_similar(moe, calibration, tmp_path):
    content = json.loads(open(calibration).read())
    for layer in content['layers'].values():
        # 1 and 6 always work together, others never.
        together = [[900 if i == j else 0 for j in range(8)] for i in range(8)]
        together[1][6] = together[6][1] = 900
        layer['coactivation'] = together
    changed = tmp_path / 'calibration.json'
    changed.write_text(json.dumps(content))
    run(moe, tmp_path / 'out.pt', str(changed), experts=7, by='merge')
    manifest = json.loads((tmp_path / 'out.pt.manifest.json').read_text())
    for experts in manifest['settings']['kept'].values():
        assert [1, 6] in [members for members, *_ in experts]


def ffn(path: str, layer: int, expert: int, x: torch.Tensor) -> torch.Tensor:
    w1, v1, w2 = (
        experts_EFD(path, layer, weight, 8)[expert]
        for weight in ('w1', 'v1', 'w2')
    )
    silu = torch.nn.functional.silu
    return (silu(x @ w1.t()) * (x @ v1.t())) @ w2


def test_the_mean_of_the_experts(moe, calibration, tmp_path):
    load_E = Calibration.read(calibration).layers[0].load_E
    weights_E = {
        'mean': torch.full((8, ), 1 / 8),
        'weighted': torch.tensor(load_E / load_E.sum()).float(),
    }
    for dense, w_E in weights_E.items():
        out = run(moe, tmp_path / f'{dense}.pt', calibration, dense=dense)
        for weight, projection in (
            ('w1', 'gate_proj'),
            ('v1', 'up_proj'),
            ('w2', 'down_proj'),
        ):
            mean = torch.einsum(
                'e,efd->fd', w_E, experts_EFD(moe, 0, weight, 8)
            )
            found = read(out, f'{FFN.format(0)}.{projection}.weight')
            found = found.t() if weight == 'w2' else found
            torch.testing.assert_close(found, mean)


def test_experts_side_by_side_add_up(moe, calibration, tmp_path):
    layer = Calibration.read(calibration).layers[1]
    load_E, x = layer.load_E, torch.randn(5, 64)
    for keep in (2, 8):
        out = run(
            moe,
            tmp_path / f'{keep}.pt',
            calibration,
            dense='concat',
            keep=keep,
            by='load',
        )
        best = load_E.argsort()[-keep:]
        expected = sum(
            load_E[e] / load_E[best].sum() * ffn(moe, 1, e, x) for e in best
        )
        wide = load_in_foundry(out).model.transformer.blocks[1].ffn
        torch.testing.assert_close(
            wide(x).detach(), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize('way', WAYS)
def test_a_result_is_verified_and_exported(moe, calibration, tmp_path, way):
    out = run(moe, tmp_path / 'out.pt', calibration, **way)
    result = verify(moe, out)
    assert result.passed and result.provenance and result.logits == 0
    folder = str(tmp_path / 'hf')
    export_hf(out, folder, dtype=torch.bfloat16)
    assert verify(moe, folder).passed
    assert describe(out)


def test_transformers_computes_the_same_dense_model(
    moe,
    calibration,
    tmp_path,
):
    out = run(
        moe,
        tmp_path / 'out.pt',
        calibration,
        dense='concat',
        keep=3,
        by='norm',
    )
    export_hf(out, str(tmp_path / 'llama'))
    llama = tiny_hf.load(tmp_path / 'llama')
    assert llama.config.model_type == 'llama'
    with torch.no_grad():
        found = llama(tiny.make_batch()['input_ids']).logits
    expected = logits(load_in_foundry(out))
    assert (found - expected).abs().max() <= 1e-4


def test_verify_finds_what_is_not_as_the_manifest_says(
    moe,
    calibration,
    tmp_path,
):
    out = run(moe, tmp_path / 'out.pt', calibration, experts=2, by='load')
    file = tmp_path / 'out.pt.manifest.json'
    manifest = json.loads(file.read_text())
    members = manifest['settings']['kept']['1'][0][0]
    members[0] = 7 - members[0]
    file.write_text(json.dumps(manifest))
    result = verify(moe, out)
    assert not result.passed
    assert len(result.differing) == 4 and result.logits > 1e-3
    assert all('.blocks.1.ffn.' in name for name in result.differing)
    members[0] = 8
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match='other layers or experts'):
        verify(moe, out)


def test_an_exported_mixture_shrinks_as_its_checkpoint(moe, tmp_path):
    folder = str(tmp_path / 'mixtral')
    export_hf(moe, folder)
    for i, way in enumerate(WAYS[2:4]):
        found = run(folder, tmp_path / f'hf{i}.pt', **way)
        expected = run(moe, tmp_path / f'{i}.pt', **way)
        for name in open_checkpoint(expected).tensors:
            assert torch.equal(read(found, name), read(expected, name)), name


def test_a_sharded_result_in_another_dtype(moe, tmp_path):
    out = str(tmp_path / 'out')
    shrink(
        moe,
        out,
        ShrinkingConfig(dense='mean'),
        file_format='dcp',
        dtype=torch.bfloat16,
    )
    plain = run(moe, tmp_path / 'plain.pt', dense='mean')
    for name, info in open_checkpoint(out).tensors.items():
        assert info.dtype == torch.bfloat16
        assert torch.equal(read(out, name), read(plain, name).bfloat16())
    assert verify(moe, out).passed


@pytest.mark.parametrize(
    'way,message',
    [
        ({}, r'--experts=None: .* Fix: give one of them'),
        ({
            'experts': 4,
            'dense': 'mean',
        }, r'--experts=4: with --dense mean'),
        ({
            'experts': 4,
        }, r'--by=None: it is not said which experts'),
        ({
            'experts': 4,
            'by': 'load',
        }, r'--calibration=None: load is of experts at work'),
        ({
            'dense': 'weighted',
        }, r'--calibration=None: weighted is of'),
        ({
            'dense': 'mean',
            'keep': 2,
        }, r'--keep=2: it is of --dense concat'),
        ({
            'dense': 'concat',
            'by': 'merge',
        }, r"--by='merge': all experts are taken"),
        ({
            'experts': 9,
            'by': 'merge',
        }, r'--experts=9: the mixture has 8 experts'),
        ({
            'experts': 1,
            'by': 'merge',
        }, r'--experts=1: a token goes to 2 experts'),
        ({
            'dense': 'concat',
            'keep': 9,
            'by': 'merge',
        }, r'--keep=9: the mixture has 8'),
        ({
            'dense': 'concat',
            'keep': 0,
            'by': 'merge',
        }, r'--keep=0: nothing would be left'),
    ],
)
def test_what_can_not_be_is_refused(moe, tmp_path, way, message):
    with pytest.raises(ConfigError, match=message):
        run(moe, tmp_path / 'out.pt', **way)
    assert not [*tmp_path.iterdir()]


def test_the_mean_needs_no_calibration():
    with pytest.raises(ConfigError, match='the mean needs none'):
        ShrinkingConfig(dense='mean', has_calibration=True)


def test_a_dense_mpt_has_layers_of_one_width(tmp_path):
    moe = tiny_shrunk.trained_moe(tmp_path / 'moe.pt', {'moe_layers': [1]})
    with pytest.raises(ConfigError, match=r'2 times as wide as the others'):
        run(moe, tmp_path / 'out.pt', dense='concat', keep=2, by='merge')
    assert [*tmp_path.iterdir()] == [tmp_path / 'moe.pt']


def test_weights_that_do_not_sum_to_1_are_refused(tmp_path):
    ffn = {'moe_normalize_expert_weights': None}
    moe = tiny_shrunk.trained_moe(tmp_path / 'moe.pt', ffn)
    with pytest.raises(ConfigError, match='do not sum to 1'):
        run(moe, tmp_path / 'out.pt', dense='mean')


def test_a_dense_model_is_refused(tmp_path):
    dense = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    with pytest.raises(CheckpointError, match='it is a dense model'):
        run(dense, tmp_path / 'out.pt', dense='mean')


def test_layers_that_differ_are_refused(moe, tmp_path):
    content = torch.load(moe, weights_only=True)
    name = f'{FFN.format(1)}.router.layer.weight'
    state = content['state']['model']
    state[name] = state[name][:7].clone()
    torch.save(content, tmp_path / 'moe.pt')
    with pytest.raises(CheckpointError, match=rf'{name} has shape \(7, 64\)'):
        run(str(tmp_path / 'moe.pt'), tmp_path / 'out.pt', dense='mean')


def test_a_calibration_of_another_model_is_refused(
    moe,
    twins,
    calibration,
    tmp_path,
):
    with pytest.raises(CheckpointError, match='it is of other weights'):
        run(twins, tmp_path / 'out.pt', calibration, experts=2, by='load')
    content = json.loads(open(calibration).read())
    del content['layers']['2']
    changed = tmp_path / 'calibration.json'
    changed.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match='not of all layers and experts'):
        run(moe, tmp_path / 'out.pt', str(changed), experts=2, by='load')


def test_an_existing_output_stays(moe, tmp_path):
    out = run(moe, tmp_path / 'out.pt', dense='mean')
    before = open(out, 'rb').read()
    with pytest.raises(CheckpointError, match='it exists'):
        run(moe, out, experts=2, by='merge')
    assert open(out, 'rb').read() == before
