from pathlib import Path

import pytest
from study.study_files import YAMLS, StudyFiles

from foundry_upcycle.study.config import read_study
from foundry_upcycle.study.overview import plan_lines, status_lines
from foundry_upcycle.study.plan_runs import plan_grid

# Steps of study_files.py cost 141,120 and 205,632 FLOPs; 200 of the dense model
# take an hour, 28.224e6 FLOPs. 69 steps of the mixture are 14.189e6, 0.503 of
# them; 137 are 28.172e6, 0.998. In all 2.5 * 28.224e6 + 2 * 14.189e6 + 28.172e6
# = 127.1e6, 4.50 hours.
PLAN = '''\
run                               active     lr  steps    tokens     FLOPs  fraction  hours
m_short                             1.8k  0.001    200   2.4e+03  2.82e+07                1
m_short_upcycled_0.5_s17_lr0.001    2.7k  0.001     69       828  1.42e+07     0.503    0.5
m_short_upcycled_0.5_s17_lr0.002    2.7k  0.002     69       828  1.42e+07     0.503    0.5
m_short_cpt_0.5_s17                 1.8k  0.004    100   1.2e+03  1.41e+07     0.500    0.5
m_short_cpt_1_s17                   1.8k  0.004    200   2.4e+03  2.82e+07     1.000      1
m_short_upcycled_1_s17              2.7k  swept    137  1.64e+03  2.82e+07     0.998      1
all                                                               1.27e+08              4.5

active: parameters that a token meets
fraction: FLOPs over those of the pretraining
hours: of one abacus at 50% of 1.57e+04 FLOPs a second, training alone
'''.splitlines()  # yapf: disable


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    files = StudyFiles(tmp_path)
    files.set('study', 'models.m.durations', {'short': '200ba'})
    files.set('study', 'models.m.arms.cpt.lr', 4e-3)
    return files.set('study', 'models.m.arms.upcycled.lr', [1e-3, 2e-3])


def test_a_plan(files: StudyFiles):
    assert list(plan_lines(files.grid())) == PLAN


def test_hours_have_two_digits(files: StudyFiles):
    # A twelfth of an hour and, 24 times as long, 24 and 2,400 hours.
    files.set('study', 'models.m.fractions', [1.0])
    for arm in ('cpt', 'upcycled'):
        files.set('study', f'models.m.arms.{arm}.lr', 1e-3)
    files.set('study', 'models.m.durations', {'a': '16ba', 'b': '480000ba'})
    files.set_all('scheduler.t_warmup', '5ba')
    lines = list(plan_lines(files.grid()))
    assert lines[1].endswith(' 0.08')
    assert lines[2].endswith(' 2,400')


def test_the_papers_tokens_are_shown_where_it_has_the_run():
    grid = plan_grid(read_study(YAMLS / 'study_430m.yaml'))
    header, *lines = plan_lines(grid)
    assert header.split()[-3:] == ['hours', 'paper,', 'ours']
    rows = {line.split()[0]: line for line in lines if line}
    assert len(rows) == 33 + 1 + 4  # Runs, all, notes.
    # Whole steps of 4,194,304: 10395 of 43.6e9 tokens.
    assert rows['430m_medium'].endswith('  4.36e+10 100.0%')
    # 1040 steps are 4.362e9 to 4.3e9; 7790 are 32.67e9 to 32e9.
    assert rows['430m_medium_cpt_0.1_s17'].endswith('  4.3e+09 101.4%')
    assert rows['430m_medium_upcycled_1_s17'].endswith('  3.2e+10 102.1%')
    # 0.8 of 200e9, where the paper has a misprint.
    assert rows['430m_extra_long_cpt_0.8_s17'].endswith('  1.6e+11 100.0%')
    assert len(rows['all']) == header.index('hours') + len('hours')
    assert lines[-1] == (
        'paper, ours: tokens that the paper prints, and ours over them'
    )


def test_runs_that_the_paper_does_not_have(files: StudyFiles):
    files.set('study', 'models.m.paper', '436M')
    durations = {'medium': '44e9tok', 'long': '1e9tok', 'mine': '100e9tok'}
    files.set('study', 'models.m.durations', durations)
    files.set_all('max_duration', '44e9tok')
    files.set_all('scheduler.t_warmup', '1e6tok')
    files.set('study', 'models.m.fractions', [0.4, 0.5])
    header, *lines = plan_lines(files.grid())
    rows = {line.split()[0]: line for line in lines if line}
    # 44e9 tokens of 43.6e9, 17.6e9 of 17.5e9.
    assert rows['m_medium'].endswith('  4.36e+10 100.9%')
    assert rows['m_medium_cpt_0.4_s17'].endswith('  1.75e+10 100.6%')
    end_of_hours = header.index('hours') + len('hours')
    # Another length, another name, another fraction.
    for name in (
            'm_long',
            'm_long_cpt_0.4_s17',
            'm_mine',
            'm_mine_cpt_0.4_s17',
            'm_medium_cpt_0.5_s17',
    ):
        assert len(rows[name]) == end_of_hours


def test_status_before_anything_is_done(files: StudyFiles):
    files.set('study', 'evaluation', 'eval.yaml')
    lines = list(status_lines(files.grid()))
    rows = [line.split() for line in lines[1:-2]]
    assert rows[0] == ['m_short', 'ready', '0/200']
    # Evaluations of a sweep are behind the last of its runs.
    assert [row[:2] for row in rows[2:6]] == [
        ['m_short_upcycled_0.5_s17_lr0.001', 'waits'],
        ['m_short_upcycled_0.5_s17_lr0.002', 'waits'],
        ['m_short_upcycled_0.5_s17_lr0.001_eval', 'waits'],
        ['m_short_upcycled_0.5_s17_lr0.002_eval', 'waits'],
    ]
    assert lines[-2:] == ['', '0 of 12 tasks, 0% of the training FLOPs']
