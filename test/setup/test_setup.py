"""tools/setup.sh from nothing to an environment that imports the patched packages, and every way it may stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from running import processes_with
from setup_world import UPSTREAMS, SetupWorld, steps
from upstream_world import wait_until, write

ALL = ['venv', 'requirements', 'sources', 'patches', 'packages', 'imports']


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    return SetupWorld(tmp_path_factory.mktemp('template'))


@pytest.fixture
def bare(tmp_path, template):
    """A recipe where nothing was set up."""
    return SetupWorld(tmp_path, template)


@pytest.fixture(scope='module')
def made_once(tmp_path_factory, template):
    world = SetupWorld(tmp_path_factory.mktemp('setup'), template)
    world.first = world.setup('--stack', 'cpu').stdout
    return world


@pytest.fixture
def made(made_once):
    """A recipe that is set up, shared: a test that breaks something lets setup.sh mend it."""
    yield made_once
    made_once.setup('--stack', 'cpu')
    assert json.loads(made_once.upstream('status', '--json'))['mmcv']['state'] == 'patched'


def test_from_nothing_to_patched_packages(made):
    assert steps(made.first) == dict.fromkeys(ALL, True)
    assert 'made from the source distribution mmseg==1.0' in made.first
    assert 'applied mmcv.patch' in made.first
    assert made.in_python('import mmseg.models, mmcv, torch; print(mmseg.models.layers)') == '2'
    record = made.record()
    assert record['stack'] == 'cpu'
    assert record['python'] == str(made.python)
    ours = dict.fromkeys(('mmcv', 'mmdet', 'mmseg', 'recipe'), '1.0')
    assert record['versions'] == {'torch': '2.0', 'mmengine': '2.0', **ours}


def test_what_a_training_imports_is_compiled_whatever_the_environment_says(made, monkeypatch):
    monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
    for folder in (made.root / 'mmsegmentation').rglob('__pycache__'):
        shutil.rmtree(folder)
    made.commit('mmsegmentation', {'mmseg/more.py': 'x = 1\n'})
    made.upstream('export', 'mmsegmentation')
    made.setup()
    assert list((made.root / 'mmsegmentation/mmseg').rglob('__pycache__/*.pyc'))


def test_a_second_run_does_nothing_and_needs_no_index(made):
    before = made.files()
    said = made.setup(PIP_FIND_LINKS='/nonexistent').stdout
    assert steps(said) == dict.fromkeys(ALL, False)
    assert made.files() == before


def test_quiet_if_ready_says_nothing_and_print_python_only_the_path(made):
    done = made.setup('--quiet_if_ready')
    assert (done.stdout, done.stderr) == ('', '')
    assert made.setup('--quiet_if_ready', '--print_python').stdout == f'{made.python}\n'
    assert made.setup('--print_python').stdout == f'{made.python}\n'


def test_a_new_patch_is_applied_without_installing_anything_again(made):
    old = (made.root / 'mmcv.patch').read_bytes()
    made.commit('mmcv', {'mmcv/more.py': 'x = 1\n'})
    made.upstream('export', 'mmcv')
    new = (made.root / 'mmcv.patch').read_bytes()
    made.git('mmcv', 'reset', '-q', '--hard', 'HEAD~1')
    for series, there in ((new, True), (old, False)):
        (made.root / 'mmcv.patch').write_bytes(series)
        assert made.setup('--quiet_if_ready').stdout != ''
        assert (made.root / 'mmcv/mmcv/more.py').exists() == there
    (made.root / 'mmcv.patch').write_bytes(new)
    assert steps(made.setup().stdout) == {**dict.fromkeys(ALL, False), 'patches': True, 'imports': True}
    (made.root / 'mmcv.patch').write_bytes(old)


def test_local_edits_stop_a_new_patch_and_stay(made):
    old = (made.root / 'mmcv.patch').read_bytes()
    (made.root / 'mmcv.patch').write_bytes(old.replace(b'Change mmcv', b'Alter mmcv'))
    write(made.root / 'mmcv/mmcv/models.py', 'layers = 3\n')
    said = made.setup(status=1)
    assert 'step patches failed' in said.stderr
    assert 'mmcv/models.py' in said.stderr
    assert (made.root / 'mmcv/mmcv/models.py').read_text() == 'layers = 3\n'
    made.git('mmcv', 'checkout', '-q', '.')
    (made.root / 'mmcv.patch').write_bytes(old)


def test_a_deleted_checkout_comes_back_patched(made):
    shutil.rmtree(str(made.root / 'mmsegmentation'))
    said = made.setup('--quiet_if_ready').stdout
    assert steps(said)['sources']
    assert made.in_python('import mmseg.models; print(mmseg.models.layers)') == '2'


@pytest.mark.release
def test_a_broken_environment_of_its_own_is_made_anew(made):
    made.python.unlink()
    said = made.setup('--quiet_if_ready').stdout
    assert 'made anew' in said
    assert steps(said)['requirements']
    assert made.in_python('import mmseg, torch; print(torch.__version__)') == '2.0'


@pytest.mark.release
def test_half_an_environment_and_a_damaged_record_are_made_anew(made):
    write(made.root / '.setup/recipe.json', '{"steps": ')
    shutil.rmtree(str(made.root / '.venv/lib'))
    assert steps(made.setup().stdout)['venv']
    assert made.in_python('import mmseg; print(mmseg.__version__)') == '1.0'
    assert set(made.record()['steps']) == set(ALL)


def test_a_failing_step_names_itself_its_log_and_the_command_to_go_on_with(made):
    write(made.root / 'requirements.txt', 'no_such_package==1.0\n')
    done = made.setup('--with_tests', status=1)
    error = done.stderr.splitlines()[-1]
    assert error.startswith('error: step requirements failed')
    assert error.endswith('go on with: bash tools/setup.sh --with_tests')
    log = error.split('log: ')[1].split(';')[0]
    with open(log) as file:
        assert 'no_such_package' in file.read()
    assert '  | ERROR: No matching distribution found for no_such_package==1.0' in done.stderr
    assert not made.setup('--quiet_if_ready', status=1).stdout.startswith('ready')
    write(made.root / 'requirements.txt', '')
    after = steps(made.setup('--with_tests').stdout)
    assert not after['venv']
    assert after['requirements']
    assert made.in_python('import extra; print(extra.__version__)') == '2.0'


@pytest.mark.release
def test_with_ops_is_kept_for_later_calls(made):
    built = 'import sysconfig, pathlib; print(pathlib.Path(sysconfig.get_path("purelib"), "built.json").read_text())'
    write(made.root / 'requirements/ops.txt', 'extra==2.0\n')
    assert made.in_python(built) == '{"with_ops": "0"}'
    said = made.setup('--with_ops', MAX_JOBS='3').stdout
    assert steps(said)['packages']
    assert 'MAX_JOBS=3: as this shell has it' in said
    assert made.in_python(built) == '{"with_ops": "1"}'
    assert made.setup('--quiet_if_ready').stdout == ''
    record = made.record()
    record['with_ops'] = False
    write(made.root / '.setup/recipe.json', json.dumps(record))
    made.setup()
    assert made.in_python(built) == '{"with_ops": "0"}'


def test_packages_that_cannot_be_imported_stop_the_set_up(made):
    write(made.root / 'mmsegmentation/mmseg/models.py', 'import something_that_is_missing\n')
    record = made.record()
    del record['steps']['imports']
    write(made.root / '.setup/recipe.json', json.dumps(record))
    said = made.setup(status=1).stderr
    assert "No module named 'something_that_is_missing'" in said
    assert 'step imports failed' in said.splitlines()[-1]
    made.git('mmsegmentation', 'checkout', '-q', '.')


def lose(made, *names):
    """Delete packages from the environment, and what says that they are installed."""
    for name in names:
        for path in made.site().glob(f'{name}*'):
            shutil.rmtree(str(path)) if path.is_dir() else path.unlink()


def lose_requirements(made):
    """A package that is gone, one whose files are gone, and one with an empty file."""
    lose(made, 'torch')
    shutil.rmtree(str(made.site() / 'extra'))
    (made.site() / 'mmengine/__init__.py').write_text('')


def lose_packages(made):
    """An editable package that is gone, and one from another folder."""
    lose(made, 'mmdet')
    (made.site() / 'mmseg.pth').write_text('/nonexistent\n')


def lose_patches(made):
    made.git('mmcv', 'reset', '-q', '--hard', 'refs/recipe/base')


@pytest.mark.parametrize('what', [lose_requirements, lose_packages, lose_patches])
def test_what_was_lost_is_made_again_and_nothing_else(made, what):
    made.setup('--with_tests')
    what(made)
    step = what.__name__.replace('lose_', '')
    # The launchers' call starts no git to look at commits.
    said = made.setup(*([] if what is lose_patches else ['--quiet_if_ready'])).stdout
    assert f'{step:<13} done again: ' in said
    assert steps(said) == {**dict.fromkeys(ALL, False), step: True, 'imports': True}
    assert made.in_python('import mmdet, mmseg.models, mmcv; print(mmseg.models.layers)') == '2'
    assert made.in_python('import extra, mmengine, torch; print(mmengine.__version__)') == '2.0'


def test_the_launchers_leave_a_package_of_the_users_alone(made):
    (made.site() / 'of_the_user').mkdir()
    assert steps(made.setup('--quiet_if_ready').stdout) == dict.fromkeys(ALL, False)
    assert made.setup('--quiet_if_ready').stdout == ''


def hostile(folder):
    """Settings of other projects, by kind; with each of them pip installs nothing, elsewhere, or something else."""
    other = folder / 'other'
    write(other / 'torch/__init__.py', "__version__ = '2.0'\n")
    write(other / 'torch-2.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: torch\nVersion: 2.0\n')
    for module in ('json', 'argparse', 'packaging', 'pip', 'setuptools', 'venv'):
        write(other / f'{module}.py', "raise ImportError('of another project')\n")
    write(folder / 'requirements.txt', 'no_such_package\n')
    write(folder / 'pip.conf', f'[install]\ndry-run = true\nno-deps = true\ntarget = {other}\n[global]\npython = /x\n')
    pip = {'DRY_RUN': '1', 'TARGET': str(other), 'ROOT': str(other), 'NO_DEPS': '1', 'REQUIRE_HASHES': '1'}
    pip.update(REQUIREMENT=str(folder / 'requirements.txt'), PYTHON='/nonexistent', NO_BINARY=':all:', USER='1')
    git = {'DIR': '/nonexistent', 'INDEX_FILE': '/nonexistent', 'WORK_TREE': '/nonexistent'}
    python = {'HOME': '/nonexistent', 'STARTUP': '/nonexistent', 'SAFEPATH': '1', 'WARNINGS': 'error', 'INSPECT': '1'}
    return {
        'PYTHONPATH and PIP_DRY_RUN': {'PYTHONPATH': str(other), 'PIP_DRY_RUN': '1'},
        'pip': {f'PIP_{key}': value for key, value in pip.items()},
        'pip.conf': {'PIP_CONFIG_FILE': str(folder / 'pip.conf')},
        'python': {f'PYTHON{key}': value for key, value in python.items()},
        'hook': {f'GIT_{key}': value for key, value in git.items()},
        'shell': {'CDPATH': '/', 'VIRTUAL_ENV': str(other), 'MPLBACKEND': 'module://no.such'},
    }


@pytest.mark.parametrize(
    'kind',
    [
        'PYTHONPATH and PIP_DRY_RUN',
        *(pytest.param(kind, marks=pytest.mark.release) for kind in ('pip', 'pip.conf', 'python', 'hook', 'shell')),
    ],
)
def test_settings_of_other_projects_change_nothing(made, tmp_path, kind):
    lose(made, 'torch', 'mmseg')
    said = made.setup(**hostile(tmp_path)[kind]).stdout
    assert steps(said) == {**dict.fromkeys(ALL, False), 'requirements': True, 'packages': True, 'imports': True}
    assert made.in_python('import torch; print(torch.__file__)').startswith(str(made.site()))
    assert made.in_python('import mmseg.models; print(mmseg.models.layers)') == '2'


@pytest.mark.release
def test_a_set_up_from_nothing_heeds_no_settings_of_other_projects(bare, tmp_path):
    settings = {name: value for kind in hostile(tmp_path).values() for name, value in kind.items()}
    bare.setup('--stack', 'cpu', **settings)
    assert bare.in_python('import mmseg.models, torch; print(torch.__file__)').startswith(str(bare.site()))


def test_a_step_that_made_nothing_is_not_stamped(made):
    tool = made.root / 'recipe/core/clean_environment.py'
    whole = tool.read_text()
    tool.write_text(
        whole.replace("    env['PIP_CONFIG_FILE']", "    env['PIP_DRY_RUN'] = '1'\n    env['PIP_CONFIG_FILE']")
    )
    lose(made, 'torch')
    for _ in range(2):
        error = made.setup(status=1).stderr.splitlines()[-1]
        assert error.startswith('error: step requirements still lacks torch==2.0 (not installed)')
    tool.write_text(whole)
    assert steps(made.setup('--quiet_if_ready').stdout)['requirements']


# The build of a package waits, and does not end at the first asking.
_WAIT = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({file!r}, 'w').close()
time.sleep(600)
"""


