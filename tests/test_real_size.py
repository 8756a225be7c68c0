"""The paper's 430M model, upcycled for real. Needs 12 GiB of memory."""

from pathlib import Path

import pytest
import torch
from composer import Trainer
from llmfoundry.utils.builders import build_callback, build_composer_model
from omegaconf import OmegaConf

YAMLS = Path(__file__).parent.parent / 'yamls'


def build(name: str):
    config = OmegaConf.to_container(
        OmegaConf.load(YAMLS / f'{name}.yaml'),
        resolve=True,
    )['model']
    config['init_device'] = 'cpu'
    config['loss_fn'] = 'torch_crossentropy'
    config['attn_config']['attn_impl'] = 'torch'
    torch.manual_seed(0)
    return build_composer_model(config.pop('name'), config, tokenizer=None)


@pytest.mark.slow
def test_430m_becomes_1_65b(tmp_path, capfd):
    dense = build('pretrain_430m').eval()
    source = tmp_path / 'dense.pt'
    torch.save({'state': {'model': dense.state_dict()}}, source)
    batch = {'input_ids': torch.randint(100_277, (2, 64))}
    with torch.no_grad():
        expected = dense(batch).logits
    del dense
    moe = build('upcycle_430m').eval()
    callback = build_callback('sparse_upcycling', {'source_path': str(source)})
    Trainer(model=moe, callbacks=[callback], device='cpu', precision='fp32')
    with torch.no_grad():
        found = moe(batch).logits
    difference = (found - expected).abs().max()
    summary = capfd.readouterr().out
    with capfd.disabled():
        print(
            f'\n{summary}largest logit {expected.abs().max():.2f}, '
            f'largest difference {difference:.1e}'
        )
    assert '436.3M -> 1,647.5M parameters' in summary
    assert difference <= 1e-5
