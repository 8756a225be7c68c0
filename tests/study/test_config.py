import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from study.study_files import GONE, YAMLS, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import (
    Hardware,
    ModelGrid,
    Phase,
    Study,
    read_study,
)

OF_ANOTHER_TYPE = 'it is missing, empty or of another type. Fix: set it to a '
NO_RATE = 'it is not a learning rate. Fix: write a number above 0, such as 5e-5'
NO_SETTING = 'there is no such setting. Fix: remove it; there are '
NO_NAME = 'cannot name runs. Fix: use letters, digits.*put a number in quotes'
NO_FRACTION = 'too small. Fix: write fractions of the pretraining FLOPs above 0'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path)


def test_what_a_study_says(files: StudyFiles, tmp_path: Path):
    files.set('study', 'seeds', [18, 17])
    files.set('study', 'models.m.fractions', [1, 0.5])  # Ascending, once read.
    files.set('study', 'models.m.paper', '436M')
    files.set('study', 'models.m.arms.cpt.lr', 1e-4)
    files.set('study', 'models.m.arms.upcycled.lr', [2e-4, 1e-4])
    overrides = {'scheduler': {'t_warmup': '5ba'}, 'seed': '${variables.seed}'}
    files.set('study', 'models.m.arms.upcycled.overrides', overrides)
    files.set('study', 'variables', {'seed': 3})
    files.set('study', 'evaluation', 'eval.yaml')
    files.set('study', 'tracking_uri', 'http://tracking')
    assert files.study() == Study(
        name='small',
        folder=tmp_path / 'results',
        tracking_uri='http://tracking',
        seeds=(18, 17),
        models=(
            ModelGrid(
                name='m',
                pretrain=Phase(tmp_path / 'dense.yaml', {}),
                durations={
                    'short': '200ba',
                    'long': '400ba'
                },
                budgets=(0.5, 1),
                arms={
                    'cpt':
                    Phase(tmp_path / 'cpt.yaml', {}, (1e-4, )),
                    'upcycled':
                    Phase(
                        tmp_path / 'upcycled.yaml',
                        overrides,
                        (2e-4, 1e-4),
                    ),
                },
                paper='436M',
            ),
        ),
        hardware=Hardware('abacus', 15680, 0.5),
        variables={'seed': 3},
        evaluation=tmp_path / 'eval.yaml',
    )


def test_what_can_be_left_out(files: StudyFiles, tmp_path: Path):
    study = files.study()
    assert study.tracking_uri == f'{tmp_path}/results/mlruns'
    assert study.variables == {}
    assert study.evaluation is None
    assert study.models[0].paper is None


@pytest.mark.parametrize('key', ['evaluation', 'variables', 'tracking_uri'])
def test_a_key_without_a_value_is_left_out(files: StudyFiles, key: str):
    without = files.study()
    assert files.set('study', key, None).study() == without


def test_several_models(files: StudyFiles):
    content = files.contents['study'].models
    content.n = content.m
    files.set('study', 'models.n.fractions', [0.25])
    models = files.study().models
    assert [model.name for model in models] == ['m', 'n']
    assert [model.budgets for model in models] == [(0.5, 1.0), (0.25, )]


def test_hours_of_a_device():
    # 7.2e15 FLOPs at half of 2e12 a second: 7200 seconds.
    assert Hardware('GPU', 2e12, 0.5).hours(7.2e15) == pytest.approx(2)


@pytest.mark.parametrize(
    'path',
    sorted(YAMLS.glob('study_*.yaml')),
    ids=lambda path: path.stem,
)
def test_our_studies_can_be_read(path: Path):
    study = read_study(path)
    assert path.stem.endswith(study.name)
    # The comments name it as MLflow's experiment and as a folder of runs.
    assert study.folder.parts[0] == 'runs'


def test_yamls_are_relative_to_the_study(tmp_path: Path, monkeypatch):
    StudyFiles(tmp_path / 'studies').write()
    monkeypatch.chdir(tmp_path)
    model = read_study('studies/study.yaml').models[0]
    assert model.pretrain.yaml == Path('studies/dense.yaml')
    assert model.arms['cpt'].yaml == Path('studies/cpt.yaml')
    # Not, as they would be below it, of the working folder.
    monkeypatch.chdir(tmp_path / 'studies')
    with pytest.raises(
            ConfigError,
            match="models.m.pretrain.yaml='cpt/dense.yaml': there is no such "
            'file. Fix: name a YAML relative to the folder of the study',
    ):
        Path('cpt').mkdir()
        Path('cpt/study.yaml').write_text(Path('study.yaml').read_text())
        read_study('cpt/study.yaml')


