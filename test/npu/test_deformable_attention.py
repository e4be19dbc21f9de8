"""mx_driving's deformable attention on the emulated NPU, through mmcv, against mmcv's own PyTorch version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv.utils.mx_driving_import import import_mx_driving

import build
from recipe.models.deform_attn import multi_scale_deformable_attn

HERE = Path(__file__).resolve().parent
LEVELS = ((4, 6), (2, 3), (1, 2))


def operands(batch=2, heads=4, width=8, levels=3, points=4, queries=5, seed=0):
    """Value, shapes, first keys, locations (also outside of the map) and weights, on the CPU."""
    torch.manual_seed(seed)
    shapes = LEVELS[:levels]
    sizes = [height * columns for height, columns in shapes]
    starts = [sum(sizes[:level]) for level in range(levels)]
    locations = torch.rand(batch, queries, heads, levels, points, 2) * 1.4 - 0.2
    return [
        torch.randn(batch, sum(sizes), heads, width),
        torch.tensor(shapes),
        torch.tensor(starts),
        locations,
        torch.rand(batch, queries, heads, levels, points),
    ]


def run(function, tensors, device, dtype=torch.float32):
    """Output and gradients of value, locations and weights, on the CPU."""
    tensors = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in tensors]
    leaves = [x.requires_grad_() for x in tensors if x.is_floating_point()]
    out = function(*tensors)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out))
    return [x.detach().cpu().float() for x in (out, *(leaf.grad for leaf in leaves))]


def reference(value, shapes, starts, locations, weights):
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


@pytest.mark.parametrize(
    'sizes',
    [
        dict(),
        dict(batch=1, heads=8, width=32, levels=3, points=4, queries=7),  # the recipe's
        dict(batch=3, heads=1, width=16, levels=1, points=1, queries=1),
        dict(levels=2, points=8),
    ],
)
def test_forward_and_backward_are_those_of_pytorch(sizes):
    tensors = operands(**sizes)
    for npu, cpu in zip(run(multi_scale_deformable_attn, tensors, 'npu'), run(reference, tensors, 'cpu')):
        assert torch.allclose(npu, cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tensors = [x.to(dtype).float() if x.is_floating_point() else x for x in operands()]
    half = run(multi_scale_deformable_attn, tensors, 'npu', dtype)
    for npu, cpu in zip(half, run(reference, tensors, 'cpu')):
        assert torch.allclose(npu, cpu, rtol=2e-2, atol=5e-2)


def test_autocast_does_not_reach_the_operator():
    tensors = [x.npu() for x in operands()]
    plain = multi_scale_deformable_attn(*tensors)
    with torch.autocast('npu', dtype=torch.float16):
        assert torch.equal(multi_scale_deformable_attn(*tensors), plain)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: dict(shapes=t['shapes'].T.contiguous()), r'MultiScaleDeformableAttn: .*shapes int32 \[2, 3\]'),
        (lambda t: dict(weights=t['weights'][..., :2].contiguous()), r'weights float32 \[2, 5, 4, 3, 2\]'),
        (lambda t: dict(value=t['value'].int()), 'value: float16 or float32 tensor expected'),  # mx_driving says so
    ],
)
def test_operands_that_do_not_fit_are_refused(change, message):
    mx_driving = import_mx_driving()
    named = dict(zip(('value', 'shapes', 'starts', 'locations', 'weights'), operands()))
    named.update(change(named))
    with pytest.raises(RuntimeError, match=message):
        mx_driving.multi_scale_deformable_attn(*(x.npu() for x in named.values()))


@pytest.mark.parametrize(
    'change, message',
    [
        ('shapes=shapes.flip(1), value=value[:, 1:]', 'the levels hold 32 keys, value has 31'),
        pytest.param(
            'starts=starts.flip(0)', 'level 0 is 4 x 6 from key 30, expected from key 0', marks=pytest.mark.release
        ),
    ],
)
def test_levels_that_do_not_fit_are_refused(change, message):
    # They are values on the device, so the call has returned before; and an NPU that has failed stays failed.
    code = f"""
import torch, torch_npu, mx_driving
from test_deformable_attention import operands
value, shapes, starts, locations, weights = operands()
named = dict(value=value, shapes=shapes, starts=starts, locations=locations, weights=weights)
named.update({change})
mx_driving.multi_scale_deformable_attn(*(x.npu() for x in named.values()))
torch.npu.synchronize()
"""
    path = os.pathsep.join([str(HERE), str(HERE / 'emulator'), os.environ['PYTHONPATH']])
    env = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run([sys.executable, '-c', code], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode and message in done.stderr


@pytest.mark.parametrize('name', ['MultiScaleDeformableAttn', 'MultiScaleDeformableAttnGrad'])
def test_the_kernel_takes_the_dtypes_of_the_packages_table(name):
    (table,) = build.package('mx_driving').rglob('aic-ascend910b-ops-info.json')
    operator = json.loads(table.read_text())[name]
    inputs = [operator[f'input{i}'] for i in range(6) if f'input{i}' in operator]
    assert [x['dtype'] for x in inputs][:5] == ['float32', 'int32', 'int32', 'float32', 'float32']
    header = next(build.package('mx_driving').rglob('aclnn_multi_scale_deformable_attn.h')).read_text()
    grad = next(build.package('mx_driving').rglob('aclnn_multi_scale_deformable_attn_grad.h')).read_text()
    # The arguments that aclnn_deformable_attention.cpp takes, in the order of the package's headers.
    for text, names in (
        (header, ('value', 'valueSpatialShapes', 'out')),
        (grad, ('value', 'gradOutput', 'gradAttnWeightOut')),
    ):
        places = [text.index(f'const aclTensor *{word}') for word in names]
        assert places == sorted(places)
