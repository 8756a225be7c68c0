import warnings

import pytest

from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    TaskDataError,
    UpcyclingWarning,
)


def nested() -> list:
    """Written out, 10^12 values."""
    value: list = [0]
    for _ in range(12):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    'value',
    [nested(), 'x' * 10**8, 10**10_000,
     list(range(10**6)), {
         1: 'y' * 10**7
     }],
    ids=['nested', 'text', 'number', 'list', 'mapping'],
)
def test_a_value_of_any_size_is_shown_in_little(value):
    message = str(ConfigError('a.key', value, 'it is wrong.', 'mend it.'))
    assert message.startswith('a.key=')
    assert message.endswith(': it is wrong. Fix: mend it.')
    assert len(message) < 1000


def test_a_value_of_usual_size_is_shown_whole():
    layers = {'layers': [*range(32)], 'name': 'copy'}
    assert f'={layers!r}: ' in str(ConfigError('key', layers, 'No.', 'Yes.'))


@pytest.mark.parametrize(
    'error',
    [
        lambda text: ConfigError(text, 1, text, text),
        lambda text: CheckpointError(text, text, text),
        lambda text: TaskDataError(text, 3, text, text),
        UpcyclingWarning,
    ],
    ids=['config', 'checkpoint', 'task', 'warning'],
)
def test_each_part_of_a_message_is_bounded_and_keeps_its_ends(error):
    message = str(error('begin' + 'x' * 10**7 + 'end'))
    assert message.startswith('begin')
    assert message.endswith('end')
    assert len(message) < 7000


def test_names_that_are_half_a_character_can_be_printed():
    message = str(CheckpointError('a.pt', 'no \ud800.', 'copy it.'))
    assert message.encode().decode() == r'a.pt: no \ud800. Fix: copy it.'


def test_a_warning_is_bounded_where_it_is_shown():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        warnings.warn('x' * 10**6, UpcyclingWarning, stacklevel=1)
    assert len(str(caught[0].message)) < 3000
