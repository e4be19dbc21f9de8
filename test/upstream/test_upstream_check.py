"""``upstream.py check`` finds each way to break a patch file. One test per way."""

from __future__ import annotations

import re

import pytest

from upstream_world import BODY, CORE, World, edited, snapshot, write


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A recipe with a good patch file, and the file's content."""
    world = World(tmp_path_factory.mktemp('world'))
    world.run('fetch', '--origin', 'git')
    return world, world.make_patch()


@pytest.fixture
def world(made):
    """The recipe of ``made`` with the good patch file; check never changes anything else."""
    world, series = made
    world.patch.write_bytes(series)
    return world


def faults(world, *arguments, status=1):
    before = snapshot(world.root)
    said = world.run('check', *arguments, status=status)
    assert snapshot(world.root) == before
    return said


def replace(world, old, new, count=1):
    series = world.patch.read_bytes()
    assert old in series
    world.patch.write_bytes(series.replace(old, new, count))


def split(series):
    """The commits of a series."""
    return [part for part in re.split(rb'(?m)^(?=From 0{40} )', series) if part]


def test_a_good_patch_is_in_order(world):
    assert faults(world, status=0) == 'demo.patch: in order\n'


def test_truncated_hunk(world):
    series = world.patch.read_bytes()
    world.patch.write_bytes(series[: series.index(b'+line_30')])
    assert 'corrupt patch' in faults(world)


def test_truncated_in_the_last_file(world):
    world.patch.write_bytes(world.patch.read_bytes()[:-30])
    assert 'demo.patch: git apply' in faults(world)


def test_last_line_cut_off(world):
    world.patch.write_bytes(world.patch.read_bytes()[:-1])
    assert 'corrupt patch' in faults(world)


def test_wrong_context(world):
    replace(world, b' line_7 = 7\n', b' line_7 = 70\n')
    assert 'demo/core.py: patch does not apply' in faults(world)


def test_edited_line_count(world):
    replace(world, b'@@ -6,7 +6,7 @@', b'@@ -6,7 +6,8 @@')
    assert 'demo.patch: git apply' in faults(world)


def test_hunk_at_another_line_number(world):
    # git finds the place all the same, with an offset.
    replace(world, b'@@ -6,7 +6,7 @@', b'@@ -9,7 +9,7 @@')
    said = faults(world)
    assert '@@ -9,7 +9,7 @@' in said
    assert '@@ -6,7 +6,7 @@' in said


def test_hunk_that_needs_fuzz(world):
    # GNU patch would take it: one line of context at the hunk's edge is another one.
    replace(world, b' line_5 = 5\n', b' line_5 = five\n')
    assert 'patch does not apply' in faults(world)


def test_less_context_than_git_gives(world):
    replace(world, b'@@ -6,7 +6,7 @@', b'@@ -8,3 +8,3 @@')
    for gone in (b' line_5 = 5\n', b' line_6 = 6\n', b' line_10 = 10\n', b' line_11 = 11\n'):
        replace(world, gone, b'')
    assert '@@ -8,3 +8,3 @@' in faults(world)


def test_hand_edited_hunk(world):
    replace(world, b'+line_8 = 108', b'+line_8 = 109')
    said = faults(world)
    assert 'do not edit it by hand' in said or 'patch does not apply' in said


def test_hand_edited_line_of_a_new_file(world):
    replace(world, b'+x = 1', b'+x = 7')
    assert 'do not edit it by hand' in faults(world)


def test_abbreviated_hashes(world):
    series = world.patch.read_bytes()
    world.patch.write_bytes(
        re.sub(rb'(?m)^index ([0-9a-f]{7})[0-9a-f]{33}\.\.([0-9a-f]{7})[0-9a-f]{33}', rb'index \1..\2', series)
    )
    assert 'differs' in faults(world)


def test_hash_of_a_commit(world):
    replace(world, b'From ' + b'0' * 40, b'From ' + b'1234' * 10)
    assert 'commit 1: its hash 1234' in faults(world)


def test_crlf(world):
    series = world.patch.read_bytes()
    world.patch.write_bytes(series.replace(b'\n', b'\r\n'))
    assert 'has line ends of Windows (CRLF)' in faults(world)


