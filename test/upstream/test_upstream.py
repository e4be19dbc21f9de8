"""fetch, apply, export and status of tools/upstream.py, on real repositories and a real package index."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading

import pytest

from running import processes_with
from upstream_world import CORE, TOOL, World, edited, snapshot, wait_until, write


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def fetched(world):
    world.run('fetch', '--origin', 'git')
    return world


@pytest.fixture
def ready(fetched):
    """Fetched, with a patch file that is not applied yet."""
    fetched.make_patch()
    return fetched


# --- fetch ---


def test_fetch_takes_git_at_the_pin(world):
    write(world.server / 'demo/core.py', 'later = True\n')
    world.git(world.server, 'commit', '-q', '-a', '-m', 'upstream went on')
    said = world.run('fetch')
    assert 'demo: fetched from git' in said
    assert world.git(world.checkout, 'rev-parse', 'HEAD') == world.pin
    assert (world.checkout / 'demo/core.py').read_text() == CORE
    assert world.state()['state'] == 'base'
    assert world.state()['origin'] == 'git'


def test_fetch_falls_back_to_the_source_distribution_laid_out_as_git(world):
    world.write_table(url=str(world.folder / 'no server here'))
    said = world.run('fetch')
    assert 'git is out of reach' in said
    assert 'made from the source distribution demo==1.0' in said
    assert world.state()['origin'] == 'sdist'
    files = {path.relative_to(world.checkout).as_posix() for path in world.checkout.rglob('*') if path.is_file()}
    files = {name for name in files if not name.startswith('.git/')}
    on_git = set(world.git(world.server, 'ls-files').split()) - {'.gitignore', 'docs/only_in_git.md'}
    assert files == on_git
    for name in on_git:
        assert (world.checkout / name).read_bytes() == (world.server / name).read_bytes()
        assert (world.checkout / name).stat().st_mode == (world.server / name).stat().st_mode
    assert world.git(world.checkout, 'status', '--porcelain') == ''


def test_the_local_baseline_is_the_same_commit_everywhere(world):
    commits = set()
    for _ in range(2):
        world.run('fetch', '--origin', 'sdist')
        commits.add(world.git(world.checkout, 'rev-parse', 'HEAD'))
        subprocess.run(['rm', '-rf', str(world.checkout)], check=True)
    assert len(commits) == 1


def test_what_builds_leave_behind_is_no_edit_of_a_source_distribution(world):
    world.run('fetch', '--origin', 'sdist')
    for name in ('demo/__pycache__/core.pyc', 'demo.egg-info/PKG-INFO', 'demo/_ext.so', 'build/x.o', 'data/image.png'):
        write(world.checkout / name, 'x')
    assert world.git(world.checkout, 'status', '--porcelain') == ''


def test_fetch_with_origin_git_does_not_fall_back(world):
    world.write_table(url=str(world.folder / 'no server here'))
    assert 'no checkout from git' in world.refused('fetch', '--origin', 'git')


def test_a_server_that_never_answers_costs_only_the_wait(world):
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen(8)
        world.write_table(url=f'http://127.0.0.1:{server.getsockname()[1]}/demo')
        said = world.run('fetch', '--wait', '0.5')
    assert 'no end after' in said
    assert world.state()['origin'] == 'sdist'


def test_git_url_replaces_the_pinned_server(world):
    world.write_table(url=str(world.folder / 'no server here'))
    world.run('fetch', '--origin', 'git', '--git_url', f'demo={world.server}')
    assert world.git(world.checkout, 'rev-parse', 'HEAD') == world.pin


def test_a_server_without_the_commit_is_no_origin(world):
    world.write_table(commit='0123456789' * 4)
    said = world.run('fetch')
    assert 'git is out of reach' in said
    assert world.state()['origin'] == 'sdist'


def test_a_hash_that_differs_stops_and_names_file_expected_and_got(world):
    right = json.loads((world.root / 'upstream.json').read_text())['demo']['sdist']['sha256']
    world.sdist({'setup.py': 'something else\n'})
    error = world.refused('fetch', '--origin', 'sdist')
    assert 'demo-1.0.tar.gz' in error
    assert right in error
    assert len(set(re.findall('[0-9a-f]{64}', error))) == 2


@pytest.mark.parametrize('origin', ['git', 'sdist'])
@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM])
def test_a_download_ends_with_the_fetch_that_was_killed(world, origin, signum):
    with socket.socket() as server:  # never answers
        server.bind(('127.0.0.1', 0))
        server.listen(8)
        silent = f'http://127.0.0.1:{server.getsockname()[1]}/demo'
        world.write_table(url=silent)
        mark = f'RUN_OF_A_TEST={world.folder}'
        env = world.environment(PIP_NO_INDEX='0', PIP_INDEX_URL=silent, RUN_OF_A_TEST=str(world.folder))
        command = [sys.executable, str(TOOL), 'fetch', '--origin', origin, '--wait', '600', '--root', str(world.root)]
        fetch = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.settimeout(60)
        connection, _ = server.accept()  # git or pip asks
        with connection:
            fetch.send_signal(signum)
            fetch.wait()
            wait_until(lambda: not processes_with(mark), 'the end of git or pip', 20)
    world.write_table()
    assert 'demo: fetched from git' in world.run('fetch', '--origin', 'git')


def test_an_archive_with_another_hash_runs_no_code(world):
    ran = world.folder / 'ran'
    backend = f'import pathlib\npathlib.Path({str(ran)!r}).touch()\n'
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    world.sdist({'setup.py': '', 'pyproject.toml': project, 'backend.py': backend})
    world.refused('fetch', '--origin', 'sdist')
    assert not ran.exists()


def test_no_source_distribution_gives_pips_own_words(world):
    (world.index / 'demo-1.0.tar.gz').unlink()
    error = world.refused('fetch', '--origin', 'sdist')
    assert 'could not bring the source distribution of demo==1.0' in error
    assert 'ERROR: No matching distribution' in error


@pytest.mark.parametrize('name', ['../escaped', '/tmp/escaped', 'demo-1.0/../../escaped', 'demo-1.0/.git/hooks/x'])
def test_an_archive_that_leaves_its_folder_is_refused(world, name):
    # pip itself must unpack it first, so the archive is handed to unpack() as pip would hand it over.
    from recipe.core import console
    from recipe.upstream import pins as upstream_pins
    from recipe.upstream import sdist

    archive = world.sdist({}, [tarfile.TarInfo(name)])
    pin = upstream_pins.load(world.root)['demo']
    with pytest.raises(console.UserError, match='refusing to unpack'):
        sdist.unpack(archive, pin, world.folder / 'unpacked')
    assert not (world.folder / 'escaped').exists()


def test_links_in_an_archive_are_refused(world):
    from recipe.core import console
    from recipe.upstream import pins as upstream_pins
    from recipe.upstream import sdist

    link = tarfile.TarInfo('demo-1.0/demo/link')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc'
    archive = world.sdist({}, [link])
    pin = upstream_pins.load(world.root)['demo']
    with pytest.raises(console.UserError, match='refusing to unpack'):
        sdist.unpack(archive, pin, world.folder / 'unpacked')


def test_a_truncated_archive_is_one_line(world):
    from recipe.core import console
    from recipe.upstream import pins as upstream_pins
    from recipe.upstream import sdist

    archive = world.sdist({'demo/core.py': CORE * 500})
    archive.write_bytes(archive.read_bytes()[:-60])
    pin = upstream_pins.load(world.root)['demo']
    with pytest.raises(console.UserError, match=r'demo-1\.0\.tar\.gz: damaged archive'):
        sdist.unpack(archive, pin, world.folder / 'unpacked')


def test_fetch_leaves_a_checkout_as_it_is(ready):
    ready.run('apply')
    write(ready.checkout / 'demo/core.py', 'edited = True\n')
    before = snapshot(ready.root)
    assert 'left as it is' in ready.run('fetch')
    assert snapshot(ready.root) == before


@pytest.mark.parametrize('content', [{'notes.txt': 'mine'}, {'.git': 'gitdir: nowhere'}])
def test_fetch_refuses_a_folder_of_somebody_else(world, content):
    for name, text in content.items():
        write(world.checkout / name, text)
    assert str(world.checkout) in world.refused('fetch')


def test_fetch_refuses_a_clone_that_is_not_at_the_pin(world):
    write(world.server / 'demo/core.py', 'other = True\n')
    world.git(world.server, 'checkout', '-q', '--orphan', 'other')
    world.git(world.server, 'commit', '-q', '-a', '-m', 'another history')
    world.git(world.root, 'clone', '-q', '--single-branch', str(world.server), 'demo')
    assert f'not made from the pin {world.pin[:12]}' in world.refused('fetch')


def test_a_killed_fetch_leaves_nothing_that_stays(world):
    write(world.root / '.upstream-abc/demo/demo/core.py', 'half')
    world.run('fetch')
    assert sorted(path.name for path in world.root.iterdir()) == ['demo', 'upstream.json']


def test_two_fetches_at_once_make_one_checkout(world):
    said = []
    threads = [threading.Thread(target=lambda: said.append(world.run('fetch'))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted('fetched from git' in text for text in said) == [False, False, True]
    assert world.state()['state'] == 'base'


# --- apply ---


def test_apply_makes_the_commits_and_remembers_them(ready):
    said = ready.run('apply')
    assert 'applied demo.patch, 2 commit(s)' in said
    assert ready.git(ready.checkout, 'log', '--format=%s', '-2').splitlines() == [
        '[NPU] Add a file',
        'Count from a hundred',
    ]
    assert (ready.checkout / 'demo/core.py').read_text() == edited(8, 30)
    assert not (ready.checkout / 'demo/other.py').exists()
    assert ready.state()['state'] == 'patched'


def test_apply_twice_changes_nothing(ready):
    ready.run('apply')
    before = snapshot(ready.root)
    assert 'patched already' in ready.run('apply')
    assert snapshot(ready.root) == before


def test_apply_gives_the_same_commits_on_every_machine(ready):
    ready.run('apply')
    first = ready.git(ready.checkout, 'rev-parse', 'HEAD')
    ready.back_to_base()
    ready.run('apply', GIT_COMMITTER_NAME='Bob', GIT_COMMITTER_DATE='2031-01-01T00:00:00')
    assert ready.git(ready.checkout, 'rev-parse', 'HEAD') == first


def test_one_patch_serves_both_origins(ready):
    on_git = ready.git(ready.checkout, 'rev-parse', 'HEAD')
    subprocess.run(['rm', '-rf', str(ready.checkout)], check=True)
    ready.run('fetch', '--origin', 'sdist')
    ready.run('apply')
    assert ready.git(ready.checkout, 'rev-parse', 'refs/recipe/base') != on_git
    assert (ready.checkout / 'demo/core.py').read_text() == edited(8, 30)
    assert 'holds these commits already' in ready.run('export')
    assert 'in order' in ready.run('check')


def test_apply_goes_from_an_older_series_of_its_own_to_the_new_one(ready):
    old = ready.make_patch()
    ready.run('apply')
    ready.back_to_base()
    ready.commit({'demo/core.py': edited(7), 'demo/new.py': 'x = 2\n'}, 'Another way')
    ready.run('export')
    new = ready.patch.read_bytes()
    ready.back_to_base()
    ready.patch.write_bytes(old)
    ready.run('apply')
    ready.patch.write_bytes(new)
    assert ready.state()['state'] == 'outdated'
    assert 'in place of an older series' in ready.run('apply')
    assert (ready.checkout / 'demo/core.py').read_text() == edited(7)
    assert (ready.checkout / 'demo/other.py').exists()
    assert ready.state()['state'] == 'patched'


def test_apply_refuses_local_edits_and_names_the_files(ready):
    write(ready.checkout / 'demo/core.py', edited(20))
    write(ready.checkout / 'configs/base.py', 'model = None\n')
    error = ready.refused('apply')
    assert 'configs/base.py, demo/core.py' in error


def test_apply_never_drops_a_developers_commit(ready):
    ready.run('apply')
    ready.commit({'demo/core.py': edited(8, 30, 12)}, 'My own idea')
    ready.patch.write_bytes(ready.patch.read_bytes().replace(b'Count from a hundred', b'Count from one hundred'))
    error = ready.refused('apply')
    assert 'My own idea' in error
    assert 'Count from a hundred' not in error
    assert ready.state()['state'] == 'foreign'


def test_apply_refuses_commits_on_the_base(ready):
    ready.commit({'demo/core.py': edited(12)}, 'My own idea')
    assert 'My own idea' in ready.refused('apply')


def test_exported_commits_are_not_dropped_either_when_the_patch_file_changes(ready):
    older = ready.patch.read_bytes()
    ready.run('apply')
    ready.commit({'demo/core.py': edited(8, 30, 12)}, 'My own idea')
    ready.run('export')
    assert ready.state()['state'] == 'patched'
    ready.patch.write_bytes(older)
    assert 'My own idea' in ready.refused('apply')


def test_a_patch_applied_by_hand_is_recognised(ready):
    ready.git(ready.checkout, 'apply', str(ready.patch))
    assert ready.state()['state'] == 'patched by hand'
    before = snapshot(ready.root)
    assert 'patched by hand already' in ready.run('apply')
    assert snapshot(ready.root) == before


def test_a_patch_applied_by_hand_and_committed_is_recognised(ready):
    ready.git(ready.checkout, 'apply', '--index', str(ready.patch))
    ready.git(ready.checkout, 'commit', '-q', '-m', 'all at once')
    assert ready.state()['state'] == 'patched by hand'


def test_git_am_by_hand_is_as_good_as_apply(ready):
    ready.git(ready.checkout, 'am', '-q', '--keep-non-patch', str(ready.patch))
    assert ready.state()['state'] == 'patched'


def test_edits_on_top_of_a_patch_applied_by_hand_are_edits(ready):
    ready.git(ready.checkout, 'apply', str(ready.patch))
    write(ready.checkout / 'demo/new.py', 'x = 3\n')
    assert ready.state()['state'] == 'edited'
    assert 'demo/core.py' in ready.refused('apply')


def test_a_patch_half_applied_by_hand_is_edits(ready):
    ready.git(ready.checkout, 'apply', '--include=demo/core.py', str(ready.patch))
    assert ready.state()['state'] == 'edited'


def test_a_clone_made_by_hand_is_patched_on_its_own_branch(ready):
    subprocess.run(['rm', '-rf', str(ready.checkout)], check=True)
    ready.git(ready.root, 'clone', '-q', str(ready.server), 'demo')
    branch = ready.git(ready.checkout, 'symbolic-ref', 'HEAD')
    assert ready.state()['state'] == 'base'
    ready.run('apply')
    assert ready.state()['state'] == 'patched'
    assert ready.git(ready.checkout, 'symbolic-ref', 'HEAD') == branch


def test_a_clone_at_another_commit_that_the_patch_is_meant_for_is_a_base_too(ready):
    write(ready.server / 'demo/core.py', 'first = 1\n' + CORE)
    ready.git(ready.server, 'commit', '-q', '-a', '-m', 'upstream went on')
    newer = ready.git(ready.server, 'rev-parse', 'HEAD')
    subprocess.run(['rm', '-rf', str(ready.checkout)], check=True)
    ready.git(ready.root, 'clone', '-q', '--depth=1', f'file://{ready.server}', 'demo')
    assert ready.state()['state'] == 'foreign'
    ready.write_table(also_applies_to=[{'url': str(ready.server), 'commit': newer}])
    ready.run('apply')
    assert (ready.checkout / 'demo/core.py').read_text() == 'first = 1\n' + edited(8, 30)
    assert ready.state()['state'] == 'patched'
    assert 'nothing to do' in ready.run('apply')


def test_a_patch_that_does_not_fit_changes_nothing(ready):
    # The first commit fits, the second one does not.
    series = ready.patch.read_bytes()
    broken = series.replace(b' line_29 = 29', b' line_29 = 92')
    assert broken != series
    ready.patch.write_bytes(broken)
    error = ready.refused('apply')
    assert 'does not apply to demo' in error
    assert 'demo/core.py' in error
    assert ready.state()['state'] == 'base'


def test_a_newer_patch_that_does_not_fit_leaves_the_older_one_applied(ready):
    ready.run('apply')
    ready.patch.write_bytes(ready.patch.read_bytes().replace(b' line_29 = 29', b' line_29 = 92'))
    ready.refused('apply')
    assert (ready.checkout / 'demo/core.py').read_text() == edited(8, 30)


def test_an_untracked_file_in_the_way_is_kept_and_named(ready):
    write(ready.checkout / 'demo/new.py', 'my own work\n')
    error = ready.refused('apply')
    assert 'demo/new.py' in error
    assert ready.state()['state'] == 'base'


def test_an_unfinished_git_am_is_named(ready):
    ready.patch.write_bytes(ready.patch.read_bytes().replace(b' line_29 = 29', b' line_29 = 92'))
    with pytest.raises(subprocess.CalledProcessError):
        ready.git(ready.checkout, 'am', '-q', str(ready.patch))
    assert 'unfinished git am' in ready.run('apply', status=1)


def test_apply_needs_the_checkout_and_the_patch(world):
    assert 'demo.patch is missing' in world.refused('apply')
    write(world.patch, '')
    assert 'demo.patch is empty' in world.refused('apply')
    write(world.patch, 'From 0')
    assert 'upstream.py fetch demo' in world.refused('apply')


def test_a_patch_whose_line_ends_were_converted_is_one_line(ready):
    patch = ready.root / 'demo.patch'
    patch.write_bytes(patch.read_bytes().replace(b'\n', b'\r\n'))
    assert 'demo.patch has line ends of Windows (CRLF); clone or copy' in ready.refused('apply')


def test_a_users_git_settings_change_nothing(ready):
    expected = ready.patch.read_bytes()
    hooks = ready.home / 'hooks'
    for name in ('applypatch-msg', 'post-applypatch', 'pre-commit', 'post-checkout', 'prepare-commit-msg'):
        write(hooks / name, '#!/bin/sh\necho hook >> "$HOME/ran"\nexit 1\n')
        (hooks / name).chmod(0o755)
    (ready.home / '.gitconfig').write_text(
        f'[core]\nautocrlf = true\nhooksPath = {hooks}\nabbrev = 4\n[diff]\nnoprefix = true\ncontext = 9\n'
        'algorithm = patience\nrenames = copies\nmnemonicPrefix = true\ninterHunkContext = 20\nexternal = false\n'
        '[format]\nsignOff = true\nattach = x\nthread = deep\nsignature = me\nnumbered = true\nheaders = "X: y\\n"\n'
        'coverLetter = true\nsubjectPrefix = FOO\n[color]\nui = always\n[commit]\ngpgSign = true\n'
        '[am]\nthreeWay = true\nkeepcr = true\n[apply]\nwhitespace = fix\n'
    )
    ready.run('apply')
    ready.run('export')
    assert ready.patch.read_bytes() == expected
    assert b'\r' not in (ready.checkout / 'demo/core.py').read_bytes()
    assert not (ready.home / 'ran').exists()


def test_settings_of_the_checkout_do_not_change_the_patch_either(ready):
    expected = ready.patch.read_bytes()
    for key, value in {
        'diff.noprefix': 'true',
        'diff.context': '9',
        'diff.algorithm': 'patience',
        'diff.interHunkContext': '20',
        'core.abbrev': '4',
        'core.autocrlf': 'true',
        'format.numbered': 'true',
        'format.signOff': 'true',
        'format.attach': 'x',
        'format.thread': 'deep',
        'format.subjectPrefix': 'FOO',
        'am.threeWay': 'true',
    }.items():
        ready.git(ready.checkout, 'config', key, value)
    ready.run('apply')
    ready.run('export')
    assert ready.patch.read_bytes() == expected


def test_git_variables_of_a_surrounding_hook_do_not_lead_astray(ready):
    for variables in (
        {'GIT_DIR': str(ready.server / '.git'), 'GIT_INDEX_FILE': '/nonexistent', 'GIT_WORK_TREE': '/nonexistent'},
        {'GIT_CONFIG_COUNT': '1', 'GIT_CONFIG_KEY_0': 'core.worktree', 'GIT_CONFIG_VALUE_0': '/nonexistent'},
        {'GIT_CONFIG_PARAMETERS': "'core.bare'='true'"},
        {'GIT_DEFAULT_HASH': 'sha256', 'GIT_LITERAL_PATHSPECS': '1', 'GIT_TEMPLATE_DIR': '/nonexistent'},
    ):
        ready.run('apply', **variables)
        assert ready.state()['state'] == 'patched'
        ready.back_to_base()


def test_a_repository_around_the_recipe_is_never_taken_for_a_checkout(ready):
    subprocess.run(['rm', '-rf', str(ready.checkout / '.git')], check=True)
    ready.git(ready.root, 'init', '-q')
    head = (ready.root / '.git/HEAD').read_text()
    assert ready.state()['state'] == 'foreign'
    ready.refused('apply')
    assert (ready.root / '.git/HEAD').read_text() == head


# --- export ---


def test_export_gives_the_bytes_that_were_applied(ready):
    series = ready.patch.read_bytes()
    ready.run('apply')
    ready.patch.unlink()
    ready.run('export')
    assert ready.patch.read_bytes() == series
    assert 'in order' in ready.run('check')


def test_export_refuses_what_is_not_committed(ready):
    ready.run('apply')
    write(ready.checkout / 'demo/forgotten.py', 'x = 1\n')
    assert 'demo/forgotten.py' in ready.refused('export')


def test_export_never_empties_a_patch_file(ready):
    assert 'no commits on the base' in ready.refused('export')


def test_export_refuses_merges(ready):
    ready.git(ready.checkout, 'checkout', '-q', '-b', 'side')
    ready.commit({'demo/core.py': edited(5)}, 'Side')
    ready.git(ready.checkout, 'checkout', '-q', 'recipe')
    ready.commit({'demo/core.py': edited(35)}, 'Main')
    ready.git(ready.checkout, 'merge', '-q', '--no-edit', 'side')
    assert 'merge commits' in ready.refused('export')


def test_export_warns_of_what_check_will_find(fetched):
    fetched.commit({'demo/core.py': edited(5)}, 'No reason given', body='')
    assert 'warning: demo.patch: commit 1: no text below the subject' in fetched.run('export')


def test_export_needs_a_checkout(world):
    assert 'nothing to export' in world.refused('export')


# --- status and the command line ---


def test_status_names_each_state(ready):
    assert re.search(r'^demo +base +git', ready.run('status'))
    ready.run('apply')
    assert re.search(r'^demo +patched +git', ready.run('status'))
    write(ready.checkout / 'demo/core.py', 'edited\n')
    assert 'local edits in demo/core.py' in ready.run('status')
    subprocess.run(['rm', '-rf', str(ready.checkout)], check=True)
    assert re.search(r'^demo +missing', ready.run('status'))


def test_status_changes_nothing(ready):
    before = snapshot(ready.root)
    ready.run('status')
    assert snapshot(ready.root) == before


@pytest.mark.parametrize(
    'arguments',
    [
        ['fetch', 'unknown'],
        ['fetch', '--git_url', 'demo'],
        ['fetch', '--git_url', 'unknown=/x'],
        ['fetch', '--origin', 'svn'],
        ['fetch', '--wait', 'long'],
        ['apply', '--force'],
        ['stat'],
        [],
    ],
)
def test_a_bad_command_line_ends_with_status_2_and_changes_nothing(world, arguments):
    before = snapshot(world.root)
    world.run(*arguments, status=2)
    assert snapshot(world.root) == before


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', 'not a pin table'),
        ('[]', 'not a pin table'),
        ('{"demo": {"url": "x"}}', "'sdist' is missing"),
        ('{"demo": {"sdist": {"name": "d", "version": "1", "sha256": "xyz"}, "url": "x", "commit": "12"}}', 'commit'),
    ],
)
def test_a_damaged_pin_table_is_one_line(world, text, said):
    (world.root / 'upstream.json').write_text(text)
    assert said in world.refused('status')


def test_no_pin_table_is_one_line(world):
    (world.root / 'upstream.json').unlink()
    assert 'upstream.json is missing' in world.refused('status')


def test_without_git_one_line_says_so(world):
    assert 'git is not installed' in world.refused('status', PATH='/nonexistent')


def test_the_recipes_own_table_holds_the_three_upstreams():
    from recipe.upstream import pins as upstream_pins
    from upstream_world import TOOL

    pins = upstream_pins.load(TOOL.parents[1])
    assert list(pins) == ['mmcv', 'mmdetection', 'mmsegmentation']
