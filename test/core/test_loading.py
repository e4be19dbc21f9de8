"""Packages that a system cannot load are refused in one line with what to do; a damaged cache of yapf is mended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recipe.core import console, imported_packages, paths

LINKER = [
    ('libGL.so.1: cannot open shared object file: No such file or directory', 'pip uninstall -y opencv-python'),
    ('/x/sklearn.libs/libgomp-d22c30c5.so.1.0.0: cannot allocate memory in static TLS block', 'LD_PRELOAD=/x/sklearn'),
    ("/lib64/libc.so.6: version `GLIBC_2.34' not found (required by /x/cv2.abi3.so)", 'ldd shows its glibc'),
    ("/usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by a.so)", 'remove .venv'),
    ("No module named 'google'", 'run: bash tools/setup.sh'),
]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Makes a package whose import fails."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'broken_package', raising=False)

    def make(code: str) -> str:
        (tmp_path / 'broken_package.py').write_text(code)
        return 'broken_package'

    return make


@pytest.mark.parametrize('kind', ['ImportError', 'OSError'])
@pytest.mark.parametrize(('text', 'fix'), LINKER)
def test_what_the_linker_says_comes_with_what_to_do(broken, kind, text, fix):
    with pytest.raises(console.UserError) as refused:
        imported_packages.load(broken(f'raise {kind}({text!r})'))
    assert refused.value.problem == f'broken_package cannot be imported: {text}'
    assert fix in refused.value.fix


def test_a_fault_of_the_package_itself_keeps_its_traceback(broken):
    with pytest.raises(ZeroDivisionError):
        imported_packages.load(broken('1 / 0'))


YAPF = """
import pathlib, sys, threading
from recipe.core import imported_packages
imported_packages._CACHE_WAIT_S = float(sys.argv[2])
cache = pathlib.Path(sys.argv[1])
import yapf
(file, *_) = whole = sorted(cache.rglob('*.pickle'))
content = [path.read_bytes() for path in whole]
def damage(keep):
    for path, text in zip(whole, content):
        path.write_bytes(text[:keep])
    for name in [name for name in sys.modules if name.startswith('yapf')]:
        del sys.modules[name]
for keep in (0, 1000):  # as a killed process leaves it
    damage(keep)
    try:
        import yapf
        raise SystemExit('yapf reads a damaged cache now: the check can go')
    except Exception as error:
        print(type(error).__name__)
    damage(keep)
    imported_packages.load('yapf')
    assert [path.read_bytes()[-1:] for path in whole] == [b'.'] * len(whole)
"""


def test_a_damaged_cache_of_yapf_is_made_again(tmp_path):
    command = [sys.executable, '-c', YAPF, str(tmp_path), '0.05']
    env = {
        'PATH': '/usr/bin:/bin',
        'XDG_CACHE_HOME': str(tmp_path),
        'PYTHONPATH': str(paths.ROOT),
        'HOME': str(tmp_path),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == 'EOFError'


def test_every_npu_stack_has_what_the_operator_compiler_imports():
    named = (paths.ROOT / 'requirements' / 'npu.txt').read_text()
    spelled = {'google.protobuf': 'protobuf', 'absl': 'absl-py', 'attr': 'attrs'}
    for name in imported_packages.COMPILED_NPU:
        assert f'\n{spelled.get(name, name)}' in named
    for file in Path(paths.ROOT, 'requirements').glob('npu-*.[0-9].txt'):
        assert '-r npu.txt' in file.read_text()
