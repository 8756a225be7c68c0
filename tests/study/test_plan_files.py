"""YAMLs of runs that have started stay, and studies with others are refused."""

import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from small_study import LOSS, leave_answers, leave_training, log
from study.study_files import GONE, StudyFiles

from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.grid import Grid, evaluation_run_name
from foundry_upcycle.study.lock import only_one
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.plan_files import require_unchanged, write_yamls
from foundry_upcycle.study.plan_runs import plan_grid
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import HEADER, train_yaml

DENSE, CPT, UPCYCLED = 'm_short', 'm_short_cpt_0.5_s17', 'm_short_upcycled_1_s17'
OTHER = (
    r'name another folder and another name \(MLflow finds runs by their names\)\.'
)


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path).set('study', 'evaluation', 'eval.yaml')


def start(grid: Grid, name: str) -> None:
    """Leaves what a training, or an evaluation, logs first."""
    log(grid, name, {LOSS: [3.0]})


def save(grid: Grid, name: str) -> None:
    """Leaves a checkpoint."""
    folder = RunFiles(grid.study, name).checkpoints
    folder.mkdir(parents=True)
    (folder / 'ep0-ba1-rank0.pt').touch()


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob('yamls/*.yaml')}


def test_a_yaml_for_each_run(files: StudyFiles, tmp_path: Path):
    grid = files.grid()
    write_yamls(grid)
    folder = tmp_path / 'results/yamls'
    names = {run.name for run in grid.runs}
    names |= {f'{name}_eval' for name in names}
    assert {path.name
            for path in folder.iterdir()} == {f'{name}.yaml'
                                              for name in names}
    text = RunFiles(grid.study, CPT).train_yaml.read_text()
    assert text.startswith(f'# Planned from {tmp_path}/cpt.yaml by ')
    assert text == train_yaml(grid, grid[CPT], None)


def test_without_an_evaluation(files: StudyFiles, tmp_path: Path):
    grid = files.set('study', 'evaluation', GONE).grid()
    write_yamls(grid)
    assert not list(tmp_path.rglob('*_eval.yaml'))


def test_planning_twice_changes_nothing(files: StudyFiles, tmp_path: Path):
    grid = files.grid()
    write_yamls(grid)
    before = bytes_of(tmp_path / 'results')
    for run in grid.runs:
        start(grid, run.name)
    again = files.grid()
    require_unchanged(Measured(again))
    write_yamls(again)
    assert bytes_of(tmp_path / 'results') == before