def test_numbers_are_read_as_foundry_reads_them(files: StudyFiles):
    # YAML 1.1, as PyYAML reads it, takes 5e-5 for a string.
    path = files.write()
    content = yaml.safe_load(path.read_text())
    model = content['models']['m']
    model['arms']['cpt'].update(lr='RATE', overrides={'a': 'RATE'})
    model['arms']['upcycled']['lr'] = ['RATE', 1.0]
    model['fractions'] = ['RATE']
    content['variables'] = {'a': 'RATE'}
    content['hardware']['peak_flops'] = 'RATE'
    path.write_text(yaml.safe_dump(content).replace('RATE', '5e-5'))
    study = read_study(path)
    arms = study.models[0].arms
    assert arms['cpt'].learning_rates == (5e-5, )
    assert arms['cpt'].overrides == {'a': 5e-5}
    assert arms['upcycled'].learning_rates == (5e-5, 1.0)
    assert study.models[0].budgets == (5e-5, )
    assert study.variables == {'a': 5e-5}
    assert study.hardware.peak_flops == 5e-5


@pytest.mark.parametrize(
    'key,kind',
    [
        ('name', 'str'),
        ('folder', 'str'),
        ('seeds', 'list'),
        ('models', 'dict'),
        ('models.m.pretrain', 'dict'),
        ('models.m.durations', 'dict'),
        ('models.m.fractions', 'list'),
        ('models.m.arms', 'dict'),
        ('models.m.arms.cpt.yaml', 'str'),
        ('hardware', 'dict'),
        ('hardware.name', 'str'),
        ('hardware.peak_flops', 'float or int'),
        ('hardware.mfu', 'float or int'),
    ],
)
def test_a_missing_key(files: StudyFiles, key: str, kind: str):
    with pytest.raises(
            ConfigError,
            match=f'^{key}=None: {OF_ANOTHER_TYPE}{kind}',
    ):
        files.set('study', key, GONE).study()


