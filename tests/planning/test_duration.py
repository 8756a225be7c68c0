import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import Duration, parse_duration


@pytest.mark.parametrize(
    'text,value,unit',
    [
        ('500ba', 500, 'ba'),
        ('0ba', 0, 'ba'),
        ('43.6e9tok', 43_600_000_000, 'tok'),
        ('5.0e+8tok', 500_000_000, 'tok'),
        ('5.e3tok', 5000, 'tok'),
        ('0.05dur', 0.05, 'dur'),
        ('2ep', 2, 'ep'),
        ('12sp', 12, 'sp'),
    ],
)
def test_a_number_and_a_unit(text, value, unit):
    assert parse_duration('max_duration', text) == Duration(value, unit)


@pytest.mark.parametrize(
    'text',
    [
        '', 'ba', '500', 500, None, True, '-5ba', '1e-3ba', '5 ba', '5bats',
        'inftok', '.5dur', '5iter'
    ],
)  # yapf: disable
def test_what_is_no_duration(text):
    with pytest.raises(
            ConfigError,
            match=rf'scheduler.t_warmup={text!r}: it is not a duration. Fix: '
            'write a number and a unit, such as 43.6e9tok or 500ba',
    ):
        parse_duration('scheduler.t_warmup', text)


def test_steps():
    # 100 tokens in steps of 12.
    assert Duration(100, 'tok').steps(12) == pytest.approx(8 + 1 / 3)
    assert Duration(100, 'ba').steps(12) == 100


@pytest.mark.parametrize('unit', ['ep', 'dur', 'sp'])
def test_other_units_have_no_steps(unit):
    with pytest.raises(
            ValueError,
            match=rf"unit='{unit}' is none of \['ba', 'tok'\]",
    ):
        Duration(1, unit).steps(12)
