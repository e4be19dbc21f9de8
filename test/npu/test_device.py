"""The emulated device: what it is, its memory, and that nobody gets it by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(code, **env):
    """Run Python code in a process of its own; None unsets a variable."""
    env = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=False)


def test_eight_cards_of_a_910b2():
    assert torch.npu.device_count() == 8
    assert torch.npu.get_device_name(0) == 'Ascend910B2'


def test_tensors_travel_unchanged():
    for value in (torch.randn(3, 4), torch.arange(7), torch.tensor(True), torch.randn(2, 3).half(), torch.empty(0, 3)):
        assert torch.equal(value.npu().cpu(), value)
    strided = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    assert torch.equal(strided.npu().cpu(), strided)
    assert torch.equal(strided.npu().contiguous().cpu(), strided)
    assert torch.equal(strided.npu()[1:, :, ::2].to(torch.int32).cpu(), strided[1:, :, ::2].to(torch.int32))


def test_a_full_device_is_out_of_memory_and_says_so():
    code = """
import torch, torch_npu
held = torch.empty(1 << 20, dtype=torch.uint8, device='npu')
try:
    torch.empty(512 << 20, dtype=torch.uint8, device='npu')
except RuntimeError as error:
    print('OUT', str(error).splitlines()[0])
del held
torch.npu.empty_cache()
free, total = torch.npu.mem_get_info()
print(free == total, total)
"""
    for allocator in (None, 'expandable_segments:True'):
        out = run(code, EMULATED_NPU_MEMORY_BYTES=str(256 << 20), PYTORCH_NPU_ALLOC_CONF=allocator).stdout
        assert 'OUT NPU out of memory' in out and f'True {256 << 20}' in out, out


def test_misuse_of_memory_is_an_error():
    code = """
import ctypes, torch, torch_npu
lib = ctypes.CDLL('libascendcl.so')
lib.aclGetRecentErrMsg.restype = ctypes.c_char_p
torch.npu.set_device(0)
block, p = ctypes.c_void_p(), ctypes.c_void_p
assert lib.aclrtMalloc(ctypes.byref(block), ctypes.c_size_t(1024), 0) == 0
host = ctypes.create_string_buffer(1024)
n = ctypes.c_size_t
def said(status):
    assert status != 0
    print(lib.aclGetRecentErrMsg().decode())
said(lib.aclrtMemcpy(block, n(1024), host, n(1024), 2))   # says device to host
said(lib.aclrtMemcpy(block, n(1024), host, n(2048), 1))   # more than there is room for
said(lib.aclrtMemcpy(p(block.value + 512), n(1024), host, n(1024), 1))   # over the end
assert lib.aclrtFree(block) == 0
said(lib.aclrtFree(block))
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    wrong, large, over, twice = done.stdout.splitlines()
    assert 'copy device to host of 1024 bytes, but' in wrong and 'is something else' in over
    assert 'copy host to device of 2048 bytes into 1024' in large
    assert 'is freed twice' in twice


def test_memory_that_was_never_written_is_no_zero():
    code = "import torch, torch_npu; print(torch.empty(5, device='npu').cpu().isnan().all().item())"
    assert run(code).stdout.split() == ['True']


@pytest.mark.parametrize('starter', [None, '1:1', pytest.param(f'{os.getpid()}:1', id='a later process'), 'nonsense'])
def test_only_the_harness_starts_it(starter):
    done = run(
        'import torch, torch_npu; print(torch.npu.device_count(), torch.npu.is_available())',
        EMULATED_NPU_STARTER=starter,
    )
    assert '0 False' in done.stdout or done.returncode
    assert 'only test/npu/run.sh may start it' in done.stderr


def test_it_says_that_it_is_one():
    done = run("import torch, torch_npu; torch.ones(1, device='npu')")
    assert done.stderr.count('*** EMULATED NPU: no Ascend hardware') == 1


@pytest.mark.parametrize(
    'write',
    [
        "open(target, 'w')",
        "pathlib.Path(target).write_text('x')",
        'os.mkdir(target)',
        "shutil.copy(__file__ if '__file__' in globals() else sys.executable, target)",
        'os.rename(source, target)',
        'shutil.copytree(os.path.dirname(source), target)',
        'os.open(target, os.O_WRONLY | os.O_CREAT)',
    ],
)
def test_nothing_of_it_gets_into_results(write, tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'run').mkdir()
    source = tmp_path / 'run' / 'source.txt'
    source.write_text('x')
    target = tmp_path / 'results' / '2000-01-01_npu_demo'
    code = f'import os, pathlib, shutil, sys\nsource, target = {str(source)!r}, {str(target)!r}\n{write}'
    done = run(code)
    assert 'nothing of it may be written into results/' in done.stderr
    assert not target.exists()


def test_an_operator_without_a_kernel_is_an_error_that_names_it():
    code = """
import torch, torch_npu
torch.npu.set_compile_mode(jit_compile=False)
torch_npu.npu_rms_norm(torch.ones(2, 8, device='npu'), torch.ones(8, device='npu'))
torch.npu.synchronize()
"""
    done = run(code)
    assert done.returncode and 'RmsNorm has no reference kernel' in done.stderr, done.stderr


def test_an_operator_by_name_without_a_kernel_is_an_error_that_names_it():
    done = run(
        'import torch, torch_npu; torch_npu.npu_one_hot(torch.arange(3).npu(), depth=5); torch.npu.synchronize()'
    )
    assert done.returncode and ('has no reference kernel' in done.stderr or 'not in libopapi' in done.stderr), (
        done.stderr
    )


def test_tensors_of_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match='expected all tensors to be on the same device'):
        torch.ones(3, device='npu') + torch.ones(3)
    assert (torch.ones(3, device='npu') + torch.tensor(1.0)).sum().item() == 6  # one number may come from the host
