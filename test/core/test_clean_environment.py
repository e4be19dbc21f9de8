"""tools/clean_environment.py: what of the user's settings reaches pip."""

from __future__ import annotations

import os
import sys

import pytest

from recipe.core import clean_environment, console

SOURCES = {
    'PIP_INDEX_URL': 'https://mirror.example/simple',
    'PIP_EXTRA_INDEX_URL': 'https://one.example https://two.example',
    'PIP_FIND_LINKS': '/wheels',
    'PIP_NO_INDEX': '1',
    'PIP_TRUSTED_HOST': 'mirror.example',
    'PIP_CERT': '/cert.pem',
    'PIP_CLIENT_CERT': '/client.pem',
    'PIP_PROXY': 'http://proxy.example',
    'PIP_CONSTRAINT': '/constraints.txt',
    'PIP_CACHE_DIR': '/cache',
    'PIP_DEFAULT_TIMEOUT': '60',
    'PIP_RETRIES': '9',
    'HTTPS_PROXY': 'http://proxy.example',
    'REQUESTS_CA_BUNDLE': '/cert.pem',
    'LD_LIBRARY_PATH': '/usr/local/Ascend/lib64',
    'CC': 'gcc-12',
}
OTHERS = [
    'PYTHONDONTWRITEBYTECODE',
    *('PIP_DRY_RUN', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT', 'PIP_USER', 'PIP_NO_DEPS', 'PIP_REQUIRE_VIRTUALENV'),
    *('PIP_IGNORE_INSTALLED', 'PIP_REPORT', 'PIP_PYTHON', 'PIP_PLATFORM', 'PIP_REQUIREMENT', 'PIP_EDITABLE', 'PIP_PRE'),
    *('PIP_NO_BINARY', 'PIP_ONLY_BINARY', 'PIP_UPGRADE', 'PIP_FORCE_REINSTALL', 'PIP_A_SETTING_OF_TOMORROW'),
    *('PYTHONPATH', 'PYTHONHOME', 'PYTHONSTARTUP', 'PYTHONUSERBASE', 'PYTHONSAFEPATH', 'PYTHONINSPECT'),
    *('VIRTUAL_ENV', 'CONDA_PREFIX', 'SETUPTOOLS_USE_DISTUTILS', 'MMCV_WITH_OPS', 'FORCE_CUDA', 'MPLBACKEND'),
]


@pytest.fixture(autouse=True)
def only(monkeypatch):
    """Set the environment to these variables and no others."""

    def set_all(**variables):
        for name in list(os.environ):
            if name != 'PATH':
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        clean_environment._configured.cache_clear()

    yield set_all
    clean_environment._configured.cache_clear()


def for_pip(command='install', **options):
    return clean_environment.for_pip(sys.executable, command, **options)


def test_only_where_packages_come_from_reaches_pip(only):
    only(PIP_CONFIG_FILE=os.devnull, **SOURCES, **dict.fromkeys(OTHERS, '/nonexistent'))
    assert for_pip() == {**SOURCES, 'PATH': os.environ['PATH'], 'PIP_CONFIG_FILE': os.devnull}


def test_the_users_own_site_is_kept_where_it_is_installed_into(only):
    only(PYTHONUSERBASE='/mine', PYTHONPATH='/other')
    assert clean_environment.clean(user_site=True)['PYTHONUSERBASE'] == '/mine'
    assert 'PYTHONPATH' not in clean_environment.clean(user_site=True)


def test_sources_in_a_configuration_file_are_kept(only, tmp_path):
    # As in ~/.config/pip/pip.conf; the name of an option may be written with either line.
    (tmp_path / 'pip.conf').write_text(
        '[global]\nindex-url = https://all.example\ntrusted_host =\n    one.example\n    two.example\nquiet = 3\n'
        'python = /nonexistent\nrequire-virtualenv = true\ntarget = /nonexistent\n'
        '[install]\nindex-url = https://install.example\ndry-run = true\nuser = true\n'
        '[download]\nno-index = true\nfind-links = /wheels\ndest = /nonexistent\n'
    )
    (tmp_path / 'empty').mkdir()
    only(
        PIP_CONFIG_FILE=str(tmp_path / 'pip.conf'),
        PIP_TIMEOUT='7',
        HOME=str(tmp_path),
        XDG_CONFIG_DIRS=str(tmp_path / 'empty'),
    )

    def said(command):
        # This machine's own files may say more, such as a certificate.
        names = {'PIP_TARGET', 'PIP_DRY_RUN', 'PIP_USER', 'PIP_DEST', 'PIP_PYTHON', 'PIP_QUIET', *SOURCES, *common}
        return {name: value.strip() for name, value in for_pip(command).items() if name in names - {'PIP_CERT'}}

    common = {'PIP_TIMEOUT': '7', 'PIP_TRUSTED_HOST': 'one.example\ntwo.example', 'PIP_CONFIG_FILE': os.devnull}
    assert said('install') == {**common, 'PIP_INDEX_URL': 'https://install.example'}
    assert said('download') == {
        **common,
        'PIP_INDEX_URL': 'https://all.example',
        'PIP_NO_INDEX': 'true',
        'PIP_FIND_LINKS': '/wheels',
    }
    os.environ['PIP_INDEX_URL'] = 'https://variable.example'  # goes before the files, as in pip
    assert said('install')['PIP_INDEX_URL'] == 'https://variable.example'


def test_ranks_get_nothing_of_another_torchrun(only):
    only(PET_NNODES='2', TORCHELASTIC_RESTART_COUNT='3', RANK='5', MASTER_PORT='x', HCCL_CONNECT_TIMEOUT='7')
    assert {name for name in clean_environment.for_ranks() if name != 'PATH'} == {'HCCL_CONNECT_TIMEOUT'}


def test_a_damaged_configuration_file_is_one_line(only, tmp_path):
    (tmp_path / 'pip.conf').write_text('index-url = https://all.example\n')
    only(PIP_CONFIG_FILE=str(tmp_path / 'pip.conf'))
    with pytest.raises(console.UserError, match=r'no section headers.*pip\.conf'):
        for_pip()