def test_crlf_in_added_lines_only(world):
    replace(world, b'+x = 1\n', b'+x = 1\r\n')
    assert 'trailing whitespace' in faults(world)


def test_trailing_whitespace(world):
    replace(world, b'+x = 1\n', b'+x = 1  \n')
    line = world.patch.read_bytes().split(b'\n').index(b'+x = 1  ') + 1
    assert f'demo.patch: line {line}: trailing whitespace' in faults(world)


def test_trailing_whitespace_in_a_deleted_line_is_upstreams(world):
    assert 'whitespace' not in faults(world, status=0)


def test_missing_subject(world):
    replace(world, b'Subject: [PATCH] Count from a hundred', b'Subject: [PATCH]')
    assert 'commit 1: no subject' in faults(world)


def test_subject_too_long(world):
    replace(world, b'Count from a hundred', b'Count' * 15)
    assert 'commit 1: the subject has 75 characters' in faults(world)


def test_message_without_a_reason(world):
    replace(world, BODY.encode(), b'')
    assert 'commit 1: no text below the subject' in faults(world)


def test_message_of_trailers_only(world):
    replace(world, BODY.encode(), b'Signed-off-by: Ada <ada@example.org>\n')
    assert 'commit 1: no text below the subject' in faults(world)


def test_missing_author(world):
    replace(world, b'From: Ada <ada@example.org>\n', b'')
    assert 'commit 1: no author or no date' in faults(world)


def test_all_faults_are_told_at_once(world):
    replace(world, BODY.encode(), b'', count=2)
    replace(world, b'+x = 1\n', b'+x = 1  \n')
    said = faults(world)
    assert 'commit 1' in said
    assert 'commit 2' in said
    assert 'trailing whitespace' in said


@pytest.mark.parametrize('name', ['../escaped.py', '../../escaped.py', '.git/hooks/pre-commit', '/escaped.py'])
def test_path_outside_the_checkout(world, name):
    replace(world, b'demo/new.py', name.encode(), count=-1)
    assert 'invalid path' in faults(world)
    assert not (world.root / 'escaped.py').exists()


def test_commits_in_another_order(world):
    first, second = split(world.patch.read_bytes())
    world.patch.write_bytes(second + first)
    assert 'demo.patch: ' in faults(world)


def test_a_commit_twice(world):
    first, second = split(world.patch.read_bytes())
    world.patch.write_bytes(first + first + second)
    assert 'patch does not apply' in faults(world)


def test_a_missing_commit(world):
    _, second = split(world.patch.read_bytes())
    world.patch.write_bytes(second)
    assert 'differs' in faults(world)


def test_plain_diff_without_commits(world):
    series = world.patch.read_bytes()
    world.patch.write_bytes(series[series.index(b'diff --git') :])
    assert 'not a series of commits' in faults(world)


def test_text_before_the_first_commit(world):
    world.patch.write_bytes(b'\xef\xbb\xbf' + world.patch.read_bytes())
    assert 'not a series of commits' in faults(world)


def test_something_else_entirely(world):
    world.patch.write_bytes(bytes(range(256)) * 40)
    assert 'not a series of commits' in faults(world)


def test_missing_and_empty_file(world):
    world.patch.unlink()
    assert 'demo.patch is missing' in faults(world)
    world.patch.touch()
    assert 'demo.patch is empty' in faults(world)


def commit_and_export(tmp_path, change, **options):
    """A recipe whose patch file holds one commit, made by ``change(checkout)`` and exported as it is."""
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    change(world.checkout)
    world.commit({}, **options)
    world.run('export')
    return world


def test_binary_file(tmp_path):
    world = commit_and_export(tmp_path, lambda checkout: (checkout / 'demo/icon.png').write_bytes(bytes(range(256))))
    assert 'demo/icon.png: a binary file' in faults(world)


def test_program(tmp_path):
    def change(checkout):
        write(checkout / 'demo/run.sh', 'echo\n')
        (checkout / 'demo/run.sh').chmod(0o755)

    assert 'demo/run.sh: mode 100755' in faults(commit_and_export(tmp_path, change))


