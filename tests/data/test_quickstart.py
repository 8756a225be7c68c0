"""The quickstart's data: whole, and made once."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from streaming import StreamingDataset

from foundry_upcycle.data import quickstart
from foundry_upcycle.data.quickstart import SIZES, Size, main, write_quickstart
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import read_gauntlet
from foundry_upcycle.gauntlet.tasks import check_data, read_tasks

YAMLS = Path(__file__).parents[2] / 'yamls'
SMALL = Size(
    seq_len=32,
    pretrain_chars=300_000,
    part_chars=300_000,
    n_held_out=3,
    n_examples=4,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('quickstart')
    assert write_quickstart(folder, SMALL)
    return folder


def test_streams_are_those_of_the_yamls(folder: Path):
    for name in ('pretrain', 'cpt', 'upcycle'):
        config = OmegaConf.load(YAMLS / f'quickstart_{name}.yaml')
        config.variables.folder = str(folder)
        for stream in config.train_loader.dataset.streams.values():
            data = StreamingDataset(
                local=stream.local,
                split=stream.split,
                batch_size=1,
            )
            assert len(data[0]['tokens']) == SMALL.seq_len
    evaluation = OmegaConf.load(YAMLS / 'eval_quickstart.yaml')
    evaluation.variables.folder = str(folder)
    for loader in evaluation.eval_loaders:
        data = StreamingDataset(
            local=loader.dataset.local,
            split=loader.dataset.split,
            batch_size=1,
        )
        assert len(data) == SMALL.n_held_out
    assert Path(evaluation.icl_tasks).is_file()
    assert Path(evaluation.eval_gauntlet).is_file()


def test_tasks_can_be_asked(folder: Path):
    tasks = read_tasks(folder / 'tasks' / 'quickstart_tasks.yaml')
    for task in tasks:
        assert check_data(task, Path(task.dataset_uri)) == SMALL.n_examples
    gauntlet = read_gauntlet(folder / 'tasks' / 'quickstart.yaml')
    labels = {label for task in tasks for label in task.benchmarks}
    assert {benchmark.label for benchmark in gauntlet.benchmarks} == labels


def test_vocabulary_fits_the_models(folder: Path):
    config = yaml.safe_load((YAMLS / 'quickstart_cpt.yaml').read_text())
    assert config['model']['vocab_size'] == quickstart._VOCAB_SIZE


def test_made_once(folder: Path, capsys: pytest.CaptureFixture):
    before = (folder / 'data.json').stat().st_mtime_ns
    assert not write_quickstart(folder, SMALL)
    assert (folder / 'data.json').stat().st_mtime_ns == before
    assert not capsys.readouterr().out


def test_an_interrupted_making_is_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(quickstart, 'write_gauntlet', fail)
        with pytest.raises(KeyboardInterrupt):
            write_quickstart(tmp_path, SMALL)
    assert write_quickstart(tmp_path, SMALL)
    assert (tmp_path / 'tasks' / 'quickstart_tasks.yaml').is_file()


def test_data_of_another_size_stay(folder: Path):
    match = "folder=.*it has data of .*'seq_len': 32.*name another folder"
    with pytest.raises(ConfigError, match=match):
        write_quickstart(folder, SIZES['tiny'])
    with pytest.raises(SystemExit, match='error: folder=.*it has data of'):
        main([str(folder), '--size', 'tiny'])
    assert not write_quickstart(folder, SMALL)
