from __future__ import annotations

import json

import pytest
from packaging.specifiers import SpecifierSet

from recipe.doctor import ascend, versions
from recipe.doctor.finding import FAILURE, OK, WARNING
from recipe.doctor.subject import Subject
from recipe.doctor.versions import Versions
from recipe.launch import options

TABLE = json.loads(versions.TABLE.read_text())
NPU = Versions('3.10.14', '2.1.0', '2.1.0.post12', '26.2.0.post1', '8.1.RC1', '/opt/cann', '25.0.rc1.1')


def levels(device: str, have: Versions):
    return {found.check: found.level for found in versions.judge(device, have, TABLE)}


def bad(device: str, have: Versions):
    return [found for found in versions.judge(device, have, TABLE) if found.level != OK]


@pytest.mark.parametrize('cann', ['8.3.RC1', '8.5.0', '9.0.0'])
@pytest.mark.parametrize('torch', ['2.7.1', '2.8.0'])
def test_the_newest_operator_package_goes_with_these(torch, cann):
    rows = [row for row in TABLE['torch_npu']['rows'] if (row['torch'], row['cann']) == (torch, cann)]
    (row,) = rows
    have = Versions('3.11.2', torch, row['torch_npu'], '26.2.0.post2', cann, '/opt/cann', '99.0')
    assert bad('npu', have) == []


@pytest.mark.parametrize('row', TABLE['torch_npu']['rows'], ids=lambda row: row['torch_npu'])
def test_every_row_of_the_table_is_good(row):
    mx_driving = '26.2.0.post1' if row['torch'].startswith('2.1') else '26.2.0.post2'
    assert SpecifierSet(row['python']).contains('3.11.2')
    have = Versions('3.11.2', row['torch'], row['torch_npu'], mx_driving, row['cann'], '/opt/cann', '99.0')
    assert bad('npu', have) == []


def test_a_release_takes_the_cann_versions_that_its_notes_name():
    assert bad('npu', NPU._replace(torch_npu='2.1.0.post17')) == []  # made with CANN 8.3.RC1
    (found,) = bad('npu', NPU._replace(torch_npu='2.1.0.post17', cann='9.0.0'))
    assert (found.check, found.level) == ('torch_npu', WARNING)
    assert 'install CANN 8.3.RC1' in found.fix


@pytest.mark.parametrize(
    ('differs', 'check', 'level', 'said'),
    [
        ({'torch_npu': None}, 'torch_npu', FAILURE, 'not installed'),
        ({'torch_npu': '2.7.1'}, 'torch_npu', FAILURE, 'does not fit torch 2.1.0'),
        ({'torch_npu': '2.1.0.post99'}, 'torch_npu', WARNING, 'not among the known-good'),
        ({'cann': None, 'cann_home': None}, 'CANN', FAILURE, 'no CANN found'),
        ({'driver': None}, 'driver', WARNING, 'cannot be found'),
        ({'driver': '24.1.rc3'}, 'driver', WARNING, 'older than 25.0.RC1'),
        ({'mx_driving': None}, 'mx_driving', FAILURE, 'deformable attention needs it'),
        ({'mx_driving': '26.2.0.post2'}, 'mx_driving', FAILURE, 'is for torch>=2.6,<2.9'),
        ({'mx_driving': '1.0'}, 'mx_driving', WARNING, 'not among the known-good'),
        ({'python': '3.12.1'}, 'Python', WARNING, 'was not tried'),
        ({'python': '3.7.9'}, 'Python', WARNING, 'was not tried'),
        ({'torch': None}, 'torch', FAILURE, 'torch is not installed'),
    ],
)
def test_what_does_not_belong_together_is_named_with_its_fix(differs, check, level, said):
    found = next(found for found in bad('npu', NPU._replace(**differs)) if found.check == check)
    assert found.level == level
    assert said in found.found
    assert found.fix


def test_gpus_and_cpus():
    assert bad('cuda', Versions('3.12.1', '2.5.1', cuda='12.4', driver_cuda=(12, 2))) == []
    (found,) = bad('cuda', Versions('3.12.1', '2.11.0', cuda='13.0', driver_cuda=(12, 2)))
    assert (found.check, found.level) == ('CUDA', FAILURE)
    assert bad('cpu', Versions('3.13.0', '2.13.0')) == []
    assert [found.level for found in bad('cpu', Versions('3.9.0', '1.13.1'))] == [WARNING]


def test_this_environment_is_good():
    assert bad('cpu', versions.installed(Subject(options.parse('full', []), 'cpu', 1))) == []


def test_nnae_and_cann_elsewhere_are_found_through_the_note_of_the_installer(tmp_path):
    for home, version in (('usr/local/Ascend/nnae/latest', '8.1.RC1'), ('opt/huawei/cann', '8.5.0')):
        (tmp_path / home / 'aarch64-linux').mkdir(parents=True)
        kind = 'nnae' if 'nnae' in home else 'toolkit'
        (tmp_path / home / 'aarch64-linux' / f'ascend_{kind}_install.info').write_text(f'version={version}\n')
    assert ascend.cann(tmp_path, {}) == ('8.1.RC1', '/usr/local/Ascend/nnae/latest')
    (tmp_path / 'etc/Ascend').mkdir(parents=True)
    (tmp_path / 'etc/Ascend/ascend_cann_install.info').write_text('Install_Path=/opt/huawei\n')
    assert ascend.cann(tmp_path, {}) == ('8.5.0', '/opt/huawei/cann')


@pytest.mark.parametrize('home', ['usr/local/Ascend/ascend-toolkit/latest', 'usr/local/Ascend/cann'])
def test_cann_and_driver_are_found_where_they_are_installed(tmp_path, home):
    assert ascend.cann(tmp_path, {}) is None
    assert ascend.driver(tmp_path) is None
    folder = tmp_path / home / 'aarch64-linux'
    folder.mkdir(parents=True)
    (folder / 'ascend_toolkit_install.info').write_text(
        'package_name=Ascend-cann-toolkit\nversion=8.2.RC1\narch=aarch64\n'
    )
    driver = tmp_path / 'usr/local/Ascend/driver'
    driver.mkdir()
    (driver / 'version.info').write_text(
        'Version=24.1.rc3.b999\nascendhal_version=7.35.23\npackage_version=24.1.rc3.b999\n'
    )
    assert ascend.cann(tmp_path, {}) == ('8.2.RC1', f'/{home}')
    assert ascend.driver(tmp_path) == '24.1.rc3.b999'
    have = versions.installed(Subject(options.parse('full', []), 'npu', 8, root=tmp_path, env={}))
    assert (have.cann, have.driver) == ('8.2.RC1', '24.1.rc3.b999')


def test_the_cann_that_is_sourced_comes_first(tmp_path):
    for home, version in (('usr/local/Ascend/cann', '8.1.RC1'), ('opt/cann', '8.3.RC1')):
        (tmp_path / home / 'x86_64-linux').mkdir(parents=True)
        (tmp_path / home / 'x86_64-linux' / 'ascend_toolkit_install.info').write_text(f'version={version}\n')
    assert ascend.cann(tmp_path, {'ASCEND_TOOLKIT_HOME': '/opt/cann'})[0] == '8.3.RC1'


def test_versions_have_an_order():
    texts = ['24.1.RC2', '24.1.rc3.b999', '24.1.0', '25.0', '25.0.RC1', '25.0.rc1.1', '25.0.0', '25.2.0', '25.5.1']
    assert sorted(texts, key=ascend.order) == texts
