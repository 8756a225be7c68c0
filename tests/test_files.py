import os
from pathlib import Path

import pytest

from foundry_upcycle.files import write_whole


def test_makes_folders_and_replaces(tmp_path: Path):
    path = tmp_path / 'a' / 'b.json'
    write_whole(path, 'first\n')
    write_whole(path, 'ü\n')
    assert path.read_text() == 'ü\n'
    assert os.listdir(path.parent) == ['b.json']


def test_what_was_there_stays_where_writing_fails(tmp_path: Path):
    path = tmp_path / 'a.json'
    write_whole(path, 'first\n')
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, 'half \udc80')
    assert path.read_text() == 'first\n'
