from __future__ import annotations

import os

import pytest

# Without the emulator there is nothing to test here: bash test/npu/run.sh brings it.
collect_ignore_glob = [] if 'EMULATED_NPU_STARTER' in os.environ else ['test_*.py']


@pytest.fixture(autouse=True, scope='session')
def npu():
    """The device as mmseg's prepare_device leaves it."""
    import torch
    import torch_npu  # noqa: F401

    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    torch.npu.set_device(0)