@pytest.mark.parametrize(
    'key,value,problem',
    [
        ('name', 5, f'name=5: {OF_ANOTHER_TYPE}str'),
        ('name', True, f'name=True: {OF_ANOTHER_TYPE}str'),
        ('folder', 'out_${name}', 'folder=.out_..name..: a study YAML has no '
         'interpolations but in overrides'),
        ('folder', '', f"folder='': {OF_ANOTHER_TYPE}str"),
        ('folder', 's3://bucket/x', "folder='s3://bucket/x': a study's folder is "
         'local. Fix: name a folder on a disk'),
        ('folder', 'file:///tmp/x', "folder='file:///tmp/x': a study's folder is"),
        ('tracking_uri', '', f"tracking_uri='': {OF_ANOTHER_TYPE}str"),
        ('variables', ['a'], f"variables=.'a'.: {OF_ANOTHER_TYPE}dict"),
        ('evaluation', 5, f'evaluation=5: {OF_ANOTHER_TYPE}str'),
        ('evaluation', 'absent.yaml', "evaluation='.*/absent.yaml': there is n"),
        ('evaluation', '.', "evaluation='.*': there is no such file"),
        ('seeds', 17, f'seeds=17: {OF_ANOTHER_TYPE}list'),
        ('seeds', [], f'seeds=..: {OF_ANOTHER_TYPE}list'),
        ('seeds', [17, 1.5], 'seeds=1.5: it is not a number.*write whole numbers'),
        ('seeds', [-1], 'seeds=-1: it is not a number, or too small'),
        ('seeds', [True], 'seeds=True: it is not a number'),
        ('seeds', ['17'], "seeds='17': it is not a number"),
        ('seeds', [17, 17], 'seeds=17: it stands there twice.*Fix: write it on'),
        ('models', ['m'], f"models=.'m'.: {OF_ANOTHER_TYPE}dict"),
        ('models', {}, f'models={{}}: {OF_ANOTHER_TYPE}dict'),
        ('models.m', None, 'models.m=None: it is not a mapping.*write its keys in'),
        ('models.m', 'dense.yaml', "models.m='dense.yaml': it is not a mapping"),
        ('models.m.paper', 436, f'models.m.paper=436: {OF_ANOTHER_TYPE}str'),
        ('models.m.pretrain', 'x', f"pretrain='x': {OF_ANOTHER_TYPE}dict"),
        ('models.m.durations', '9ba', f"durations='9ba': {OF_ANOTHER_TYPE}dict"),
        ('models.m.durations', {}, f'durations={{}}: {OF_ANOTHER_TYPE}dict'),
        ('models.m.arms', {}, f'models.m.arms={{}}: {OF_ANOTHER_TYPE}dict'),
        ('models.m.arms.cpt', None, 'models.m.arms.cpt=None: it is not a mapping'),
        ('models.m.arms.cpt.overrides', [1], f'rrides=.1.: {OF_ANOTHER_TYPE}dict'),
        ('models.m.fractions', 0.1, f'fractions=0.1: {OF_ANOTHER_TYPE}list'),
        ('models.m.fractions', [0], f'models.m.fractions=0: .*{NO_FRACTION}'),
        ('models.m.fractions', [-0.1], f'fractions=-0.1: .*{NO_FRACTION}'),
        ('models.m.fractions', [float('inf')], f'fractions=inf: .*{NO_FRACTION}'),
        ('models.m.fractions', [True], f'fractions=True: .*{NO_FRACTION}'),
        ('models.m.fractions', ['half'], f"fractions='half': .*{NO_FRACTION}"),
        ('models.m.fractions', [0.1, 0.1], 'fractions=0.1: it stands there twic'),
        ('models.m.fractions', [1, 1.0], 'fractions=1: it stands there twice'),
        ('models.m.pretrain.lr', 'x', f"retrain.lr='x': {OF_ANOTHER_TYPE}float"),
        ('models.m.arms.cpt.lr', '5e-5', f"cpt.lr='5e-5': {OF_ANOTHER_TYPE}float"),
        ('models.m.arms.cpt.lr', True, f'cpt.lr=True: {OF_ANOTHER_TYPE}float or'),
        ('models.m.arms.cpt.lr', [], f'cpt.lr=..: {OF_ANOTHER_TYPE}float or list'),
        ('models.m.arms.cpt.lr', 0.0, f'cpt.lr=0.0: {NO_RATE}'),
        ('models.m.arms.cpt.lr', -1e-4, f'cpt.lr=-0.0001: {NO_RATE}'),
        ('models.m.arms.cpt.lr', float('nan'), f'cpt.lr=nan: {NO_RATE}'),
        ('models.m.arms.cpt.lr', [1e-4, '5e-5'], f"cpt.lr='5e-5': {NO_RATE}"),
        ('models.m.arms.cpt.lr', [True], f'cpt.lr=True: {NO_RATE}'),
        ('models.m.arms.cpt.lr', [1e-4, 1e-4], 'cpt.lr=0.0001: it stands there t'),
        ('hardware', 'H100', f"hardware='H100': {OF_ANOTHER_TYPE}dict"),
        ('hardware.name', 100, f'hardware.name=100: {OF_ANOTHER_TYPE}str'),
        ('hardware.peak_flops', 'fast', f"flops='fast': {OF_ANOTHER_TYPE}float"),
        ('hardware.peak_flops', 0, 'peak_flops=0: no device.*one device, above 0'),
        ('hardware.peak_flops', -1.5, 'hardware.peak_flops=-1.5: no device'),
        ('hardware.mfu', 0.0, 'hardware.mfu=0.0: no device.*mfu is the share'),
        ('hardware.mfu', 40, 'hardware.mfu=40: no device .*mfu is .*up to 1'),
        ('hardware.mfu', True, f'hardware.mfu=True: {OF_ANOTHER_TYPE}float'),
        ('sedes', [17], f'sedes=.17.: {NO_SETTING}evaluation, folder, hardware, '
         'models, name, seeds, tracking_uri, variables'),
        ('models.m.arm', {}, f'models.m.arm={{}}: {NO_SETTING}arms, budgets, '
         'checkpoints, durations, fractions, paper, pretrain'),
        ('models.m.pretrain.yml', 'a', f"train.yml='a': {NO_SETTING}lr, overri"),
        ('models.m.arms.cpt.rate', 1, f'arms.cpt.rate=1: {NO_SETTING}eval_top_'),
        ('hardware.watts', 700, f'hardware.watts=700: {NO_SETTING}mfu, name, pe'),
    ],
)  # yapf: disable
def test_what_can_not_be_used(files: StudyFiles, key, value, problem):
    with pytest.raises(ConfigError, match=problem):
        files.set('study', key, value).study()


