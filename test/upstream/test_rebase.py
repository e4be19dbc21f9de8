"""rebase of tools/upstream.py, on real repositories."""

from __future__ import annotations

import json

import pytest

from upstream_world import World, edited, write


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    world.run('apply')
    return world


def upstream_moves(world, changes):
    for name, text in changes.items():
        write(world.server / name, text)
    world.git(world.server, 'add', '-A')
    world.git(world.server, 'commit', '-q', '-m', 'upstream went on')
    return world.git(world.server, 'rev-parse', 'HEAD')


def pinned(world):
    return json.loads((world.root / 'upstream.json').read_text())['demo']['commit']


def test_a_series_moves_to_another_commit(world):
    commit = upstream_moves(world, {'demo/core.py': edited(20), 'demo/added.py': 'y = 2\n'})
    subjects = world.git(world.checkout, 'log', '-2', '--format=%s %an %ad')
    said = world.run('rebase', 'demo', commit)
    assert 'wrote 2 commit(s) to demo.patch' in said
    assert pinned(world) == commit
    assert (world.checkout / 'demo/core.py').read_text() == edited(8, 20, 30)
    assert (world.checkout / 'demo/added.py').exists()
    assert world.git(world.checkout, 'log', '-2', '--format=%s %an %ad') == subjects
    assert world.state()['state'] == 'patched'
    assert 'in order' in world.run('check')


def test_a_conflict_changes_nothing_and_is_resolved_with_the_commands_that_are_shown(world):
    conflicting = edited(20).replace('line_8 = 8', 'line_8 = 888')
    commit = upstream_moves(world, {'demo/core.py': conflicting})
    before = world.patch.read_bytes(), pinned(world), world.git(world.checkout, 'rev-parse', 'HEAD')
    error = world.run('rebase', 'demo', commit, status=1)
    assert 'Count from a hundred conflicts in demo/core.py; nothing was changed' in error
    assert (world.patch.read_bytes(), pinned(world), world.git(world.checkout, 'rev-parse', 'HEAD')) == before
    command = error.split('git -C ')[1].split(', then')[0].split()
    with pytest.raises(Exception, match='non-zero exit status'):
        world.git(world.checkout, *command[1:])
    write(world.checkout / 'demo/core.py', edited(8, 20))
    world.git(world.checkout, 'add', '-A')
    world.git(world.checkout, '-c', 'core.editor=true', 'rebase', '--continue')
    world.run('rebase', 'demo', commit)
    assert pinned(world) == commit
    assert (world.checkout / 'demo/core.py').read_text() == edited(8, 20, 30)
    assert 'in order' in world.run('check')


def test_what_is_not_committed_or_cannot_be_fetched_is_refused(world):
    commit = upstream_moves(world, {'demo/added.py': 'y = 2\n'})
    assert 'is not a commit' in world.run('rebase', 'demo', 'main', status=2)
    assert 'cannot be fetched' in world.run('rebase', 'demo', '0123456789' * 4, status=1)
    write(world.checkout / 'demo/core.py', edited(1))
    assert 'not committed' in world.run('rebase', 'demo', commit, status=1)
    assert pinned(world) != commit
