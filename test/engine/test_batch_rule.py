from __future__ import annotations

import os
from pathlib import Path

import pytest

from recipe.core import network
from recipe.engine import batch, devices
from recipe.engine import config as run_config
from recipe.launch import options


def config(*argv, demo=False):
    return run_config.make(options.parse('full', [*(['--demo'] if demo else []), *argv]), 'cpu', Path('/data'))


def test_the_recipe_s_own_batch_is_no_matter():
    assert batch.describe(config(), 1, 8) == [('16 = 8 ranks x 2 images', '')]
    assert batch.describe(config('--batch_size=1'), 2, 8) == [('16 = 2 machines x 8 ranks x 1 image', '')]
    assert batch.describe(config(demo=True), 1, 2) == [('4 = 2 ranks x 2 images', '')]


def test_another_batch_is_told_with_its_consequences():
    lines = batch.describe(config(), 2, 8)
    assert lines[0] == ('32 = 2 machines x 8 ranks x 2 images', '')
    assert 'the learning rate 0.0001 belongs to a global batch of 16, and this one is 32' in lines[1][0]
    assert lines[1][1].endswith('-- optim_wrapper.optimizer.lr=0.0002')
    assert '90000 iterations see 2 times the images' in lines[2][0]
    assert lines[2][1].endswith('--max_iters=45000')
    assert batch.describe(config(), 1, 1)[2][1].endswith('--max_iters=720000')


def test_the_values_named_are_taken():
    wanted = batch.describe(config(), 1, 4)[1][1].rsplit('-- ', 1)[1]
    assert config('--', wanted).optim_wrapper.optimizer.lr == 5e-5


def test_a_rate_that_mmengine_scales_is_told():
    scaled = config('--', 'auto_scale_lr.enable=True')
    assert 'is scaled to 0.0002' in batch.describe(scaled, 2, 8)[1][0]


def test_a_config_without_such_a_rule_says_the_batch_only():
    plain = config()
    plain.pop('auto_scale_lr')
    assert batch.describe(plain, 1, 3) == [('6 = 3 ranks x 2 images', '')]


def test_accumulated_gradients_belong_to_the_batch():
    """They take the place of cards for the learning rate, not for the number of images."""
    eight = config('--', 'optim_wrapper.accumulative_counts=8')
    (first, _), *others = batch.describe(eight, 1, 1)
    assert first == '16 = 1 rank x 2 images x 8 iterations of accumulated gradients'
    assert [found.split()[0] for found, _ in others] == ['90000']  # the rate is right, the images are fewer
    assert others[0][1].endswith('--max_iters=720000')
    (first, _), rate = batch.describe(config('--', 'optim_wrapper.accumulative_counts=2'), 1, 8)
    assert first.startswith('32 = ') and rate[1].endswith('-- optim_wrapper.optimizer.lr=0.0002')
    # mmengine's own scaling leaves them out
    scaled = config('--', 'auto_scale_lr.enable=True', 'optim_wrapper.accumulative_counts=2')
    _, (found, fix), _ = batch.describe(scaled, 1, 4)
    assert 'is scaled to 5e-05, which does not count the accumulated gradients' in found
    assert fix.endswith('-- auto_scale_lr.enable=False optim_wrapper.optimizer.lr=0.0001')


@pytest.fixture
def route(monkeypatch):
    """The way to everywhere is by eth1; the user has set nothing."""
    monkeypatch.setattr(network, 'interface_towards', lambda _: 'eth1')
    for name in network.INTERFACE_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)


def test_the_interface_of_each_library_is_the_one_towards_rank_0(route):
    for device, exact in (
        ('npu', {'HCCL_SOCKET_IFNAME': '=eth1'}),
        ('cuda', {'NCCL_SOCKET_IFNAME': '=eth1'}),
        ('cpu', {}),
    ):
        env = devices.rank_environment(device, 8, '10.0.0.1', True)
        env.pop('OMP_NUM_THREADS', None)
        assert env == {**exact, 'GLOO_SOCKET_IFNAME': 'eth1'}


def test_one_machine_s_cards_need_no_interface(route):
    for device in ('npu', 'cuda'):
        assert set(devices.rank_environment(device, 8, '127.0.0.1', False)) <= {'OMP_NUM_THREADS'}


def test_an_interface_that_the_user_has_set_is_kept(route, monkeypatch):
    monkeypatch.setenv('NCCL_SOCKET_IFNAME', 'ib0')
    env = devices.rank_environment('cuda', 8, '10.0.0.1', True)
    assert 'NCCL_SOCKET_IFNAME' not in env
    assert os.environ['NCCL_SOCKET_IFNAME'] == 'ib0'
    assert env['GLOO_SOCKET_IFNAME'] == 'eth1'