def test_mode_change(tmp_path):
    world = commit_and_export(tmp_path, lambda checkout: (checkout / 'demo/core.py').chmod(0o755))
    assert 'demo/core.py: mode 100755' in faults(world)


def test_mode_taken_away(tmp_path):
    world = commit_and_export(tmp_path, lambda checkout: (checkout / 'tools/train.py').chmod(0o644))
    assert 'tools/train.py: mode changes from 100755 to 100644' in faults(world)


def test_edit_of_an_upstream_program_is_no_fault(tmp_path):
    world = commit_and_export(tmp_path, lambda checkout: write(checkout / 'tools/train.py', 'print("changed")\n'))
    assert 'in order' in faults(world, status=0)


def test_symbolic_link(tmp_path):
    world = commit_and_export(tmp_path, lambda checkout: (checkout / 'demo/link.py').symlink_to('core.py'))
    assert 'demo/link.py: mode 120000' in faults(world)


def test_a_moved_file_is_in_order(tmp_path):
    def change(checkout):
        (checkout / 'demo/core.py').rename(checkout / 'demo/moved.py')

    assert 'in order' in faults(commit_and_export(tmp_path, change), status=0)


def test_text_in_other_languages_is_in_order(tmp_path):
    world = commit_and_export(
        tmp_path,
        lambda checkout: write(checkout / 'demo/中文.py', '# 注释 é\n'),
        subject='Erklärung für das Gerät: 昇腾',
        body='Grund: é 中文\n\nFrom here on it differs.\n',
    )
    assert 'in order' in faults(world, status=0)
    world.back_to_base()
    world.run('apply')
    assert world.state()['state'] == 'patched'
    assert (world.checkout / 'demo/中文.py').read_text() == '# 注释 é\n'


def test_wrong_base(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    write(world.server / 'demo/core.py', edited(7))
    world.git(world.server, 'commit', '-q', '-a', '-m', 'upstream went on')
    world.write_table(commit=world.git(world.server, 'rev-parse', 'HEAD'))
    assert 'not made from the pin' in faults(world)
    world.checkout.rename(tmp_path / 'old')
    world.run('fetch', '--origin', 'git')
    assert 'demo/core.py: patch does not apply' in faults(world)


def test_a_file_that_differs_between_git_and_the_source_distribution(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    from upstream_world import FILES

    world.sdist({**FILES, 'demo/core.py': CORE + 'last = 1\n'})
    world.write_table()
    world.checkout.rename(tmp_path / 'old')
    world.run('fetch', '--origin', 'sdist')
    assert 'touch only files that git and the source distribution have in common' in faults(world)


def test_check_needs_the_checkout(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    world.checkout.rename(tmp_path / 'away')
    assert 'upstream.py fetch demo' in faults(world)


def test_check_looks_at_the_file_and_not_at_what_is_applied(world):
    world.run('apply')
    replace(world, b'+x = 1\n', b'+x = 1  \n')
    assert 'trailing whitespace' in faults(world)
    world.back_to_base()


def test_also_tries_the_other_commits(tmp_path):
    world = World(tmp_path)
    world.run('fetch', '--origin', 'git')
    world.make_patch()
    write(world.server / 'demo/core.py', 'first = 1\n' + CORE)
    world.git(world.server, 'commit', '-q', '-a', '-m', 'fits')
    fits = world.git(world.server, 'rev-parse', 'HEAD')
    write(world.server / 'demo/core.py', edited(7))
    world.git(world.server, 'commit', '-q', '-a', '-m', 'does not fit')
    unfit = world.git(world.server, 'rev-parse', 'HEAD')
    for commit, status in ((fits, 0), (unfit, 1)):
        world.write_table(also_applies_to=[{'url': str(world.server), 'commit': commit}])
        assert 'in order' in faults(world, status=0)
        said = faults(world, '--also', status=status)
        assert ('patch does not apply' in said) == (commit == unfit)
    world.write_table(also_applies_to=[{'url': str(tmp_path / 'nowhere'), 'commit': fits}])
    assert 'not tried' in faults(world, '--also', status=0)
    assert 'too' in faults(world, '--also', '--git_url', f'demo={world.server}', status=0)
