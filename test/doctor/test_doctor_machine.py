"""Limits, network, clock and packages of a machine: what is enough, and what is not."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from recipe.core import console, imported_packages, network
from recipe.doctor import clock, sources
from recipe.doctor import limits as doctor_limits
from recipe.doctor import network as doctor_network
from recipe.doctor.finding import FAILURE, OK, WARNING
from recipe.doctor.limits import Limits
from recipe.doctor.subject import Subject
from recipe.engine import size as run_size
from recipe.launch import examine, options

CONFIG = {
    'model': {'data_preprocessor': {'size': (512, 1024)}},
    'train_dataloader': {'batch_size': 2, 'num_workers': 2},
}
PLENTY = Limits(cores=192, shm_bytes=1 << 40, files=1 << 20, threads=None)


def subject(device: str = 'npu', nproc: int = 8, config=None, env=None, argv=()) -> Subject:
    return Subject(
        options.parse('full', list(argv)), device, nproc, CONFIG if config is None else config, env=env or {}
    )


def levels(limits: Limits, of: Subject):
    return {found.check: found.level for found in doctor_limits.judge(of, limits)}


def test_a_machine_with_plenty_is_good():
    assert set(levels(PLENTY, subject()).values()) == {OK}


def test_a_batch_in_shared_memory_is_as_large_as_it_is():
    """Pictures as uint8 in three channels and labels as int64 are what the loader hands over."""
    size = run_size.shared_memory_bytes(CONFIG, batch_size=1, num_workers=1, prefetch_factor=1)
    assert size == 2 * 512 * 1024 * (3 + 8)
    assert run_size.shared_memory_bytes(CONFIG, 4, 0, 0) == 0
    assert run_size.shared_memory_bytes(None, 1, 1, 1) == size


@pytest.mark.parametrize(
    ('limits', 'check', 'level'),
    [
        ({'cores': 8}, 'cores', WARNING),
        ({'shm_bytes': 64 << 20}, '/dev/shm', FAILURE),  # docker's default
        ({'shm_bytes': None}, '/dev/shm', FAILURE),
        ({'shm_bytes': 500 << 20}, '/dev/shm', WARNING),
        ({'files': 256}, 'open files', FAILURE),
        ({'files': 300}, 'open files', WARNING),
        ({'files': 1024}, 'open files', OK),
        ({'threads': 100}, 'processes', FAILURE),
        ({'threads': 700}, 'processes', WARNING),
    ],
)
def test_what_is_short_is_named_with_its_fix(limits, check, level):
    given = Limits(**{**vars(PLENTY), **limits})
    assert levels(given, subject())[check] == level
    others = [found for found in doctor_limits.judge(subject(), given) if found.check != check]
    assert {found.level for found in others} == {OK}


def test_without_loader_processes_little_is_needed():
    config = {**CONFIG, 'train_dataloader': {'batch_size': 2, 'num_workers': 0}}
    few = Limits(cores=8, shm_bytes=None, files=1024, threads=2000)
    assert set(levels(few, subject(config=config)).values()) == {OK}


@pytest.mark.parametrize(
    ('speed', 'cores', 'workers', 'cached', 'level', 'said'),
    [
        (None, 192, 2, False, OK, '2 processes for each card load about 59 images/s from PNG'),
        (100, 192, 4, False, OK, '100 images/s need 4, with the ranks 40 of 192 cores'),
        (100, 192, 2, False, WARNING, 'give --num_workers=4'),
        (100, 32, 2, False, WARNING, '--decoded_cache=FOLDER'),  # 40 cores from PNG, 24 with the cache
        (100, 32, 2, True, OK, '2 processes for each card load about 178 images/s from the decoded cache'),
        (100, 16, 2, False, WARNING, 'give this container 40 cores'),  # the cache would not do either
        (100, 16, 2, True, WARNING, 'give this container 24 cores'),
    ],
)
def test_a_card_of_a_given_speed_needs_loader_processes_and_cores(speed, cores, workers, cached, level, said):
    config = {**CONFIG, 'train_dataloader': {'batch_size': 2, 'num_workers': workers}}
    argv = ['--decoded_cache=there'] if cached else []
    of = replace(subject(config=config, argv=argv), images_per_s=speed)
    given = Limits(**{**vars(PLENTY), 'cores': cores})
    (found,) = (one for one in doctor_limits.judge(of, given) if one.check == 'loader')
    assert found.level == level
    assert said in (found.fix or found.found), found


def test_the_loader_processes_of_a_card_are_busy_for_at_most_80_percent():
    assert [run_size.loader_processes(speed, 0.01) for speed in (1, 80, 81, 800)] == [1, 1, 2, 10]


@pytest.mark.parametrize(
    'argv', [['--images_per_s', '100'], ['--images_per_s=100', '--json'], ['performance', '--images_per_s=100']]
)
def test_the_doctor_takes_a_speed_in_both_forms(argv):
    asked, _, speed = examine.parse([*argv, '--', 'seed=--images_per_s=3'])
    assert speed == 100 and asked.overrides == ['seed=--images_per_s=3']
    assert examine.parse([])[2] is None


@pytest.mark.parametrize(
    'argv', [['--images_per_s=fast'], ['--images_per_s=0'], ['--images_per_s'], ['--images_per_s=nan']]
)
def test_a_speed_that_is_none_is_refused(argv):
    with pytest.raises(console.UserError, match='not a positive number'):
        examine.parse(argv)


def test_on_a_cpu_loaders_and_ranks_share_the_cores_as_they_always_do():
    assert levels(Limits(**{**vars(PLENTY), 'cores': 2}), subject('cpu', 2))['cores'] == OK


def test_quotas_of_a_container_count(tmp_path):
    cgroup = tmp_path / 'sys' / 'fs' / 'cgroup'
    cgroup.mkdir(parents=True)
    free = doctor_limits.measure(tmp_path)
    assert free.shm_bytes is None
    for name, text in (('cpu.max', '100000 100000\n'), ('pids.max', '500\n'), ('pids.current', '60\n')):
        (cgroup / name).write_text(text)
    held = doctor_limits.measure(tmp_path)
    assert (held.cores, held.threads) == (1, 440)
    for name in ('cpu.max', 'pids.max'):
        (cgroup / name).write_text('max 100000\n' if name == 'cpu.max' else 'max\n')
    assert doctor_limits.measure(tmp_path) == free


def checks(of: Subject):
    return {found.check: found for found in doctor_network.examine(of)}


def test_one_machine_needs_no_network():
    found = checks(subject())
    assert {found['port'].level, found['network interface'].level} == {OK}
    assert found['network interface'].found == 'lo leads to 127.0.0.1'


@pytest.mark.parametrize(('device', 'variable'), network.INTERFACE_VARIABLES.items())
def test_an_interface_that_does_not_exist_is_a_failure(device, variable):
    found = checks(subject(device, env={variable: 'lo,nosuch0'}))['network interface']
    assert found.level == FAILURE
    assert f'{variable}=lo,nosuch0 names nosuch0' in found.found
    for given in ('lo', '=lo', 'l', '^docker,virbr'):
        assert checks(subject(device, env={variable: given}))['network interface'].level == OK
    other = next(name for name in network.INTERFACE_VARIABLES.values() if name != variable)
    assert checks(subject(device, env={other: 'nosuch0'}))['network interface'].level == OK


def test_a_port_in_use_is_a_failure():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = checks(subject(argv=[f'--master_port={port}']))['port']
    assert (found.level, f'{port} is in use' in found.found, bool(found.fix)) == (FAILURE, True, True)


def test_a_master_that_nobody_knows_is_a_failure():
    argv = ['--nnodes=2', '--node_rank=1', f'--master_addr={"x" * 300}', '--master_port=1', '--work_dir=w']
    assert checks(subject(argv=argv))['master address'].level == FAILURE


@pytest.mark.parametrize('node', [0, 1])
def test_an_address_that_only_this_machine_knows_is_none_for_several(node):
    argv = ['--nnodes=2', f'--node_rank={node}', '--master_addr=127.0.0.1', '--master_port=1', '--work_dir=w']
    assert checks(subject(argv=argv))['network interface'].level == WARNING


def test_a_host_name_that_resolves_to_nothing(monkeypatch):
    monkeypatch.setattr(socket, 'gethostname', lambda: 'x' * 300)
    assert checks(subject())['host name'].level == WARNING


def test_the_most_specific_route_counts(tmp_path):
    """10.0.0.0/8 by eth1, 10.2.0.0/16 by eth2 and, dearer, by eth3, the rest by eth0; one that is down."""
    table = tmp_path / 'route'
    rows = [
        'Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT',
        'eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0',
        'eth1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0',
        'eth3\t0000020A\t00000000\t0001\t0\t0\t50\t0000FFFF\t0\t0\t0',
        'eth2\t0000020A\t00000000\t0001\t0\t0\t10\t0000FFFF\t0\t0\t0',
        'eth4\t0003020A\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0',
    ]
    table.write_text('\n'.join(rows) + '\n')
    found = [network.route_interface(addr, table) for addr in ('10.2.3.4', '10.9.9.9', '8.8.8.8')]
    assert found == ['eth2', 'eth1', 'eth0']
    table.write_text(rows[0] + '\n')
    assert network.route_interface('10.2.3.4', table) is None
    assert network.route_interface('10.2.3.4', tmp_path / 'none') is None


def test_a_clock_that_is_behind():
    assert [found.level for found in clock.judge(1000.0, 990.0)] == [OK]
    assert [found.level for found in clock.judge(1000.0, None)] == [OK]
    (found,) = clock.judge(1000.0, 5000.0)
    assert (found.level, '4000 s before' in found.found) == (WARNING, True)
    assert [found.level for found in clock.examine(subject())] == [OK]


def test_packages_from_elsewhere_are_failures(tmp_path):
    good = {name: tmp_path / checkout / name for name, checkout in imported_packages.PACKAGES.items()}
    assert imported_packages.judge(good, tmp_path) == []
    elsewhere = Path('/opt/site-packages/mmseg')
    (found,) = imported_packages.judge({**good, 'mmseg': elsewhere}, tmp_path)
    assert (found.is_fatal, str(elsewhere) in found.found) == (True, True)
    (found,) = imported_packages.judge({**good, 'mmcv': None}, tmp_path)
    assert (found.is_fatal, found.found) == (True, 'mmcv cannot be imported')


@pytest.mark.skipif(importlib.util.find_spec('mmseg') is None, reason='mmseg is not installed')
def test_the_packages_of_these_tests_are_the_checkouts():
    assert [found.level for found in sources.examine(subject())] == [OK]


def test_a_package_that_is_shadowed_is_found(tmp_path, monkeypatch):
    (tmp_path / 'mmseg').mkdir()
    (tmp_path / 'mmseg' / '__init__.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__('sys').modules, 'mmseg', raising=False)
    assert f'mmseg is imported from {tmp_path}/mmseg' in ' '.join(found.found for found in sources.examine(subject()))
