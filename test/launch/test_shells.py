"""The scripts under other shells, by links, with CRLF, and with settings that are other programs'."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

import environments
from recipe.core import clean_environment, paths

pytestmark = pytest.mark.trains  # each starts a shell, and most the launcher below it

TRAIN = 'test/train_full_8p.sh'
BEGIN_ALIKE = [
    *('.ci/run', 'test/run_tests.sh', 'test/npu/run.sh', 'test/faults/run.sh', 'tools/bench_gpu.sh', 'tools/setup.sh'),
    *(TRAIN, 'test/train_performance_8p.sh', 'test/evaluate_8p.sh'),
]
UNKNOWN = 'error: unknown option --nonsense; did you mean --nnodes?\n'


def run(*command, cwd='/', **env):
    given = {'PATH': os.environ['PATH'], **env}
    return subprocess.run(command, env=given, cwd=cwd, capture_output=True, text=True, check=False)


def first_lines(script):
    """The lines before the first one that may differ."""
    text = (paths.ROOT / script).read_text()
    return re.search(r'^\[ "\$\{-#.*?^\} +#\nIFS.*?^\} +#$', text, re.MULTILINE | re.DOTALL)[0]


@pytest.mark.parametrize('script', BEGIN_ALIKE)
def test_each_script_begins_alike_and_before_any_empty_line(script):
    assert first_lines(script) == first_lines(TRAIN)
    assert '\n\n' not in (paths.ROOT / script).read_text().partition(first_lines(script))[0]
    assert all(line.endswith('#') or '# ' in line for line in first_lines(script).splitlines())


def test_no_script_that_a_user_runs_is_missing():
    tracked = [path for path in paths.ROOT.glob('t*/**/*.sh') if 'output' not in path.parts]
    executed = {str(path.relative_to(paths.ROOT)) for path in tracked if path.read_text().startswith('#!')}
    assert executed | {'.ci/run'} == set(BEGIN_ALIKE)


@pytest.mark.parametrize('shell', [['bash'], ['sh'], ['dash'], ['bash', '--posix'], ['bash', '-eu']])
def test_another_shell(shell):
    if shutil.which(shell[0]) is None:
        pytest.skip(f'this machine has no {shell[0]}')
    done = run(*shell, str(paths.ROOT / TRAIN), '--nonsense')
    assert (done.returncode, done.stdout, done.stderr) == (2, '', UNKNOWN)


def test_a_link_of_any_name(tmp_path):
    for script, status in ((TRAIN, 2), ('tools/setup.sh', 2)):
        link = tmp_path / f'a link to {script.replace("/", " ")}'
        link.symlink_to(paths.ROOT / script)
        done = run('bash', link.name, '--nonsense', cwd=tmp_path)
        assert done.returncode == status and '--nonsense' in done.stderr, done


@pytest.mark.parametrize('shell', ['bash', 'sh'])
@pytest.mark.parametrize('script', [TRAIN, 'tools/setup.sh', 'test/run_tests.sh'])
def test_a_copy_with_crlf_is_refused_in_one_line(tmp_path, script, shell):
    copy = tmp_path / 'copy.sh'
    copy.write_bytes((paths.ROOT / script).read_bytes().replace(b'\n', b'\r\n'))
    done = run(shell, str(copy), '--help')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith(f'error: {copy} has line ends of Windows (CRLF); ') and done.stderr.count('\n') == 1


def test_a_clone_has_the_line_ends_of_unix_whatever_git_is_told(tmp_path):
    if not (paths.ROOT / '.git').exists():
        pytest.skip('the recipe is no git checkout here')
    some = [*BEGIN_ALIKE, 'recipe/core/paths.py', 'requirements.txt', 'mmcv.patch', 'upstream.json', 'README.md']
    (tmp_path / 'from').mkdir()
    git = ['git', '-C', str(tmp_path / 'from'), '-c', 'user.name=x', '-c', 'user.email=x']
    for name in (*some, '.gitattributes'):
        (tmp_path / 'from' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.ROOT / name, tmp_path / 'from' / name)
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'x']):
        subprocess.run([*git, *command], check=True)
    clone = ['git', 'clone', '-q', '-c', 'core.autocrlf=true', '-c', 'core.eol=crlf', str(tmp_path / 'from')]
    subprocess.run([*clone, str(tmp_path / 'to')], check=True)
    for name in some:
        assert (tmp_path / 'to' / name).read_bytes() == (paths.ROOT / name).read_bytes(), name


def test_the_shell_keeps_the_variables_of_python_that_the_set_up_keeps():
    kept = re.search(r'PYTHONPATH \| (.*?)\) ;;', (paths.ROOT / 'tools/foreign_settings.sh').read_text())[1].split(
        ' | '
    )
    more = {'PYTHONDONTWRITEBYTECODE'}  # it costs time in a set-up only
    assert {*kept, 'PYTHONUTF8'} - more == {*clean_environment._KEPT_PYTHON, *clean_environment._USER_SITE}


# In groups, because each start of the script takes a tenth of a second.
GROUPS = [sorted(environments.VARIABLES)[start::12] for start in range(12)]


@pytest.mark.parametrize('number', range(len(GROUPS)))
def test_variables_of_other_programs_change_nothing(tmp_path, number):
    """As far as the check of the options; the launch itself is the campaign's, test/faults/environments.py."""
    for chosen in (0, -1):
        values = {name: environments.VARIABLES[name][chosen] for name in GROUPS[number]}
        # The outer bash and the loader of programs act on two of them before anything of ours runs; pyenv's is ours to
        # obey.
        ours = ('BASH_ENV', 'LD_PRELOAD', 'PYENV_VERSION')
        values = {name: value for name, value in values.items() if name not in ours}
        if values.get('SHELLOPTS') == 'xtrace':
            del values['SHELLOPTS']
        folder = tmp_path / str(chosen)
        folder.mkdir()
        one = environments.Environment(
            1, '', 0o022, ('bash',), 'absolute', 'pipes', 'short', 'usual', 'as it is', values
        )
        prepared = environments.prepare(one, folder, paths.ROOT, {'PATH': os.environ['PATH']}, TRAIN)
        answer = environments.launch(one, prepared, ['--nonsense'], folder)
        assert answer == (2, '', UNKNOWN), values


@pytest.mark.parametrize('number', range(6))
def test_drawn_environments_refuse_a_wrong_option_in_one_line(tmp_path, number):
    """A sample of the campaign, without a training."""
    one = environments.draw(number, 1)[0]
    prepared = environments.prepare(one, tmp_path, paths.ROOT, {'PATH': os.environ['PATH']}, TRAIN)
    answer = environments.launch(one, prepared, ['--nonsense'], tmp_path)
    outcome, words = environments.judge(one, answer, None, [path.name for path in prepared.temporary.glob('*')])
    assert outcome == 'refused', (one, words)
    if one.clone != 'CRLF' and one.streams != 'closed stderr':
        deleted = one.place == 'deleted folder'
        assert ('the current folder was deleted' if deleted else 'unknown option --nonsense') in words, (one, words)
