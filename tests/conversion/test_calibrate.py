import json

import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_shrunk
import torch
from streaming import MDSWriter

from foundry_upcycle.conversion.calibrate import calibrate
from foundry_upcycle.conversion.calibration import Calibration
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.errors import CheckpointError

E, K = 8, 2


def write_mds(folder, sequences, encoding='ndarray:int64', **columns) -> str:
    columns = {'tokens': encoding, **columns}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sequence in sequences:
            sample = np.array(sequence)
            is_bytes = encoding == 'bytes'
            sample = sample.tobytes() if is_bytes else sample
            writer.write({'tokens': sample, **dict.fromkeys(columns, sample)})
    return str(folder)


@pytest.fixture(scope='module')
def moe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp('moe') / 'moe.pt'
    return tiny_shrunk.trained_moe(path, {'moe_layers': [0, 2]})


def statistics_by_hooks(moe: str, sequences) -> dict:
    """Token by token and expert by expert, in float64, in Foundry's model."""
    model = tiny.build_moe({'moe_layers': [0, 2]}).double().eval()
    state = torch.load(moe, weights_only=True)['state']['model']
    model.load_state_dict(state)
    inputs = {}
    for i, layer in zip((0, 2), model.moe_layers):
        layer.register_forward_hook(
            lambda module, args, output, i=i: inputs.setdefault(i, []).
            append(args[0].reshape(-1, 64)),
        )
    with torch.no_grad():
        for sequence in sequences:
            model({'input_ids': torch.tensor([sequence])})
    found = {}
    for i, layer in zip((0, 2), model.moe_layers):
        together = torch.zeros(E, E)
        norm = torch.zeros(E, dtype=torch.float64)
        w1, v1, w2 = (
            getattr(layer.experts.mlp, n).view(E, -1, 64)
            for n in ('w1', 'v1', 'w2')
        )
        for x in torch.cat(inputs[i]):
            scores = (layer.router.layer.weight @ x).softmax(0)
            chosen = scores.argsort(descending=True)[:K].tolist()
            for a in chosen:
                h = torch.nn.functional.silu(w1[a] @ x) * (v1[a] @ x)
                gate = scores[a] / scores[chosen].sum()
                norm[a] += gate * (h @ w2[a]).norm()
                for b in chosen:
                    together[a, b] += 1
        found[i] = (together, norm.detach())
    return found


def test_statistics_are_exact(moe, tmp_path):
    draw = torch.Generator().manual_seed(0)
    # The model takes 32 tokens, so the last becomes two sequences.
    lengths = (32, 32, 5, 40)
    sequences = [
        torch.randint(128, (n, ), generator=draw).tolist() for n in lengths
    ]
    text = write_mds(tmp_path / 'mds', sequences)
    out = str(tmp_path / 'calibration.json')
    calibrate(moe, text, out)
    calibration = Calibration.read(out)
    assert calibration.tokens == sum(lengths) and calibration.top_k == K
    expected = statistics_by_hooks(
        moe,
        [*sequences[:3], sequences[3][:32], sequences[3][32:]],
    )
    assert calibration.layers.keys() == expected.keys()
    for i, (together, norm) in expected.items():
        layer = calibration.layers[i]
        assert layer.coactivation == together.long().tolist()
        assert layer.load_E.sum() == K * sum(lengths)
        torch.testing.assert_close(
            torch.tensor(layer.weighted_norm, dtype=torch.float64),
            norm,
            rtol=1e-5,
            atol=0,
        )


def test_an_exported_mixture_gives_the_same(tmp_path):
    moe = tiny_shrunk.trained_moe(tmp_path / 'moe.pt')
    folder, text = str(tmp_path / 'mixtral'), tmp_path / 'mds'
    export_hf(moe, folder, with_tokenizer=False)
    text = write_mds(text, [range(32)], 'bytes')
    one = calibrate(moe, text, str(tmp_path / 'a.json'))
    other = calibrate(folder, text, str(tmp_path / 'b.json'))
    assert (one.weights, one.layers) == (other.weights, other.layers)


def test_texts_become_tokens(moe, tmp_path):
    tokenizer = str(tmp_path / 'tokenizer')
    tiny_hf.save_tokenizer(tokenizer)
    texts = tmp_path / 'texts'
    (texts / 'more').mkdir(parents=True)
    (texts / 'a.txt').write_text('w0 w1 w2 ' * 10)
    (texts / 'more' / 'b.txt').write_text('w7 ' * 9)
    (texts / 'empty').write_text('\n')
    # In the order of names, each with its end: ids 3 to 5, 2, 10, 2.
    ids = [3, 4, 5] * 10 + [2] + [10] * 9 + [2]
    same = write_mds(tmp_path / 'mds', [ids[:32], ids[32:]])
    one = calibrate(
        moe, str(texts), str(tmp_path / 'a.json'), tokenizer=tokenizer
    )
    other = calibrate(moe, same, str(tmp_path / 'b.json'))
    assert one.tokens == len(ids)
    assert one.layers == other.layers
    some = calibrate(
        moe,
        str(texts),
        str(tmp_path / 'c.json'),
        max_tokens=33,
        tokenizer=tokenizer,
    )
    assert some.tokens == 33


def test_inspect_prints_it(moe, tmp_path):
    text = write_mds(tmp_path / 'mds', [range(32)])
    out = str(tmp_path / 'calibration.json')
    made = calibrate(moe, text, out)
    facts = describe(out)
    assert ('text', f'{text}, 32 tokens') in facts
    shares = [line for label, line in facts if '%' in line]
    assert len(shares) == 2 * E
    assert f'{made.layers[0].load_E[0] / 64:.1%}' in shares[0]


def test_texts_that_can_not_be_used_are_refused(moe, tmp_path):
    out = tmp_path / 'out.json'
    (tmp_path / 'empty').write_text(' \n')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    tokenizer = str(tmp_path / 'tokenizer')
    tiny_hf.save_tokenizer(tokenizer)
    too_large = write_mds(tmp_path / 'large', [[1, 128]])
    pickled = write_mds(tmp_path / 'pickled', [[1]], other='pkl')
    strings = tmp_path / 'strings'
    with MDSWriter(out=str(strings), columns={'text': 'str'}) as writer:
        writer.write({'text': 'w1'})
    for text, message in (
        (tmp_path / 'empty', 'it holds no text'),
        (tmp_path / 'binary', 'it is not a text in UTF-8'),
        (tmp_path / 'nothing', 'there is no such file'),
        (too_large, 'it has the token 128, and the model a vocabulary of 128'),
        (pickled, 'it has pickles, which are not executed'),
        (strings, 'it has no column tokens'),
    ):
        with pytest.raises(CheckpointError, match=message):
            calibrate(moe, str(text), str(out), tokenizer=tokenizer)
    with (
            pytest.warns(UserWarning, match='no tokenizer'),
            pytest.raises(CheckpointError, match='it holds no tokenizer'),
    ):
        calibrate(moe, str(tmp_path / 'empty'), str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    'change',
    [
        {
            'kind': 'other',
        },
        {
            'layers': {
                '0': {},
            },
        },
        {
            'layers': {
                '0': {
                    'coactivation': [[1, 2]],
                    'weighted_norm': [1, 2],
                },
            },
        },
        {
            'tokens': None,
        },
    ],
)
def test_a_damaged_file_is_refused(moe, tmp_path, change):
    file = tmp_path / 'calibration.json'
    tiny_shrunk.save_calibration(moe, file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match='it is not a calibration'):
        Calibration.read(str(file))
