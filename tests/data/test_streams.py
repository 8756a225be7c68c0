from pathlib import Path

import numpy as np
import pytest
from streaming import Stream, StreamingDataset

from foundry_upcycle.data.streams import write_stream
from foundry_upcycle.data.tokenizer import train_tokenizer

_DOCUMENTS = [f'Document {n} has some text of its own. ' * 5 for n in range(40)]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp('tokenizer')
    return train_tokenizer(_DOCUMENTS, 270, folder)


def _read(folder: Path) -> np.ndarray:
    dataset = StreamingDataset(local=str(folder), batch_size=1)
    return np.stack([dataset[i]['tokens'] for i in range(len(dataset))])


def test_samples_are_the_documents_in_order(tokenizer, tmp_path: Path):
    n_samples = write_stream(_DOCUMENTS, tokenizer, 64, tmp_path / 'train')
    samples = _read(tmp_path / 'train')
    assert samples.shape == (n_samples, 64)
    joined = tokenizer.eos_token.join(_DOCUMENTS)
    text = tokenizer.decode(samples.flatten())
    assert joined.startswith(text.removesuffix(tokenizer.eos_token))
    # Less than one sample is dropped.
    n_tokens = len(tokenizer(joined)['input_ids']) + 1
    assert 0 <= n_tokens - samples.size < 64


def test_stops_at_max_samples_and_replaces_what_is_there(
    tokenizer,
    tmp_path: Path,
):
    folder = tmp_path / 'train'
    write_stream(_DOCUMENTS, tokenizer, 64, folder)
    assert write_stream(_DOCUMENTS, tokenizer, 64, folder, max_samples=3) == 3
    assert _read(folder).shape == (3, 64)
    assert [path.name for path in tmp_path.iterdir()] == ['train']


def test_proportions_of_a_mix(tokenizer, tmp_path: Path):
    for name, sign in (('a', 'A'), ('b', 'B')):
        documents = [sign * 2000] * 4
        write_stream(documents, tokenizer, 16, tmp_path / name / 'train')
    mix = StreamingDataset(
        streams=[
            Stream(local=str(tmp_path / 'a'), split='train', proportion=0.25),
            Stream(local=str(tmp_path / 'b'), split='train', proportion=0.75),
        ],
        epoch_size=80,
        batch_size=8,
        shuffle=True,
    )
    a = tokenizer('A' * 2000)['input_ids'][0]
    from_a = sum(a in sample['tokens'] for sample in mix)
    assert from_a == 20


def test_too_little_text(tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match=r'do not fill one sample of seq_len='):
        write_stream(['short'], tokenizer, 64, tmp_path / 'train')
    assert not list(tmp_path.iterdir())
