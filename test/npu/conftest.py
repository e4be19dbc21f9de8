from __future__ import annotations

import os

import pytest

import own_tests

OWN_TESTS_RUN = 'EMULATED_NPU_OWN_TESTS' in os.environ or own_tests.needed()
# Without the emulator there is nothing to test here: bash test/npu/run.sh brings it.
collect_ignore_glob = [] if 'EMULATED_NPU_STARTER' in os.environ else ['test_*.py']
if not OWN_TESTS_RUN:
    collect_ignore_glob += own_tests.OWN_TESTS


def pytest_report_header() -> str:
    """Say in the head of the run which tests it leaves out."""
    return f"the emulator's own tests: {'run' if OWN_TESTS_RUN else 'left out, it is as it was when they passed'}"


@pytest.fixture(autouse=True, scope='session')
def npu():
    """The device as mmseg's prepare_device leaves it."""
    import torch
    import torch_npu  # noqa: F401

    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    torch.npu.set_device(0)