def test_a_run_that_has_not_started_may_change(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    start(grid, DENSE)
    write_yamls(files.set('cpt', 'optimizer.lr', 2e-3).grid())
    config = OmegaConf.load(RunFiles(grid.study, CPT).train_yaml)
    assert config.optimizer.lr == 2e-3


@pytest.mark.parametrize('begin', [start, save])
def test_a_run_that_has_started_may_not(files: StudyFiles, tmp_path, begin):
    files.set('cpt', 'optimizer.lr', 1e-3)
    grid = files.grid()
    write_yamls(grid)
    before = bytes_of(tmp_path / 'results')
    begin(grid, CPT)
    # Nor is the other arm's, which has not started, replaced.
    files.set('upcycled', 'seed', 9)
    changed = files.set('cpt', 'optimizer.lr', 5e-4).grid()
    path = tmp_path / 'results/yamls' / f'{CPT}.yaml'
    with pytest.raises(
            ConfigError,
            match=f"^folder='{tmp_path}/results': {CPT} has started with other "
            'settings than it would have now. Fix: undo the change, or '
            f'{OTHER} The difference:\n'
            rf'--- {path} \(has started\)\n'
            r'\+\+\+ as the study now plans it\n'
            r'@@ .* @@\n'
            '   name: decoupled_lionw\n'
            '-  lr: 0.001\n'
            r'\+  lr: 0.0005\n'
            '   weight_decay: 0.0001$',
    ):
        write_yamls(changed)
    assert bytes_of(tmp_path / 'results') == before
    with pytest.raises(ConfigError, match='-  lr: 0.001\n.  lr: 0.0005\n'):
        require_unchanged(Measured(changed))


def test_a_run_that_failed_before_its_first_step_may_be_mended(files):
    grid = files.grid()
    write_yamls(grid)
    run = RunFiles(grid.study, CPT)
    run.log.parent.mkdir(parents=True)
    run.log.write_text('CUDA out of memory')
    run.checkpoints.mkdir(parents=True)
    files.set('cpt', 'train_loader.dataset.local', 'the_right_folder')
    write_yamls(files.grid())
    config = OmegaConf.load(run.train_yaml)
    assert config.train_loader.dataset.local == 'the_right_folder'
    assert run.log.read_text() == 'CUDA out of memory'


def test_how_a_run_goes_may_change(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    save(grid, CPT)
    write_yamls(files.set('cpt', 'device_train_microbatch_size', 3).grid())
    config = OmegaConf.load(RunFiles(grid.study, CPT).train_yaml)
    assert config.device_train_microbatch_size == 3


def test_what_no_study_planned_stays(files: StudyFiles, tmp_path: Path):
    mine = tmp_path / 'results/yamls/mine.yaml'
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'a: \xff')
    grid = files.grid()
    write_yamls(grid)
    assert mine.read_bytes() == b'a: \xff'
    planned = RunFiles(grid.study, CPT).train_yaml
    planned.write_text('a: 1')
    with pytest.raises(
            ConfigError,
            match=f"^folder='{tmp_path}/results': {planned} is there, and no "
            'study has planned it. Fix: name another folder, or move',
    ):
        write_yamls(grid)
    assert planned.read_text() == 'a: 1'


def answer(grid: Grid) -> None:
    """Leaves what an evaluation on a cluster leaves first."""
    answers = RunFiles(grid.study, CPT).answers
    answers.mkdir(parents=True)
    (answers / 'checkpoint.json.partial').touch()


def log_evaluation(grid: Grid) -> None:
    """Leaves what an evaluation by the runner leaves first."""
    start(grid, evaluation_run_name(CPT))


@pytest.mark.parametrize('leave', [answer, log_evaluation])
def test_an_evaluation_that_has_started_may_not_change(files, leave):
    grid = files.grid()
    write_yamls(grid)
    leave(grid)
    changed = files.set('eval', 'icl_tasks', 'others.yaml').grid()
    with pytest.raises(
            ConfigError,
            match=f'{CPT}_eval has started with other settings(?s:.*)'
            '-icl_tasks: tasks.yaml\n.icl_tasks: others.yaml\n',
    ):
        require_unchanged(Measured(changed))


def test_it_does_not_matter_where_a_study_is_read_from(files, monkeypatch):
    grid = files.grid()
    write_yamls(grid)
    start(grid, CPT)
    monkeypatch.chdir(files.folder)
    again = plan_grid(read_study('study.yaml'))
    # The header names another path.
    assert train_yaml(again, again[CPT],
                      None) != train_yaml(grid, grid[CPT], None)
    require_unchanged(Measured(again))


def test_more_runs_are_no_change(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    for run in grid.runs:
        start(grid, run.name)
    files.set('study', 'models.m.fractions', [0.5, 0.75, 1.0])
    files.set('study', 'seeds', [17, 18])
    more = files.grid()
    # 2 starts; of 2 arms, 2 durations, 3 fractions and 2 seeds.
    assert (len(grid.runs), len(more.runs)) == (10, 26)
    write_yamls(more)
    assert all(
        RunFiles(more.study, r.name).train_yaml.exists() for r in more.runs
    )


def test_runs_that_are_planned_no_more_keep_what_they_have(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    start(grid, CPT)
    answer(grid)
    fractions = 'models.m.fractions'
    fewer = files.set('study', fractions, [1.0]).grid()
    require_unchanged(Measured(fewer))
    write_yamls(fewer)
    started = RunFiles(grid.study, CPT)
    assert started.train_yaml.exists() and started.eval_yaml.exists()
    # Planned again, it must be what it was.
    files.set('study', fractions, [0.5, 1.0])
    write_yamls(files.grid())
    files.set('cpt', 'optimizer.lr', 2e-3)
    with pytest.raises(ConfigError, match=f'{CPT} has started with other'):
        write_yamls(files.grid())


@pytest.mark.parametrize(
    'write',
    [
        lambda text: text.replace('1000ba', '1.0e3ba'),  # Of max_duration.
        lambda text: text.replace('0.0001', '1.0e-4'),
        lambda text: text.replace('t_warmup: 10ba', 't_warmup: 10.0ba'),
        lambda text: text.replace('${max_seq_len}', '4'),
        lambda text: yaml.safe_dump(yaml.safe_load(text)),  # Sorts its keys.
    ],
    ids=['duration', 'number', 'other duration', 'interpolation', 'order'],
)
def test_what_is_written_otherwise_is_no_change(files: StudyFiles, write):
    grid = files.grid()
    write_yamls(grid)
    save(grid, CPT)
    path = files.write().with_name('cpt.yaml')
    text = path.read_text()
    assert write(text) != text
    path.write_text(write(text))
    again = plan_grid(read_study(files.folder / 'study.yaml'))
    write_yamls(again)
    require_unchanged(Measured(again))


@pytest.mark.parametrize(
    'content',
    [b'\xff', b'a: [', b'- 1', f'a: 1{400 * "0"}'.encode()],
)
def test_a_started_yaml_that_is_damaged(files: StudyFiles, content: bytes):
    grid = files.grid()
    write_yamls(grid)
    save(grid, CPT)
    path = RunFiles(grid.study, CPT).train_yaml
    path.write_bytes(HEADER.encode() + b'x\n' + content)
    match = f"^folder='{path}': it is what a run has started with, and it"
    for check in (write_yamls, lambda grid: require_unchanged(Measured(grid))):
        with pytest.raises(ConfigError, match=match):
            check(grid)
    assert path.read_bytes().endswith(content)


def test_a_folder_may_be_named_from_elsewhere(files: StudyFiles, monkeypatch):
    grid = files.grid()
    write_yamls(grid)
    save(grid, CPT)
    monkeypatch.chdir(files.folder)
    write_yamls(files.set('study', 'folder', 'results').grid())


def test_another_evaluation_is_done_anew(files: StudyFiles):
    """Of trainings that stand; what was measured stays, and counts again."""
    grid = files.grid()
    write_yamls(grid)
    leave_training(grid, grid[CPT])
    leave_answers(grid, grid[CPT])
    log(grid, evaluation_run_name(CPT), {'metrics/tasks': [0.5]})
    before = RunFiles(grid.study, CPT).answers / 'checkpoint.json'
    text = before.read_text()
    other = files.set('eval', 'icl_tasks', 'others.yaml').grid()
    with pytest.warns(UpcyclingWarning,
                      match='1 evaluations have other settings'):
        write_yamls(other)
    measured = Measured(other)
    assert measured.is_trained(other[CPT])
    assert not measured.is_evaluated(other[CPT])
    assert not measured.tracking.keys(evaluation_run_name(CPT))
    leave_answers(other, other[CPT]).write_text('others')
    with pytest.warns(UpcyclingWarning):
        write_yamls(files.set('eval', 'icl_tasks', 'tasks.yaml').grid())
    assert before.read_text() == text
    measured = Measured(grid)
    assert measured.is_evaluated(grid[CPT])
    assert measured.tracking.last(
        evaluation_run_name(CPT), 'metrics/tasks'
    ) == .5
    kept = [*before.parent.parent.glob(f'{CPT}.*/checkpoint.json')]
    assert [path.read_text() for path in kept] == ['others']


def test_an_evaluation_that_goes_on_is_not_done_anew(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    answer(grid)
    other = files.set('eval', 'icl_tasks', 'others.yaml').grid()
    with only_one(RunFiles(grid.study, f'{CPT}_eval').lock):
        with pytest.raises(ConfigError,
                           match=f'{CPT}_eval goes on, with other'):
            write_yamls(other)


def test_an_evaluation_less_is_no_change(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    answer(grid)
    write_yamls(files.set('study', 'evaluation', GONE).grid())
    assert RunFiles(grid.study, CPT).eval_yaml.exists()


def test_empty_answers_are_none(files: StudyFiles):
    # Made before the model is loaded.
    grid = files.grid()
    write_yamls(grid)
    RunFiles(grid.study, CPT).answers.mkdir(parents=True)
    require_unchanged(
        Measured(files.set('eval', 'icl_tasks', 'others.yaml').grid())
    )


def test_checkpoints_without_yamls_are_refused(files: StudyFiles, tmp_path):
    grid = files.grid()
    write_yamls(grid)
    for name in (DENSE, CPT, UPCYCLED):
        RunFiles(grid.study, name).checkpoints.mkdir(parents=True)
    for name in (DENSE, CPT):
        (RunFiles(grid.study, name).checkpoints / 'ep0-ba1-rank0.pt').touch()
    yamls = tmp_path / 'results/yamls'
    kept = shutil.copytree(yamls, tmp_path / 'kept')
    shutil.rmtree(yamls)
    with pytest.raises(
            ConfigError,
            match=f"^folder='{tmp_path}/results': it has checkpoints of {DENSE}"
            f', {CPT}, and not the YAMLs that they were trained with. Fix: '
            f'restore {yamls}, or {OTHER}$',
    ):
        write_yamls(grid)
    assert not yamls.exists()
    shutil.copytree(kept, yamls)
    write_yamls(grid)


def test_yamls_that_are_planned_no_more_go(files: StudyFiles):
    grid = files.grid()
    write_yamls(grid)
    files.set('study', 'models.m.fractions', [1.0])
    write_yamls(files.grid())  # Nothing has started.
    assert not RunFiles(grid.study, CPT).train_yaml.exists()
    assert RunFiles(grid.study, UPCYCLED).train_yaml.exists()
