from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import console, openmp
from recipe.engine import devices
from recipe.launch import options, stages

TEST = Path(__file__).resolve().parents[1]
LIBRARIES = ('ASCEND', 'HCCL', 'PYTORCH', 'CUDA', 'TASK_QUEUE', 'CPU_AFFINITY', 'COMBINED', 'MULTI_STREAM', 'ACLNN')


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / 'bin').mkdir()
    return tmp_path


def stub(home: Path, name: str, body: str) -> None:
    path = home / 'bin' / name
    path.write_text(f'#!/bin/sh\n{body}\n')
    path.chmod(0o755)


def source(script: str, home: Path, then: str = 'env -0', **env: str) -> str:
    """What a strict shell says after it has sourced an environment script, in a machine without Ascend's tools."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*LIBRARIES, 'LD_PRELOAD'))}
    clean.update(HOME=str(home), PATH=f'{home / "bin"}:/usr/bin:/bin', **env)
    command = ['bash', '-euo', 'pipefail', '-c', f'source {TEST}/{script}; {then}']
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def variables(text: str) -> dict:
    return dict(line.split('=', 1) for line in text.split('\0') if '=' in line)


@pytest.mark.parametrize('script', ['env_npu.sh', 'env_gpu.sh', 'env_cpu.sh'])
def test_a_strict_shell_goes_on_with_its_options_and_no_new_function(script, home):
    out = source(script, home, 'echo "$-"; declare -F; false || true; set -o | grep -E "errexit|nounset|pipefail"')
    flags, *rest = out.splitlines()
    assert 'e' in flags
    assert 'u' in flags
    assert [line.split()[1] for line in rest] == ['on'] * 3


def test_the_settings_for_npus(home):
    found = variables(source('env_npu.sh', home))
    assert found['TASK_QUEUE_ENABLE'] == '2'
    assert found['PYTORCH_NPU_ALLOC_CONF'] == 'expandable_segments:True'
    assert int(found['HCCL_CONNECT_TIMEOUT']) > 120
    assert found['ASCEND_GLOBAL_EVENT_ENABLE'] == '0'


@pytest.mark.parametrize('name', ['TASK_QUEUE_ENABLE', 'PYTORCH_NPU_ALLOC_CONF', 'ASCEND_GLOBAL_EVENT_ENABLE'])
@pytest.mark.parametrize('value', ['mine', ''])
def test_what_the_user_has_set_is_kept(home, name, value):
    assert variables(source('env_npu.sh', home, **{name: value}))[name] == value


def test_what_the_user_has_set_for_gpus_is_kept(home):
    assert 'expandable' in variables(source('env_gpu.sh', home))['PYTORCH_CUDA_ALLOC_CONF']
    assert variables(source('env_gpu.sh', home, PYTORCH_CUDA_ALLOC_CONF='x'))['PYTORCH_CUDA_ALLOC_CONF'] == 'x'


def test_cpus_see_no_accelerator(home):
    found = variables(source('env_cpu.sh', home, CUDA_VISIBLE_DEVICES='0,1'))
    assert found['CUDA_VISIBLE_DEVICES'] == found['ASCEND_RT_VISIBLE_DEVICES'] == ''


@pytest.mark.parametrize('folder', ['ascend-toolkit', 'cann'])
def test_cann_is_found_in_the_home_although_its_script_is_careless(home, folder):
    script = home / 'Ascend' / folder / 'set_env.sh'
    script.parent.mkdir(parents=True)
    script.write_text('false\nexport ASCEND_OPP_PATH="$NOT_SET_ANYWHERE/opp"\n')
    assert variables(source('env_npu.sh', home))['ASCEND_OPP_PATH'] == '/opp'


def with_ascend(home: Path, note: str, files: dict) -> dict:
    """The variables after env_npu.sh was sourced in a machine with these files of CANN, named by their folders."""
    text = (TEST / 'env_npu.sh').read_text()
    script = home / 'env_npu.sh'
    script.write_text(text.replace('/etc/Ascend', f'{home}/etc').replace('/usr/local/Ascend', f'{home}/usr'))
    (home / 'etc').mkdir()
    if note:
        (home / 'etc' / 'ascend_cann_install.info').write_text(note.replace('ROOT', str(home)))
    for name, said in files.items():
        path = home / name / 'set_env.sh'
        path.parent.mkdir(parents=True)
        path.write_text(f'export ASCEND_OPP_PATH="{said}"\n')
    return variables(source(os.path.relpath(script, TEST), home))


@pytest.mark.parametrize(
    ('note', 'files', 'found'),
    [
        ('Install_Path=ROOT/own\n', {'own/ascend-toolkit': 'own', 'usr/ascend-toolkit': 'usual'}, 'own'),
        ('version=1\r\nInstall_Path = ROOT/own dir\r\n', {'own dir/nnae': 'own'}, 'own'),
        ('Install_Path=ROOT/own\n', {'own': 'the folder itself', 'usr/cann': 'usual'}, 'the folder itself'),
        ('Install_Path=ROOT/gone\n', {'usr/cann': 'usual'}, 'usual'),
        ('', {'usr/nnae': 'nnae'}, 'nnae'),
        ('', {'usr/nnae': 'nnae', 'usr/ascend-toolkit': 'toolkit'}, 'toolkit'),
        ('', {'Ascend/nnae': 'home'}, 'home'),
        ('nothing\n', {'Ascend/cann': 'home', 'usr/nnae': 'usual'}, 'usual'),
    ],
)
def test_cann_is_found_where_its_installer_says_and_in_the_usual_places(home, note, files, found):
    assert with_ascend(home, note, files)['ASCEND_OPP_PATH'] == found


def test_a_user_s_own_cann_is_found_through_its_note(home):
    (home / 'Ascend').mkdir()
    (home / 'Ascend' / 'ascend_cann_install.info').write_text(f'Install_Path={home}/mine\n')
    assert with_ascend(home, '', {'mine/cann': 'mine'})['ASCEND_OPP_PATH'] == 'mine'


def test_cann_that_is_set_up_already_is_left_alone(home):
    script = home / 'toolkit' / 'set_env.sh'
    script.parent.mkdir()
    script.write_text('export ASCEND_OPP_PATH=again\n')
    env = {'ASCEND_TOOLKIT_HOME': str(script.parent)}
    assert variables(source('env_npu.sh', home, **env))['ASCEND_OPP_PATH'] == 'again'
    assert variables(source('env_npu.sh', home, ASCEND_OPP_PATH='first', **env))['ASCEND_OPP_PATH'] == 'first'


# As `npu-smi info -l` prints it.
LISTED = '\n'.join(
    f'\tNPU ID                         : {card}\n\tChip Count                     : 1\n' for card in range(8)
)
CARDS = f'cat <<END\n\tTotal Count                    : 8\n\n{LISTED}END'


def calls(home: Path) -> list:
    """What msnpureport was told."""
    found = home / 'calls'
    return found.read_text().splitlines() if found.is_file() else []


def test_the_cards_are_told_to_log_errors_only(home):
    stub(home, 'npu-smi', f'[ "$*" = "info -l" ] || exit 1\n{CARDS}')
    stub(home, 'msnpureport', f'echo "$@" >> {home}/calls')
    source('env_npu.sh', home, 'true')
    assert calls(home) == [*(f'-g error -d {card}' for card in range(8)), '-e disable']


def test_the_first_card_is_told_where_npu_smi_is_missing(home):
    stub(home, 'msnpureport', f'echo "$@" >> {home}/calls')
    source('env_npu.sh', home, 'true')
    assert calls(home) == ['-g error -d 0', '-e disable']


def test_no_card_is_told_when_npu_smi_finds_none(home):
    stub(home, 'npu-smi', 'echo "driver not loaded" >&2; exit 255')
    stub(home, 'msnpureport', f'echo "$@" >> {home}/calls')
    source('env_npu.sh', home, 'true')
    assert calls(home) == []


def test_a_card_that_refuses_does_not_keep_the_others_from_being_told(home):
    stub(home, 'npu-smi', CARDS)
    stub(home, 'msnpureport', f'echo "$@" >> {home}/calls\necho "permission denied"; [ "$4" -ge 3 ]')
    source('env_npu.sh', home, 'true')
    assert len(calls(home)) == 9


@pytest.mark.parametrize('present', [(), ('npu-smi',), ('msnpureport',), ('npu-smi', 'msnpureport')])
@pytest.mark.parametrize('status', [0, 255])
def test_the_environment_does_not_depend_on_the_tools_of_the_driver(home, present, status):
    """They may be there, not be there, and fail, as they do without root or driver; what they say is not shown."""
    without = variables(source('env_npu.sh', home))
    for name in present:
        stub(home, name, f'echo {name} was here; echo {name} was here >&2; exit {status}')
    shown = source('env_npu.sh', home)
    assert 'was here' not in shown
    assert variables(shown) == without


def test_sourcing_it_again_changes_nothing(home):
    again = f'source {TEST}/env_npu.sh; env -0'
    assert variables(source('env_npu.sh', home, again)) == variables(source('env_npu.sh', home))


@pytest.mark.skipif(Path('/usr/local/Ascend').exists(), reason='this machine has CANN')
def test_a_machine_without_cann_is_told_once(home):
    command = f'source {TEST}/env_npu.sh 2>&1'
    env = {'HOME': str(home), 'PATH': f'{home / "bin"}:/usr/bin:/bin'}
    bare = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env=env, check=True)
    assert bare.stdout.splitlines() == [
        'warning: no CANN set_env.sh found; source it before, or set ASCEND_TOOLKIT_HOME'
    ]
    env['ASCEND_OPP_PATH'] = '/opp'
    ready = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env=env, check=True)
    assert ready.stdout == ''


@pytest.mark.parametrize(('asked', 'found'), [('npu', 'npu'), ('cuda', 'gpu'), ('cpu', 'cpu')])
def test_each_device_has_its_environment(asked, found):
    assert stages.ENVIRONMENTS[devices.likely_device(asked)] == found
    assert (TEST / f'env_{found}.sh').is_file()


def test_a_machine_without_accelerators_is_asked_for_a_number_of_processes():
    assert devices.choose_nproc('cpu', 4, None, demo=True) == 2
    assert devices.choose_nproc('cpu', 4, 3, demo=False) == 3
    with pytest.raises(console.UserError, match='give --nproc=1'):
        devices.choose_nproc('cpu', 4, None, demo=False)


def test_fewer_cards_than_asked_for_stop_the_run_and_say_which_number_to_give():
    assert devices.choose_nproc('npu', 8, None, demo=False) == 8
    assert devices.choose_nproc('npu', 16, None, demo=False) == 8
    assert devices.choose_nproc('cuda', 2, 2, demo=False) == 2
    assert devices.choose_nproc('cuda', 3, None, demo=True) == 3
    with pytest.raises(console.UserError, match=r'the default of 8 cards, .* has 4 npu cards; give --nproc=4'):
        devices.choose_nproc('npu', 4, None, demo=False)
    with pytest.raises(console.UserError, match=r'--nproc=2 cards, .* has 1 cuda card; give --nproc=1'):
        devices.choose_nproc('cuda', 1, 2, demo=True)


def test_ranks_share_the_cores_and_keep_what_the_user_has_set(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    cores = len(os.sched_getaffinity(0))
    assert devices.rank_environment('cpu', 1, '127.0.0.1', False)['OMP_NUM_THREADS'] == str(cores)
    assert devices.rank_environment('cpu', 10_000, '127.0.0.1', False)['OMP_NUM_THREADS'] == '1'
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    assert 'OMP_NUM_THREADS' not in devices.rank_environment('cpu', 1, '127.0.0.1', False)
    monkeypatch.setattr(openmp, 'settled', 1)  # the user's limit
    assert devices.rank_environment('cpu', 1, '127.0.0.1', False)['OMP_NUM_THREADS'] == '1'


def test_a_debug_level_with_which_torch_crashes_is_lowered_and_named(monkeypatch, capsys):
    name = 'TORCH_DISTRIBUTED_DEBUG'
    for given, device, passed in (('DETAIL', 'cpu', 'INFO'), ('DETAIL', 'cuda', None), ('INFO', 'cpu', None)):
        monkeypatch.setenv(name, given)
        assert devices.rank_environment(device, 2, '127.0.0.1', False).get(name) == passed
        assert ('TORCH_DISTRIBUTED_DEBUG=DETAIL: torch crashes' in capsys.readouterr().err) == (passed is not None)


def test_collectives_use_the_interface_that_leads_to_the_other_machines(monkeypatch):
    for name in ('GLOO', 'HCCL', 'NCCL'):
        monkeypatch.delenv(f'{name}_SOCKET_IFNAME', raising=False)
    found = devices.rank_environment('npu', 8, '127.0.0.1', True)
    assert (found['HCCL_SOCKET_IFNAME'], found['GLOO_SOCKET_IFNAME']) == ('=lo', 'lo')
    assert 'HCCL_SOCKET_IFNAME' not in devices.rank_environment('npu', 8, '127.0.0.1', False)
    monkeypatch.setenv('HCCL_SOCKET_IFNAME', 'mine')
    assert 'HCCL_SOCKET_IFNAME' not in devices.rank_environment('npu', 8, '127.0.0.1', True)


def test_a_device_that_is_not_there_is_refused_with_why():
    for device in ('npu', 'cuda'):
        try:
            found = devices.find(device)
        except console.UserError as error:
            assert str(error).startswith(f'--device={device}: ')
        else:
            assert found[1] > 0  # this machine has one


def test_a_torch_that_cannot_be_imported_is_one_line(monkeypatch):
    """As with TORCH_LOGS=nonsense or TORCH_DISTRIBUTED_DEBUG=nonsense."""
    monkeypatch.setitem(sys.modules, 'torch.distributed', None)
    with pytest.raises(console.UserError, match='torch cannot be imported: ModuleNotFoundError: '):
        devices.find('cpu')


def test_the_launchers_choose_among_these_devices():
    assert set(stages.ENVIRONMENTS) == {*options.DEVICES} - {'auto'}
