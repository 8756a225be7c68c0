"""The installed command, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_study
import tiny
import tiny_hf
import tiny_tasks
from omegaconf import OmegaConf
from typer.testing import CliRunner

from foundry_upcycle.cli.app import app
from foundry_upcycle.gauntlet.gauntlets import FOLDER
from foundry_upcycle.gauntlet.tasks import read_tasks
from foundry_upcycle.planning.flops import ModelShape

COMMANDS = (
    'inspect',
    'import-hf',
    'convert',
    'export-hf',
    'verify',
    'calibrate',
    'shrink',
    'advise',
    'expert-shares',
    'flops',
)
YAMLS = Path(__file__).parent.parent / 'yamls'
OF_GAUNTLET = ('prepare', 'score')
OF_STUDY = ('plan', 'run', 'status', 'report')


def run(*args: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout, result.stderr


@pytest.mark.parametrize('command', COMMANDS)
def test_help_has_an_example(command: str):
    text, _ = run(command, '--help')
    assert f'Example: foundry-upcycle {command} ' in text


@pytest.mark.parametrize('command', OF_GAUNTLET)
def test_help_of_the_gauntlets_commands_has_an_example(command: str):
    text, _ = run('gauntlet', command, '--help')
    assert f'Example: foundry-upcycle gauntlet {command} ' in text


@pytest.mark.parametrize('command', OF_STUDY)
def test_help_of_a_studys_commands_has_an_example(command: str):
    text, _ = run('study', command, '--help')
    assert f'Example: foundry-upcycle study {command} yamls/' in text


def test_help_of_the_installed_command_loads_little():
    command = Path(sys.executable).with_name('foundry-upcycle')
    result = subprocess.run(
        [sys.executable, '-X', 'importtime', command, '--help'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(command in result.stdout for command in COMMANDS)
    loaded = {
        line.split('|')[-1].strip()
        for line in result.stderr.splitlines()
    }
    assert 'foundry_upcycle.cli.app' in loaded
    assert not loaded & {'numpy', 'torch', 'llmfoundry', 'omegaconf'}


def test_from_hugging_face_and_back(tmp_path):
    tiny_hf.save_llama(tmp_path / 'llama')
    dense, moe, out = (tmp_path / name for name in ('dense', 'moe.pt', 'out'))
    text, _ = run('import-hf', tmp_path / 'llama', dense)
    assert text == (
        f'wrote {dense}: checkpoint.pt, model.yaml, hf/\n'
        'max_seq_len in model.yaml: 64; the model was made for up to 64 '
        '(--max-seq-len)\n'
    )
    source = dense / 'checkpoint.pt'
    run('convert', source, moe, '--experts', 4, '--top-k', 1, '--seed', 3)
    text, _ = run('verify', source, moe)
    assert 'The mixture is the dense model.' in text
    run('export-hf', moe, out, '--like', dense / 'hf', '--dtype', 'bfloat16')
    text, _ = run('inspect', out)
    assert 'mixture of experts: 4 experts, top-1, in 2 layers' in text
    assert 'bfloat16' in text
    assert text.count('made by') == 3
    assert 'seed=3' in text


def test_some_layers(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    out = tmp_path / 'moe.pt'
    text, _ = run('convert', source, out, '--layers', '0,2')
    assert text == f'wrote {out}: 8 experts, top-2, in layers 0,2\n'
    text, _ = run('inspect', out)
    assert 'mixture of experts: 8 experts, top-2, in 2 of 3 layers' in text
    assert 'moe_layers=[0, 2]' in text
    run('verify', source, out)


def test_a_mixture_is_shrunk(tmp_path: Path):
    dense = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    moe, out = tmp_path / 'moe.pt', tmp_path / 'out.pt'
    text, calibration = tmp_path / 'text', tmp_path / 'calibration.json'
    tiny_hf.save_tokenizer(tmp_path / 'tokenizer')
    text.write_text('w3 w1 w4 w1 w5 ' * 10)
    run('convert', dense, moe, '--tokenizer', tmp_path / 'tokenizer')
    said, _ = run('calibrate', moe, text, calibration, '--tokens', 40)
    assert said == f'wrote {calibration}: 40 tokens\n'
    for path in (moe, text):
        _, error = run('calibrate', moe, text, path, '--overwrite', code=1)
        assert f'error: {path}: it is, holds or lies in the source' in error
    assert 'top-2' in run('inspect', calibration)[0]
    ways = {
        ('--experts', 3, '--by', 'norm'):
        '3 experts, top-2',
        ('--dense', 'concat', '--keep', 2, '--by', 'load'):
        'a dense model, ffn_hidden_size 192',
    }
    for way, made in ways.items():
        said, _ = run(
            'shrink',
            moe,
            out,
            *way,
            '--calibration',
            calibration,
            '--overwrite',
        )
        assert said == f'wrote {out}: {made}\n'
        said, _ = run('verify', moe, out)
        assert 'is what shrink makes of the mixture' in said
    assert 'ffn 192' in run('inspect', out)[0]
    way = ('--experts', 3, '--by', 'norm', '--calibrate', text, '--tokens', 40)
    said, _ = run('shrink', moe, out, *way, '--overwrite')
    assert said == (
        f'wrote {out}.calibration.json: 40 tokens\n'
        f'wrote {out}: 3 experts, top-2\n'
    )
    both = ('--calibration', calibration)
    _, error = run('shrink', moe, out, *way, *both, '--overwrite', code=1)
    assert 'error: --calibrate=' in error


@pytest.mark.parametrize(
    'arguments,name',
    [
        (('export-hf', 'a', 'b', '--like', ''), '--like'),
        (('inspect', ''), 'path'),
        (('flops', 'a.yaml', ''), 'YAML...'),
        (('study', 'plan', ''), 'STUDY.yaml'),
        (('gauntlet', 'prepare', '--to', ''), '--to'),
    ],
)
def test_an_empty_value_is_refused_by_every_command(arguments, name):
    _, error = run(*arguments, code=1)
    assert error.startswith(f"error: {name}='': it is empty.")


def test_every_error_is_one_line(tmp_path):
    _, error = run('inspect', tmp_path / 'absent', code=1)
    assert error.startswith(f'error: {tmp_path}/absent: there is no such')
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    'command',
    [
        ('inspect', 'a'),
        ('convert', 'a', 'b'),
        ('flops', 'a.yaml'),
        ('gauntlet', 'prepare', '--to', 'a'),
        ('gauntlet', 'score', 'a'),
        ('study', 'plan', 'a.yaml'),
    ],
)
def test_a_working_folder_that_is_gone(tmp_path, monkeypatch, command):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    (tmp_path / 'here').rmdir()
    _, error = run(*command, code=1)
    assert error.startswith('error: working folder=')
    assert error.endswith(
        "it is gone. Fix: change to a folder that is there.\n"
    )


def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    out = f'{tmp_path}/\udcff.pt'
    monkeypatch.setattr(sys, 'argv', ['foundry-upcycle', 'convert', 'a', out])
    _, error = run('convert', 'a', out, code=1)
    assert error.startswith('error: argument=') and 'is not UTF-8' in error
    assert error.count('\n') == 1 and not any(tmp_path.iterdir())


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):

    def refuse(_: str) -> None:
        raise OSError(28, 'No space left on device', 'out/figure.png')

    monkeypatch.setattr('foundry_upcycle.conversion.inspect.describe', refuse)
    _, error = run('inspect', 'a', code=1)
    assert error.startswith('error: No space left on device: out/figure.png. ')
    assert 'Fix: free space' in error and error.count('\n') == 1


@pytest.mark.parametrize('n_bytes', [242, 250, 300])
def test_a_name_is_too_long_before_anything_is_written(
    dense: str,
    tmp_path: Path,
    n_bytes: int,
):
    # .manifest.json, beside the file, has 14.
    _, error = run('convert', dense, tmp_path / ('a' * n_bytes), code=1)
    assert 'bytes' in error and 'Fix: choose a shorter name.' in error
    assert [file.name for file in tmp_path.iterdir()] == ['dense.pt']


@pytest.mark.parametrize(
    'arguments,message',
    [
        (('--experts', 0), 'moe_num_experts=0'),
        (('--top-k', 9), 'moe_top_k=9'),
        (('--layers', '1,3'), 'moe_layers=[1, 3]: the model has blocks 0 to 2'),
        (('--layers', '1-2'),
         "--layers='1-2': it is not a list of whole numbers"),
        (('--recipe', 'clone'), "recipe.name='clone'"),
        (('--router-init-std', 0), 'router_init_std=0'),
    ],
)
def test_bad_settings(tmp_path, arguments, message):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    out = tmp_path / 'out.pt'
    _, error = run('convert', source, out, *arguments, code=1)
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ['dense.pt']


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')


def test_an_output_without_a_name_replaces_nothing(
    dense: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    mine = tmp_path / 'mine'
    (mine / 'sub').mkdir(parents=True)
    monkeypatch.chdir(mine)
    _, error = run('convert', dense, '', '--overwrite', code=1)
    assert "error: out='': it is empty." in error
    monkeypatch.chdir(mine / 'sub')
    run('convert', dense, tmp_path / 'ours', '--format', 'dcp')
    for out in ('.', '..', tmp_path / 'ours'):
        monkeypatch.chdir(out if out == tmp_path / 'ours' else mine / 'sub')
        _, error = run('convert', dense, out, '--overwrite', code=1)
        assert 'error: ' in error and 'Fix: choose another output' in error
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'dense.pt',
        'mine',
        'ours',
    ]
    assert (mine / 'sub').is_dir()


def test_what_is_checked_is_what_is_replaced(dense: str, tmp_path: Path):
    mine = tmp_path / 'mine'
    mine.mkdir()
    (mine / 'thesis.txt').touch()
    out = f'{tmp_path}/nothing/../mine'
    _, error = run('convert', dense, out, '--overwrite', code=1)
    assert f'error: {mine}: it exists, and holds what foundry-upcycle' in error
    assert (mine / 'thesis.txt').exists()


def test_a_file_in_place_of_a_folder_has_its_manifest(
    dense: str,
    tmp_path: Path,
):
    out = tmp_path / 'out'
    run('convert', dense, out, '--format', 'dcp')
    run('convert', dense, out, '--format', 'pt', '--overwrite', '--seed', 5)
    text, _ = run('inspect', out)
    assert 'seed=5' in text
    text, _ = run('verify', dense, out)


def test_a_file_where_the_manifest_would_be_stays(dense: str, tmp_path: Path):
    notes = tmp_path / 'out.pt.manifest.json'
    notes.write_text('{"mine": "notes"}')
    for overwrite in ((), ('--overwrite', )):
        _, error = run(
            'convert', dense, tmp_path / 'out.pt', *overwrite, code=1
        )
        assert f'error: {notes}: it exists, is none of ours, and a' in error
    assert notes.read_text() == '{"mine": "notes"}'
    notes.unlink()
    run('convert', dense, tmp_path / 'out.pt')
    run('convert', dense, tmp_path / 'out.pt', '--overwrite')


def test_unknown_formats_are_a_usage_error(tmp_path):
    _, error = run('convert', 'a', 'b', '--format', 'bin', code=2)
    assert 'safetensors' in error


def test_a_mixture_that_differs_ends_with_1(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    other = tiny.save_dense(tiny.build_dense(seed=1), tmp_path / 'other.pt')
    run('convert', source, tmp_path / 'moe.pt')
    text, _ = run('verify', other, tmp_path / 'moe.pt', code=1)
    assert 'is NOT the dense model' in text


def test_overwrite(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    out = Path(tmp_path, 'moe.pt')
    out.write_text('mine')
    _, error = run('convert', source, out, code=1)
    assert 'it exists' in error
    assert out.read_text() == 'mine'
    run('convert', source, out, '--overwrite')
    run('verify', source, out)


def test_what_training_costs():
    yamls = [YAMLS / f'{name}_430m.yaml' for name in ('cpt', 'upcycle')]
    text, _ = run('flops', *yamls, '--budget', '5e19')
    rows = [line.split() for line in text.splitlines()]
    assert rows[3][:3] == ['upcycle_430m', '1,647,539,200', '506,688,512']
    assert rows[3][-1] == '1.334'
    # 5e19 / (4,147,427,328 * 4,194,304) = 2874.3 steps.
    assert rows[8][4:6] == ['1.205e+10', '2,874']
    assert max(map(len, text.splitlines())) <= 100
    text, _ = run('flops', yamls[0])
    assert '1.334' not in text and '5e+19' not in text


def test_distillation_costs_the_teachers_forward_pass(tmp_path):
    teacher = tiny.save_dense(tiny.build_moe(), tmp_path / 'moe.pt')
    plain = OmegaConf.load(YAMLS / 'quickstart_cpt.yaml')
    settings = {'upcycle_distill': {'teacher': teacher}}
    OmegaConf.save(plain, tmp_path / 'plain.yaml')
    plain.algorithms = settings
    OmegaConf.save(plain, tmp_path / 'distilled.yaml')
    text, _ = run('flops', tmp_path / 'plain.yaml', tmp_path / 'distilled.yaml')
    rows = [line.split() for line in text.splitlines()]
    more, own = (int(rows[i][4].replace(',', '')) for i in (3, 2))
    shape = ModelShape.from_config(tiny.moe_config())
    assert more - own == shape.forward_flops_per_token(128)


def test_yamls_of_one_name_are_told_apart(tmp_path):
    other = tmp_path / 'cpt_430m.yaml'
    other.write_text((YAMLS / 'cpt_430m.yaml').read_text())
    text, _ = run('flops', YAMLS / 'cpt_430m.yaml', other)
    assert text.count(str(other)) == 2


@pytest.mark.parametrize(
    'arguments,message',
    [
        (('absent.yaml', ), "error: YAML='absent.yaml': there is no such file"),
        (
            (YAMLS / 'cpt_1b.yaml', '--budget', 0),
            'error: budget_flops=0.0: it is not a positive number of FLOPs',
        ),
    ],
)
def test_what_has_no_cost(arguments, message):
    _, error = run('flops', *arguments, code=1)
    assert error.startswith(message) and error.count('\n') == 1


def test_gauntlet_data_are_prepared(tmp_path):
    tasks = read_tasks(FOLDER / 'paper_tasks.yaml')
    source = tiny_tasks.gauntlet_data(tmp_path / 'data', tasks)
    command = ('gauntlet', 'prepare', '--from', source, '--to', tmp_path / 'to')
    _, error = run(*command, code=1)
    assert 'of 31 files that were found, none can be used' in error
    text, _ = run(*command, '--allow-modified')
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows['commonsense_reasoning/copa.jsonl'].split()[1:3] == [
        'modified',
        '30',
    ]
    assert '31 modified, 4 missing of 35 files' in text
    assert 'missing           left out' in rows[
        'world_knowledge/triviaqa_sm_sub.jsonl']
    (source / 'commonsense_reasoning/copa.jsonl').write_text('{')
    (tmp_path / 'to/commonsense_reasoning/copa.jsonl').unlink()
    text, _ = run(*command, '--allow-modified', code=1)
    assert 'copa.jsonl of the source, line 1: it is not JSON' in text


def test_results_are_scored(tmp_path):
    for name, right in (('dense', 6), ('moe', 8)):
        metric = 'metrics/copa/0-shot/InContextLearningMultipleChoiceAccuracy'
        metrics = {metric: right / 10, 'icl/n_examples/copa/0-shot': 10}
        (tmp_path / f'{name}.json').write_text(json.dumps(metrics))
    text, _ = run(
        'gauntlet',
        'score',
        *(tmp_path / f'{name}.json' for name in ('dense', 'moe')),
        '--baseline',
        'dense',
        '--gauntlet',
        'v0.3',
        '--out',
        tmp_path / 'scores',
    )
    assert '| copa/0-shot' in text and 'not told apart' in text
    assert (tmp_path / 'scores/scores.png').stat().st_size > 1000
    _, error = run('gauntlet', 'score', tmp_path / 'absent.json', code=1)
    assert error.startswith('error: ') and error.count('\n') == 1


def test_study_from_plan_to_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Without tasks, of which there are no files.
    path = small_study.write_study(tmp_path, evaluation=None)
    grid = small_study.plan_grid(small_study.read_study(path))
    text, _ = run('study', 'plan', path)
    assert text.startswith('run ') and text.endswith(
        f'wrote {tmp_path}/results/yamls\n',
    )
    for each in grid.runs:
        assert (tmp_path / 'results' / 'yamls' / f'{each.name}.yaml').exists()
    text, _ = run('study', 'run', path, '--dry-run')
    assert text.startswith('flock --shared ')
    assert ' env --unset=' in text and ' composer train.py ' in text
    text, _ = run('study', 'status', path)
    assert '0 of 4 tasks, 0% of the training FLOPs' in text
    _, error = run('study', 'run', path, code=1)
    assert error.startswith('error: working folder=')
    _, error = run('study', 'report', path, code=1)
    assert error.startswith('error: ') and 'study run' in error
    for task in small_study.list_tasks(grid):
        small_study.leave(grid, task)
    text, _ = run('study', 'status', path)
    assert '4 of 4 tasks, 100% of the training FLOPs' in text


def test_report_of_a_study(tmp_path):
    # Without tasks, of which there are no files.
    path = small_study.write_study(tmp_path, evaluation=None)
    grid = small_study.plan_grid(small_study.read_study(path))
    run('study', 'plan', path)
    for task in small_study.list_tasks(grid):
        small_study.leave(grid, task, loss=2.0 if task.run.place.arm else 3.0)
    text, _ = run('study', 'report', path, '--out', tmp_path / 'told')
    assert text == f'wrote {tmp_path}/told/report.md\n'
    written = (tmp_path / 'told' / 'report.md').read_text()
    assert 'final training loss: not told apart, 0.0000' in written
    assert '| short | upcycled | 0.4 | 1 | 30 |' in written
    assert (tmp_path / 'told' / 'report.html').exists()


def test_a_study_that_is_not_there():
    for command in OF_STUDY:
        _, error = run('study', command, 'absent.yaml', code=1)
        assert error.startswith(
            "error: study='absent.yaml': there is no such file"
        )


def test_a_failed_study_ends_with_1(tmp_path, monkeypatch):
    from foundry_upcycle.study.runner import StudyRunner
    monkeypatch.setattr(StudyRunner, 'run', lambda _: False)
    path = small_study.write_study(tmp_path)
    run('study', 'run', path, code=1)
    monkeypatch.setattr(StudyRunner, 'run', lambda _: True)
    run('study', 'run', path)
