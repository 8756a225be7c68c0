import dataclasses
import subprocess
import sys

from foundry_upcycle.planning.budget import TrainingBudget
from foundry_upcycle.planning.table import budget_lines

# A step is 8000 FLOPs.
DENSE = TrainingBudget(
    n_total_params=2**30,
    n_active_params=900,
    forward_flops_per_token=2000,
    training_flops_per_token=4000,
    tokens_per_step=2,
    n_steps=1500,
)
MOE = dataclasses.replace(
    DENSE,
    n_total_params=2**31,
    training_flops_per_token=5000,
    n_steps=None,
)


def test_one_yaml():
    assert budget_lines({'dense': DENSE})[:7] == [
        '               total      active      forward     training',
        '          parameters  parameters  FLOPs/token  FLOPs/token',
        'dense  1,073,741,824         900        2,000        4,000',
        '',
        '             run    run        run  weights  grads  momentum',
        '          tokens  steps      FLOPs      GiB    GiB       GiB',
        'dense  3.000e+03  1,500  1.200e+07     4.00   4.00      4.00',
    ]


def test_several_are_compared_with_the_first():
    lines = budget_lines({'dense': DENSE, 'moe': MOE})
    rows = [line.split() for line in lines]
    assert rows[2][-1] == '1.000' and rows[3][-1] == '1.250'
    # Epochs have no number of tokens, and that is said.
    assert rows[8] == ['moe', '-', '-', '-', '8.00', '8.00', '8.00']
    assert any(line.startswith('-: max_duration is in ep') for line in lines)


def test_a_budget_buys_whole_steps():
    lines = budget_lines({'dense': DENSE, 'moe': MOE}, 8.4e4)
    assert '8.4e+04' in lines[5]
    # 10.5 steps of 8000 to the even 10; 8.4 of 10000.
    assert lines[7].split()[4:6] == ['2.000e+01', '10']
    assert lines[8].split()[4:6] == ['1.600e+01', '8']


def test_lines_are_of_one_width():
    lines = budget_lines({'dense': DENSE, 'a_longer_name': MOE}, 1e6)
    assert len({len(line) for line in lines[:4]}) == 1
    assert len({len(line) for line in lines[5:9]}) == 1


def test_planning_imports_no_torch():
    program = (
        'import sys, foundry_upcycle.planning.table, foundry_upcycle.cli.app; '
        'assert "torch" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
