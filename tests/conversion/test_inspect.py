import pytest
import tiny
import tiny_hf
import torch

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError


def test_a_dense_file(tmp_path):
    model = tiny.build_dense()
    path = tiny.save_dense(model, tmp_path / 'dense.pt')
    facts = dict(describe(path))
    n_parameters = sum(p.numel() for p in model.parameters())
    assert facts['format'] == 'Composer, .pt file'
    assert facts['model'] == 'dense'
    assert facts['parameters'].startswith(f'{n_parameters / 1e6:.2f}M in ')
    assert facts['parameters'].endswith('float32')
    assert facts['layers'] == '3, d_model 64, ffn 96'
    assert facts['attention'] == (
        '4 heads, 2 for keys and values, rope theta 10000, max_seq_len 32'
    )
    assert facts['vocabulary'] == '128, untied embeddings'
    assert facts['made by'] == 'not known: there is no manifest beside it'


@pytest.mark.parametrize(
    'file_format,format_line',
    [
        ('pt', 'Composer, .pt file'),
        ('dcp', 'Composer, sharded (DCP) folder'),
        ('safetensors', 'Hugging Face folder (mixtral, safetensors)'),
    ],
)
def test_a_conversion_and_where_it_comes_from(
    tmp_path,
    file_format,
    format_line,
):
    source, out = str(tmp_path / 'llama'), str(tmp_path / 'out')
    tiny_hf.save_llama(source)
    convert(UpcyclingConfig(source), out, file_format, 4, 1)
    lines = describe(out)
    facts = dict(lines)
    assert facts['format'] == format_line
    assert facts['model'] == 'mixture of experts: 4 experts, top-1, in 2 layers'
    assert facts['made by'].startswith("convert (recipe={'name': 'copy'}, moe")
    assert facts['from'] == source
    hashed = [fact for label, fact in lines if label == 'sha256']
    assert [line.split()[1] for line in hashed] == [
        'config.json',
        'model.safetensors',
    ]


def test_defaults_that_composer_does_not_save(tmp_path):
    trainer = tiny.make_trainer(
        tiny.build_dense(tie_word_embeddings=True),
        duration='1ba',
        save_folder=str(tmp_path),
        save_filename='dense.pt',
    )
    trainer.fit()
    trainer.close()
    path = str(tmp_path / 'dense.pt')
    saved = open_checkpoint(path).model_config
    assert 'tie_word_embeddings' not in saved
    assert dict(describe(path))['vocabulary'] == '128, tied embeddings'
    convert(UpcyclingConfig(path), str(tmp_path / 'moe.pt'), 'pt')
    assert 'top-2' in dict(describe(str(tmp_path / 'moe.pt')))['model']
    assert verify(path, str(tmp_path / 'moe.pt')).passed


def test_a_file_without_config(tmp_path):
    path = tmp_path / 'dense.pt'
    torch.save({'state': {'model': tiny.build_dense().state_dict()}}, path)
    assert 'carries no model config' in dict(describe(str(path)))['layers']


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='no such file or folder'):
        describe(str(tmp_path / 'absent'))
