import pytest
from rendered import ODD, Rendered

from benchmarks.inference.report import markdown as harness
from foundry_upcycle import markdown

NAMES = [
    ODD,
    '__a__',
    '_a b_',
    'a_b_c',
    '*a*',
    'a``b`',
    '`',
    'a\\',
    r'a\|b',
    '<https://x.org>',
    '[a]: b',
    '# a #',
    '- a',
    '12) a',
    '===',
    '&#33;',
]


@pytest.mark.parametrize('module', [markdown, harness])
@pytest.mark.parametrize('name', NAMES)
def test_names_are_text(module, name: str):
    for before, tags in (('', ['p']), ('# ', ['h1']), ('- ', ['ul', 'li'])):
        line = Rendered(f'{before}{module.plain(name)}')
        assert (line.text.strip(), line.tags) == (name, tags)
    fenced = Rendered(module.code(name))
    assert (fenced.text.strip(), fenced.tags) == (name, ['p', 'code'])


@pytest.mark.parametrize('module', [markdown, harness])
@pytest.mark.parametrize('name', NAMES)
def test_names_are_cells(module, name: str):
    row = module.cells([name, module.plain(name), module.code(name)])
    table = f'| 1 | 2 | 3 |\n| --- | --- | --- |\n| {" | ".join(row)} |'
    found = Rendered(table)
    assert found.text.split('\n3\n')[1].split() == 3 * name.split()
    assert found.tags.count('td') == 3
    assert set(found.tags
              ) == {*('table', 'thead', 'tbody', 'tr', 'th', 'td', 'code')}


@pytest.mark.parametrize('module', [markdown, harness])
def test_they_take_one_line(module):
    for of in (module.plain, module.code):
        assert Rendered(of('a\n\n# b')).text.strip() == 'a # b'


def test_names_in_bold():
    found = Rendered(markdown.bold(ODD))
    assert (found.text.strip(), found.tags) == (ODD, ['p', 'strong'])