@pytest.mark.parametrize('name', ['a b', '-a', '.a', 'a/b', 'a,b', ''])
@pytest.mark.parametrize(
    'key', ['models', 'models.m.durations', 'models.m.arms']
)
def test_what_can_not_name_runs(files: StudyFiles, key: str, name: str):
    section = files.contents['study']
    for part in key.split('.'):
        section = section[part]
    section[name] = next(iter(section.values()))
    with pytest.raises(ConfigError, match=f"{key}.*='{name}': it {NO_NAME}"):
        files.study()


@pytest.mark.parametrize('name', ['430', '1.4', 'yes'])
def test_a_number_in_quotes_names_runs(files: StudyFiles, name: str):
    path = files.write()
    text = path.read_text()
    assert text.count('  m:') == 1
    path.write_text(text.replace('  m:', f"  '{name}':"))
    assert read_study(path).models[0].name == name
    path.write_text(text.replace('  m:', f'  {name}:'))
    value = yaml.safe_load(name)
    with pytest.raises(ConfigError, match=f'^models.*={value}: it {NO_NAME}'):
        read_study(path)


def test_an_absent_yaml(files: StudyFiles, tmp_path: Path):
    files.set('study', 'models.m.arms.cpt.yaml', 'absent.yaml')
    with pytest.raises(
            ConfigError,
            match=f"models.m.arms.cpt.yaml='{tmp_path}/absent.yaml': there is "
            'no such file. Fix: name a YAML relative to the folder',
    ):
        files.study()


@pytest.mark.parametrize(
    'content,problem',
    [
        (b'models: [', "it can't be read .*while parsing"),
        (b'\xff\xfe\x80\x00', "it can't be read"),
        (b'name: a\nname: b\n', "it can't be read .*duplicate key name"),
        (b'- name\n', 'it holds no mapping of keys to values'),
        (b'5\n', 'it holds neither a mapping of keys to values nor a list'),
    ],
)
def test_what_is_no_study(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / 'study.yaml'
    path.write_bytes(content)
    with pytest.raises(
            ConfigError,
            match=f"(?s)study='{path}': {problem}.*Fix: name a study YAML, such",
    ):
        read_study(path)


def test_no_file_at_all(tmp_path: Path):
    absent = tmp_path / 'absent.yaml'
    problems = {tmp_path: "it can't be read", absent: 'there is no such file'}
    for path, problem in problems.items():
        with pytest.raises(ConfigError, match=f"study='{path}': {problem}"):
            read_study(path)


def test_reading_imports_no_torch():
    program = (
        'import sys, foundry_upcycle.cli.app, foundry_upcycle.planning.duration; '
        'from foundry_upcycle.study.config import read_study; '
        f'read_study({str(YAMLS / "study_430m.yaml")!r}); '
        'assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize('words', [[], ['plan']])
def test_help_imports_no_torch(words: list[str]):
    program = (
        'import sys\n'
        'from foundry_upcycle.cli.app import app\n'
        'try:\n'
        f'    app(["study", *{words!r}, "--help"])\n'
        'finally:\n'
        '    assert "torch" not in sys.modules\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'STUDY.yaml' in done.stdout if words else 'status' in done.stdout


@pytest.mark.parametrize(
    'key,value,problem',
    [
        ('name', 'x' * 300, 'MLflow has no experiments with names as long'),
        ('folder', f"a/{'x' * 300}/b", 'no file system has folders with names'),
        ('evaluation', 'x' * 300, 'there is no such file'),
        (
            'seeds', [2**32
                     ], 'it is not a number, too small, or above 4,294,967,295'
        ),
        (
            'models.m.fractions', [1e300
                                  ], 'it is not a number, too small, or above'
        ),
    ],
)
def test_what_is_out_of_bounds(files: StudyFiles, key, value, problem):
    with pytest.raises(ConfigError, match=rf'^{key}=.*: {problem}'):
        files.set('study', key, value).study()


def test_a_few_bytes_that_stand_for_gigabytes(tmp_path: Path):
    path = tmp_path / 'study.yaml'
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [
        f"a{level}: &a{level} [{', '.join(10 * [f'*a{level - 1}'])}]"
        for level in range(1, 10)
    ]
    path.write_text('\n'.join(lines))
    with pytest.raises(ConfigError,
                       match=f"study='{path}': its aliases stand for"):
        read_study(path)
