"""The reference names all that there is."""

from importlib.metadata import distribution
from pathlib import Path

import foundry_upcycle

REFERENCE = Path(__file__).parent.parent / 'docs' / 'reference'


def test_all_that_is_registered_is_in_the_reference():
    page = (REFERENCE / 'yaml_keys.md').read_text()
    for point in distribution('foundry_upcycle').entry_points:
        # Foundry's own hook, and the command: no keys of a YAML.
        if point.group not in ('console_scripts', 'llmfoundry_module_init_fns'):
            assert f'::: {point.value.replace(":", ".")}\n' in page
            assert f'{point.name}`' in page


def test_all_names_of_the_package_are_in_the_reference():
    page = (REFERENCE / 'python.md').read_text()
    for name in foundry_upcycle.__all__:
        module = getattr(foundry_upcycle, name).__module__
        assert f'::: {module}.{name}\n' in page