@pytest.mark.parametrize(
    'signum',
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.release),
        pytest.param(signal.SIGHUP, marks=pytest.mark.release),
    ],
)
def test_nothing_goes_on_when_the_set_up_is_killed(made, tmp_path, signum):
    record = made.record()
    del record['steps']['packages']
    write(made.root / '.setup/recipe.json', json.dumps(record))
    backend = made.root / 'mmcv/backend.py'
    backend.write_text(_WAIT.format(file=str(tmp_path / 'builds')) + backend.read_text())
    mark = f'RUN_OF_A_TEST={tmp_path}'
    command = ['/bin/bash', str(made.root / 'tools/setup.sh')]
    env = made.environment(RUN_OF_A_TEST=str(tmp_path))
    first = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored where the tests run under nohup
    )
    wait_until((tmp_path / 'builds').exists, 'the build')
    first.send_signal(signum)
    first.wait(60)
    wait_until(lambda: not processes_with(mark), 'the end of pip and its build', 30)
    made.git('mmcv', 'checkout', '-q', '.')
    assert steps(made.setup().stdout)['packages']


def test_two_at_once_wait_for_each_other(made):
    shutil.rmtree(str(made.root / 'mmcv'))
    done = []
    threads = [threading.Thread(target=lambda: done.append(made.setup())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps(one.stdout)['sources'] for one in done) == [False, True]


@pytest.mark.release
def test_the_environment_of_a_moved_recipe_is_made_anew(made, tmp_path):
    world = SetupWorld(tmp_path, made)
    said = world.setup('--quiet_if_ready').stdout
    assert steps(said)['venv']
    assert world.in_python('import mmseg; print(mmseg.__file__)').startswith(str(world.root))


def test_a_folder_that_the_locale_cannot_write_is_refused_in_one_line(template, tmp_path):
    folder = tmp_path / '配方'
    folder.mkdir()
    said = SetupWorld(folder, template).refused(LC_ALL='C')
    assert 'holds letters that the locale of this shell' in said and 'export LC_ALL=C.UTF-8' in said


def test_somebody_elses_venv_is_left_alone(bare):
    write(bare.root / '.venv/bin/activate', 'mine\n')
    error = bare.refused('--stack', 'cpu')
    assert '.venv was not made by setup.sh' in error
    assert '--no_venv' in error


def test_a_wrong_hash_stops_at_the_sources(bare):
    table = json.loads((bare.root / 'upstream.json').read_text())
    table['mmdetection']['sdist']['sha256'] = '0' * 64
    write(bare.root / 'upstream.json', json.dumps(table))
    done = bare.setup('--stack', 'cpu', status=1)
    assert 'sha256 differs: expected 000' in done.stderr
    assert 'step sources failed' in done.stderr.splitlines()[-1]
    assert not any((bare.root / name).exists() for name in UPSTREAMS)


@pytest.fixture
def active(tmp_path_factory, bare):
    """An environment of the user's, active."""
    folder = tmp_path_factory.mktemp('active') / 'env'
    subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
    return {'PATH': f'{folder}/bin:{os.environ["PATH"]}', 'VIRTUAL_ENV': str(folder)}


@pytest.mark.release
def test_no_venv_installs_into_the_active_environment(bare, active):
    python = f'{active["VIRTUAL_ENV"]}/bin/python3'
    said = bare.setup('--stack=cpu', '--no_venv', **active).stdout
    assert steps(said) == dict.fromkeys(ALL[1:], True)
    assert not (bare.root / '.venv').exists()
    assert bare.record()['python'] == python
    # Later calls stay with it, active or not.
    assert bare.setup('--quiet_if_ready', '--print_python').stdout == f'{python}\n'
    assert steps(bare.setup().stdout) == dict.fromkeys(ALL[1:], False)
    # Without the record it looks like an environment that was set up by the manual steps, and is taken as it is.
    shutil.rmtree(str(bare.root / '.setup'))
    assert bare.setup('--quiet_if_ready', '--print_python', **active).stdout == f'{python}\n'
    assert not (bare.root / '.setup').exists()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--fast'], '--fast'),
        (['--stack'], 'expected one argument'),
        (['--stack', 'gpu'], "invalid choice: 'gpu'"),
        (['--stack='], 'invalid choice'),
        (['--no_ven'], '--no_ven'),
        (['--python', '/nonexistent'], '/nonexistent is not a Python 3 that runs'),
        (['--stack', 'cpu', '--python', '/bin/false'], '/bin/false is not a Python 3 that runs'),
        (['cpu'], 'unrecognized arguments: cpu'),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(bare, arguments, said):
    assert said in bare.refused(*arguments, status=2)


def test_help_names_every_option(bare):
    said = bare.setup('--help').stdout
    for option in ('--stack', '--no_venv', '--with_ops', '--with_tests', '--quiet_if_ready', '--print_python'):
        assert option in said


def test_without_a_python_one_line_says_so(bare):
    assert 'no Python 3.8 or newer' in bare.refused(PATH='/nonexistent')


def test_no_python_fits_the_stack(bare):
    version = f'{sys.version_info[0]}.{sys.version_info[1]}'
    fake = bare.bin / 'python_of_tomorrow'
    fake.write_text(
        '#!/bin/sh\necho \'{"executable": "/opt/python", "version": [3, 99, 0], "torch": null, "missing": []}\'\n'
    )
    fake.chmod(0o755)
    error = bare.refused('--stack', 'npu-2.1', '--python', str(fake))
    assert 'stack npu-2.1 needs Python 3.8 to 3.11' in error
    assert '3.99.0 (/opt/python)' in error
    assert version not in error or version in ('3.8', '3.11')


def test_too_small_a_disk_is_told_before_anything_is_installed(bare, tmp_path):
    # The need is raised above what any disk has, rather than the disk filled.
    path = bare.root / 'recipe/setup/cli.py'
    path.write_text(path.read_text().replace("'cpu': 3}", "'cpu': 10**9}"))
    assert 'stack cpu needs 1000000000 GB' in bare.refused('--stack', 'cpu')
