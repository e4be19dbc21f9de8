"""The unpatched trees beside the checkouts: laid out from their history, and proven to be unpatched."""

import sys

import pytest

from recipe.bench import pristine_imports
from upstream_world import CORE, World, edited, write


@pytest.fixture
def patched(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    world.run('apply')
    return world


def tree(world):
    return world.root / '.pristine/demo'


def test_the_tree_is_the_base_and_the_checkout_stays_patched(patched):
    assert patched.run('pristine').split() == [str(tree(patched))]
    assert (tree(patched) / 'demo/core.py').read_text() == CORE
    assert (tree(patched) / 'demo/other.py').is_file() and not (tree(patched) / 'demo/new.py').exists()
    assert not (tree(patched) / '.git').exists()
    assert (patched.checkout / 'demo/core.py').read_text() == edited(8, 30)
    assert patched.state()['state'] == 'patched'


def test_a_second_call_leaves_the_tree_as_it_is(patched):
    patched.run('pristine')
    write(tree(patched) / 'demo/__pycache__/core.pyc', 'made by Python')
    number = (tree(patched) / 'demo/core.py').stat().st_ino
    patched.run('pristine')
    assert (tree(patched) / 'demo/core.py').stat().st_ino == number
    assert (tree(patched) / 'demo/__pycache__/core.pyc').is_file()


@pytest.mark.parametrize('text', [edited(3), None])
def test_an_edited_tree_is_laid_out_again(patched, text):
    patched.run('pristine')
    if text is None:
        (tree(patched) / 'demo/core.py').unlink()
    else:
        write(tree(patched) / 'demo/core.py', text)
    patched.run('pristine')
    assert (tree(patched) / 'demo/core.py').read_text() == CORE


def test_a_missing_checkout_is_named(tmp_path):
    world = World(tmp_path)
    assert 'missing' in world.refused('pristine')


def test_packages_that_were_imported_before_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', sys)
    with pytest.raises(RuntimeError, match=r'mmdet.*imported before'):
        pristine_imports.activate()
