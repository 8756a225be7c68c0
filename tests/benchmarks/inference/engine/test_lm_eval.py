"""What is asked of lm-eval, and what becomes of its answers.

In place of its environment's Python stands a script: it notes its words, and
writes what lm-eval would.
"""

from pathlib import Path

import pytest

from benchmarks.inference.engine.lm_eval import Tasks, ask_tasks, task_files
from benchmarks.inference.errors import HarnessError

ANSWERS = """\
echo "$@" > "$4/words"
echo '{"acc": 1.0}' > "$4/piqa.jsonl"
echo '{"acc": 0.0}' >> "$4/piqa.jsonl"
"""


def ask(folder: Path, script: str, **changes: object) -> dict[str, list[float]]:
    python = folder / 'python'
    python.write_text(f'#!/bin/sh\n{script}')
    python.chmod(0o755)
    tasks = Tasks(('piqa', ), folder / 'data', 200, python)
    return ask_tasks(
        tasks,
        'http://127.0.0.1:5',
        folder / 'model',
        96,
        folder,
        float(str(changes.get('timeout_s', 60))),
    )


def test_a_task_is_asked(tmp_path: Path):
    assert ask(tmp_path, ANSWERS) == {'piqa': [1.0, 0.0]}
    script, *words = (tmp_path / 'words').read_text().split()
    assert Path(script).name == 'ask_lm_eval.py' and Path(script).is_file()
    assert words == [
        str(tmp_path / 'model'),
        str(tmp_path / 'data'),
        str(tmp_path),
        'piqa',
        '--url',
        'http://127.0.0.1:5/v1/completions',
        '--served-name',
        'model',
        '--max-length',
        '96',
        '--records',
        '200',
    ]


@pytest.mark.parametrize(
    ('script', 'problem'),
    [
        ('echo "ValueError: no task"; exit 3', 'exit status 3: .*no task'),
        ('exit 0', 'it wrote no results: FileNotFoundError'),
        ('echo "{}" > "$4/piqa.jsonl"', "it wrote no results: KeyError"),
    ],
)
def test_what_went_wrong(tmp_path: Path, script: str, problem: str):
    with pytest.raises(HarnessError, match=rf'^lm-eval=.*{problem}'):
        ask(tmp_path, script)


def test_it_does_not_end(tmp_path: Path):
    with pytest.raises(HarnessError, match='it did not end in 0.2 s'):
        ask(tmp_path, 'sleep 60', timeout_s=0.2)


def test_records_of_each_task_are_known():
    names = tuple(task_files())
    assert {'piqa', 'brackets'} <= set(names)
    tasks = Tasks(names, Path('data'), None, Path('python'))
    assert set(tasks.files) == set(names)
    assert tasks.files['brackets'] == Path('data/brackets.jsonl')
