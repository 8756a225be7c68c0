"""``report/consistency.py``: what must not stand in one figure."""

from pathlib import Path

import pytest
from serving_study import CPU, GPU, write_point

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.report.results import read_points
from benchmarks.inference.report.summary import Summary


def read(folder: Path) -> Summary:
    return Summary(read_points(folder))


def test_another_study_is_refused(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, run=1, config={'study': 'paper'})
    with pytest.raises(
            HarnessError,
            match='config.study=.*is of the study .* in a folder of its own',
    ):
        read(tmp_path)


def test_a_place_measured_twice_is_refused(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, config={'engine': {'max_model_len': 2048}})
    with pytest.raises(
            HarnessError,
            match='same size, model, rate and run, and another engine: the study '
            'was changed',
    ):
        read(tmp_path)


def test_a_failed_one_of_other_settings_is_no_twin(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, config={'seed': 2}, status='failed', reason='died')
    assert len(read(tmp_path).done) == 1


def test_other_lengths_are_refused(tmp_path: Path):
    write_point(tmp_path)
    lengths = {'input_tokens': 3500, 'output_tokens': 64}
    write_point(tmp_path, run=1, config={'workload': lengths})
    with pytest.raises(
            HarnessError,
            match='config.workload.input_tokens=.*compare nothing but alike',
    ):
        read(tmp_path)


def test_other_numbers_of_requests_are_not(tmp_path: Path):
    write_point(tmp_path)
    workload = {'input_tokens': 512, 'output_tokens': 64, 'requests': 80}
    write_point(tmp_path, rate=2.0, config={'workload': workload})
    assert read(tmp_path).rates('430m',
                                read(tmp_path).arms('430m')[0]) == (
                                    1.0,
                                    2.0,
                                )


def test_other_routing_is_refused_of_mixtures(tmp_path: Path):
    write_point(tmp_path, config={'routing': None})
    write_point(tmp_path, 8, 1)
    assert len(read(tmp_path).done) == 2
    write_point(tmp_path, 8, 2, config={'routing': {'kind': 'zipf'}})
    with pytest.raises(HarnessError, match='config.routing=.*of the same size'):
        read(tmp_path)


def test_cpus_and_gpus_are_not_mixed(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, size='1b', machine=GPU)
    with pytest.raises(
            HarnessError,
            match="machine='GPU NVIDIA H100': .* was measured on CPU A CPU",
    ):
        read(tmp_path)


def test_a_size_has_one_kind_of_machine(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, size='1b', machine={**CPU, 'cpu': 'Another'})
    assert len(read(tmp_path).done) == 2
    write_point(tmp_path, 8, 2, machine={**CPU, 'cpu': 'Another'})
    with pytest.raises(
            HarnessError,
            match='CPU A.*: what differs may be the machine',
    ):
        read(tmp_path)


def test_a_build_for_cpus_computes_on_the_cpu(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, run=1, machine={**GPU, 'vllm': '0.32.0+cpu'})
    assert len(read(tmp_path).done) == 2


def test_skipped_points_may_be_of_any_machine(tmp_path: Path):
    write_point(tmp_path, machine=GPU)
    write_point(tmp_path, 8, 2, status='skipped', reason='it needs a GPU.')
    assert read(tmp_path).sizes == ('430m', )


def test_a_variant_has_one_number_of_devices(tmp_path: Path):
    write_point(tmp_path)
    write_point(tmp_path, 8, 2, variant='two', engine={'devices': 2})
    write_point(tmp_path, size='1b', engine={'devices': 4})
    assert len(read(tmp_path).done) == 3
    write_point(tmp_path, 8, 2, engine={'devices': 2})
    with pytest.raises(
            HarnessError,
            match='engine.devices=.*of the same size and variant, .* has .* in '
            'studies of their own',
    ):
        read(tmp_path)
