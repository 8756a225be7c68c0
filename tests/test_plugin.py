"""The installed plugin, seen from an LLM Foundry that doesn't know it."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from llmfoundry import registry
from llmfoundry.layers_registry import ffns, module_init_fns

PACKAGE = Path(__file__).parent.parent / 'foundry_upcycle'

# A module may import from the layers before its own (and from its own).
LAYERS = (
    'errors',
    'config',
    'files',
    'markdown',
    'columns',
    'figures',
    'documents',
    'planning',
    'models',
    'recipes',
    'checkpoints',
    'conversion',
    'gauntlet',
    'callbacks',
    'algorithms',
    'data',
    'study',
    'cli',
)


def test_names_are_registered():
    assert registry.models.get('upcycled_mpt')
    assert registry.algorithms.get('upcycle_distill')
    assert registry.callbacks.get('sparse_upcycling')
    assert registry.callbacks.get('router_monitor')
    assert registry.callbacks.get('icl_results')
    assert registry.callbacks.get('trim_icl_padding')
    assert registry.callbacks.get('matmul_precision')
    assert ffns.get('upcycled_dmoe')
    assert module_init_fns.get('upcycled_dmoe')


def test_no_config_transform_is_registered():
    # Foundry applies every registered transform to every run.
    ours = [
        point for point in entry_points(group='llmfoundry_config_transforms')
        if point.value.startswith('foundry_upcycle')
    ]
    assert not ours


def layer_of(module: str) -> str:
    return module.split('.')[1]


def imports(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith('foundry_upcycle.')]


@pytest.mark.parametrize(
    'file',
    sorted(PACKAGE.rglob('*.py')),
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_imports_follow_the_order_of_layers(file: Path):
    own = file.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if own == '__init__':
        return  # test_a_name_is_loaded_when_it_is_asked_for
    for name in imports(file):
        assert LAYERS.index(layer_of(name)) <= LAYERS.index(own), name


def test_nothing_is_loaded_that_foundry_has_not():
    program = '''
import sys
import llmfoundry
before = {name.partition('.')[0] for name in sys.modules}
from importlib.metadata import distribution
for point in distribution('foundry_upcycle').entry_points:
    point.load()
after = {name.partition('.')[0] for name in sys.modules}
print(*sorted(after - before))
'''
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program],
        capture_output=True,
        text=True,
        check=True,
    )
    added = {*result.stdout.splitlines()[-1].split()}
    # Of the command; shellingham and annotated_doc are typer's.
    ours = {'annotated_doc', 'foundry_upcycle', 'shellingham', 'typer'}
    assert added <= ours


def test_a_name_is_loaded_when_it_is_asked_for():
    program = '''
import sys
import foundry_upcycle
before = [name for name in sys.modules if name.startswith('foundry_upcycle.')]
assert not before and 'torch' not in sys.modules, before
assert [*foundry_upcycle._MODULES] == foundry_upcycle.__all__
for name in foundry_upcycle.__all__:
    assert getattr(foundry_upcycle, name).__name__ == name
assert {*foundry_upcycle.__all__} <= {*dir(foundry_upcycle)}
assert not hasattr(foundry_upcycle, 'other')
'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', program], check=True)
