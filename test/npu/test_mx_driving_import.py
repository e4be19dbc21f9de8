"""mx_driving comes in through mmcv without what it does to the rest of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATE = """
import logging, sys, torch, torch_npu
def state():
    return (torch.Tensor.cuda, torch.nn.Module.cuda, torch.jit.script, torch.cuda.is_available, torch.Generator,
            torch.distributed.init_process_group, logging.getLogger().level, tuple(logging.getLogger().handlers))
before = state()
"""


def run(code):
    return subprocess.run([sys.executable, '-c', STATE + code], capture_output=True, text=True, check=True).stdout


def test_the_process_stays_as_it_was():
    assert 'True True' in run(
        'from mmcv.utils.mx_driving_import import import_mx_driving as load\n'
        'package = load()\n'
        'print(state() == before, load() is package and callable(package.multi_scale_deformable_attn))'
    )


def test_who_wants_the_redirection_still_gets_it():
    """And it is what would be noticed above."""
    assert 'True False' in run(
        'from mmcv.utils.mx_driving_import import import_mx_driving as load\n'
        'load()\n'
        'from torch_npu.contrib import transfer_to_npu\n'
        'redirected = torch.Tensor.cuda is torch.Tensor.npu and hasattr(transfer_to_npu, "torch_fn_white_list")\n'
        'print(redirected, state() == before)'
    )


@pytest.mark.release
def test_a_plain_import_does_not_leave_it_so():
    assert 'False' in run('import mx_driving; print(state() == before)')
