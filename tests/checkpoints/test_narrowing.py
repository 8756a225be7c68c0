import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_hf
import torch

from foundry_upcycle.checkpoints.narrowing import Narrowing, overflowing
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.parameters import fill_parameters
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError, UpcyclingWarning

FFN = 'model.transformer.blocks.1.ffn.down_proj.weight'
EMBEDDING = 'model.transformer.wte.weight'


# From each dtype to one of less range, by the largest that still rounds to its
# largest: half a unit in the last place above it is too much.
@pytest.mark.parametrize(
    'source,dtype,fits,too_large',
    [
        (torch.float32, torch.float16, 65519.0, 65520.0),
        (torch.bfloat16, torch.float16, 65280.0, 65536.0),
        (torch.float32, torch.bfloat16, 3.3895e38, 3.4e38),
        (torch.float64, torch.bfloat16, 3.3895e38, 1e39),
        (torch.float64, torch.float32, 3.4028234e38, 1e300),
    ],
)
@pytest.mark.parametrize('sign', [1, -1])
def test_a_finite_weight_stays_finite(source, dtype, fits, too_large, sign):
    narrowing = Narrowing('x.pt')
    weights = torch.tensor([[1.0, 0.0], [2.0, sign * fits]], dtype=source)
    cast = narrowing.cast('w', weights, dtype)
    assert torch.equal(cast, weights.to(dtype)) and cast.isfinite().all()
    weights[1, 1] = sign * too_large
    shown = f'{weights[1, 1].item():g}'.replace('+', r'\+')
    message = f'x.pt: w has the weight {shown}, .* largest .*Fix: choose float32'
    with pytest.raises(CheckpointError, match=message):
        narrowing.cast('w', weights, dtype)
    narrowing.allow_overflow = True
    assert narrowing.cast('w', weights, dtype)[1, 1] == sign * torch.inf


def test_what_was_not_finite_is_no_overflow():
    weights = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    cast = Narrowing('x').cast('w', weights, torch.float16)
    assert cast.tolist()[:2] == [torch.inf, -torch.inf]
    assert cast[2].isnan() and cast[3] == 1
    weights[3] = -70000.0
    assert overflowing(weights, weights.half()) == -70000.0
    assert overflowing(torch.empty(0), torch.empty(0).half()) is None
    assert overflowing(torch.tensor([70000]), torch.tensor([1]).half()) is None


@pytest.mark.parametrize(
    'dtype,n_small,warns',
    [
        (torch.float16, 2, True),  # 1 in 500
        (torch.float16, 1, False),  # 1 in 1000 is not more than that
        (torch.bfloat16, 1000, False),  # It holds them.
    ],
)
def test_weights_that_become_0_are_counted(dtype, n_small, warns):
    narrowing = Narrowing('x.pt')
    weights = torch.full((2000, ), 0.5)
    weights[1000:] = 0.0  # These were 0 before.
    weights[:n_small] = -1e-8
    for part in weights.split(300):
        narrowing.cast('w', part, dtype)
    narrowing.cast('others', torch.ones(10), dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        narrowing.warn_of_zeros()
    assert len(caught) == warns
    if warns:
        message = str(caught[0].message)
        assert message.startswith('x.pt: ') and 'are 0 in float16: ' in message
        assert ' 0.2% of w, and more than 0.1% of 1 tensors' in message


@pytest.fixture
def source(tmp_path) -> str:
    """A dense model with a weight that float16 has not, of an expert's."""
    return save_with(tmp_path / 'dense.pt', FFN, 70000.0)


def save_with(path, name: str, value: float) -> str:
    model = tiny.build_dense()
    with torch.no_grad():
        model.state_dict()[name][3, 5] = value
    return tiny.save_dense(model, path)


def to_mixture(source: str, out: str, **settings: Any) -> None:
    convert(UpcyclingConfig(source), out, dtype=torch.float16, **settings)


def to_huggingface(source: str, out: str, **settings: Any) -> None:
    export_hf(source, out, dtype=torch.float16, **settings)


@pytest.mark.parametrize(
    'write,settings,name',
    [
        (to_mixture, {
            'file_format': 'pt',
        }, FFN),
        (to_mixture, {
            'file_format': 'dcp',
        }, EMBEDDING),
        (to_mixture, {
            'file_format': 'safetensors',
        }, FFN),
        (to_huggingface, {}, EMBEDDING),
    ],
)
def test_no_output_has_an_infinite_weight_of_a_finite_one(
    tmp_path,
    write: Callable[..., None],
    settings: dict[str, Any],
    name: str,
):
    source, out = save_with(tmp_path / 'in.pt', name, 70000.0), tmp_path / 'out'
    with pytest.raises(CheckpointError, match='has the weight 70000, and the'):
        write(source, str(out), **settings)
    assert [file.name for file in tmp_path.iterdir()] == ['in.pt']
    write(source, str(out), allow_overflow=True, **settings)
    assert out.exists()


def test_what_was_there_stays(source: str, tmp_path):
    out = tmp_path / 'out.pt'
    convert(UpcyclingConfig(source, seed=3), str(out), 'pt')
    before = out.read_bytes(), (tmp_path / 'out.pt.manifest.json').read_bytes()
    with pytest.raises(CheckpointError, match=FFN):
        to_mixture(source, str(out), file_format='pt', overwrite=True)
    after = out.read_bytes(), (tmp_path / 'out.pt.manifest.json').read_bytes()
    assert after == before


def test_import(tmp_path):
    model = tiny_hf.save_llama(tmp_path / 'llama')
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = -1e6
    model.save_pretrained(tmp_path / 'llama')
    with pytest.raises(CheckpointError, match='has the weight -1e\\+06'):
        import_hf(str(tmp_path / 'llama'), str(tmp_path / 'out'), torch.float16)
    assert [file.name for file in tmp_path.iterdir()] == ['llama']


def test_a_mixture_that_lost_weights_is_not_the_dense_model(
    source: str,
    tmp_path,
):
    out = str(tmp_path / 'moe.pt')
    to_mixture(source, out, file_format='pt', allow_overflow=True)
    result = verify(source, out)
    name = 'model.transformer.blocks.1.ffn.experts.mlp.w2'
    assert result.differing == {name: float('inf')} and not result.passed


def test_parameters_of_less_range_are_not_filled(source: str):
    checkpoint = open_checkpoint(source)
    parameters = dict(tiny.build_dense(seed=1).half().named_parameters())
    with pytest.raises(CheckpointError, match=f'{FFN} has the weight 70000'):
        fill_parameters(checkpoint, parameters, [FFN])


def test_a_conversion_warns_of_what_became_0(tmp_path):
    model = tiny.build_dense()
    with torch.no_grad():
        model.state_dict()[FFN][:, :3] = 1e-9  # 3 of 96 columns
    source = tiny.save_dense(model, tmp_path / 'dense.pt')
    with pytest.warns(UpcyclingWarning, match=f'3.1% of {FFN}, and more'):
        to_mixture(source, str(tmp_path / 'moe.pt'), file_format='pt')
