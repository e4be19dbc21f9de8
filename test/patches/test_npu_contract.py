"""What patches and tools use of torch_npu and mx_driving exists, with these arguments, in each stack's packages."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

import npu_packages
from npu_packages import ContractError, Packages
from npu_uses import Call, Use, find_uses

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = ('mmcv', 'mmdetection', 'mmsegmentation')
STACKS = ('npu-2.1', 'npu-2.7', pytest.param('npu-2.8', marks=pytest.mark.release))


@functools.lru_cache(maxsize=None)
def packages(stack: str) -> Packages:
    wanted = npu_packages.requirements(ROOT / 'requirements' / f'{stack}.no-deps.txt')
    assert len(wanted) == len(npu_packages.PACKAGES)
    return Packages(npu_packages.download(wanted, ROOT / '.npu' / 'wheels' / stack))


@pytest.fixture(params=STACKS)
def stack(request) -> Packages:
    return packages(request.param)


@functools.lru_cache(maxsize=None)
def uses() -> tuple:
    """All uses in the files that the patches touch, in recipe/ and in configs/."""
    files = sorted([*(ROOT / 'recipe').rglob('*.py'), *(ROOT / 'configs').rglob('*.py')])
    for name in CHECKOUTS:
        checkout = ROOT / name
        if not (checkout / '.git').is_dir():
            pytest.skip(f'no checkout of {name}; bash tools/setup.sh makes it')
        command = ['git', 'diff', '--diff-filter=AM', '--name-only', 'refs/recipe/base', 'HEAD', '--', '*.py']
        touched = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.split()
        files += [checkout / path for path in touched]
    return tuple(use for file in files for use in find_uses(file, str(file.relative_to(ROOT))))


def faults(stack: Packages, found) -> list:
    out = []
    for use in found:
        try:
            stack.check(use)
        except ContractError as fault:
            out.append(str(fault))
    return out


def test_everything_that_is_used_exists_and_takes_these_arguments(stack):
    assert faults(stack, uses()) == []


def test_the_uses_are_found():
    names = {use.name for use in uses()}
    assert {'mx_driving.multi_scale_deformable_attn', 'torch_npu.optim.NpuFusedAdamW'} <= names
    assert {'torch.npu.set_compile_mode', 'torch.npu.config.allow_internal_format'} <= names


@pytest.mark.parametrize('config', sorted((ROOT / 'configs').rglob('*.py')), ids=lambda path: path.name)
def test_settings_of_a_config_reach_the_packages_through_a_class_that_passes_them_on(stack, config):
    """Such as the optimizer's: DeviceAdamW(**kwargs) hands its arguments to NpuFusedAdamW."""
    passed_on = {use.owner: use for use in uses() if use.call and use.call.more and use.owner}
    assert 'DeviceAdamW' in passed_on
    seen = []

    def look(node):
        if isinstance(node, dict):
            use = passed_on.get(node.get('type'))
            if use is not None:
                seen.append(node['type'])
                settings = tuple(key for key in node if key != 'type')
                yield Use(use.name, str(config.name), Call(use.call.positional, settings))
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
            yield from look(child)

    assert faults(stack, look(Config.fromfile(config)._cfg_dict.to_dict())) == []
    assert 'DeviceAdamW' in seen


def check(stack: Packages, tmp_path: Path, source: str) -> list:
    """Faults of a source."""
    (tmp_path / 'source.py').write_text(source)
    return faults(stack, find_uses(tmp_path / 'source.py', 'source.py'))


RIGHT = """
import torch
import torch_npu
from torch_npu.optim import NpuFusedAdamW as Fused
from torch import npu
import mx_driving as driving

def right(x, group):
    attention = driving.multi_scale_deformable_attn
    attention(x, x, x, x, x)
    torch_npu.npu_fusion_attention(x, x, x, 8, input_layout='BNSD', atten_mask=x, scale=0.5)
    torch.ops.npu.npu_confusion_transpose(x, perm=[0, 1], shape=[2, 2], transpose_first=True)
    Fused(group, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    npu.set_device(0)
    torch.npu.amp.GradScaler()
    torch_npu.profiler.profile(with_stack=True)
    torch.npu.matmul.allow_hf32 = False
    getattr(torch_npu, 'not_there', None)
    torch_npu.utils.npu_combine_tensors([x])
    return torch.npu.memory_allocated(), torch.npu_is_something_else
"""


def test_right_source_passes(stack, tmp_path):
    assert check(stack, tmp_path, RIGHT) == []


@pytest.mark.parametrize(
    ('source', 'fault'),
    [
        ('import torch\ntorch.npu.set_compile_mod(jit_compile=False)', 'torch_npu.npu has no set_compile_mod'),
        ('import torch\ntorch.npu.set_compile_mode(jit=False)', 'has no argument jit; it has jit_compile'),
        ('import torch\ntorch.npu.set_compile_mode(False, 1)', 'takes 1 positional arguments at most, not 2'),
        ('import torch\ntorch.npu.config.allow_format = False', 'torch_npu.npu.config has no allow_format'),
        ('import torch\na = torch.npu.config.allow_internal_format', 'has no allow_internal_format'),
        ('from torch_npu.optim import FusedAdamW', 'torch_npu.optim has no FusedAdamW'),
        ('import torch_npu.optimizers', 'torch_npu has no optimizers'),
        ('from torch_npu.optim import NpuFusedAdamW as A\nA([], fused=True)', 'has no argument fused'),
        ('from torch_npu.optim import NpuFusedAdamW as A\nA([], 1e-3, lr=1e-3)', 'gets lr twice'),
        ('from torch_npu.optim import NpuFusedAdamW as A\nA(lr=1e-3)', 'lacks params'),
        ('import torch_npu\ntorch_npu.npu_fusion_atention', 'torch_npu has no npu_fusion_atention'),
        ('import torch_npu\ntorch_npu.npu_fusion_attention(1, 2, 3, 8)', 'lacks input_layout'),
        ('import torch_npu\ntorch_npu.npu_fusion_attention(1, 2, 3, 8, "BSH", mask=1)', 'has no argument mask'),
        ('import torch\ntorch.ops.npu.npu_nothing(1)', 'no operator of that name is registered'),
        ('import mx_driving\nmx_driving.multi_scale_attn(1)', 'mx_driving has no multi_scale_attn'),
        ('import mx_driving\nmx_driving.multi_scale_deformable_attn(1, 2, 3, 4)', 'lacks attention_weights'),
        ('import mx_driving\nmx_driving.multi_scale_deformable_attn(1, 2, 3, 4, 5, 6)', 'takes 5 positional'),
        ('import mx_driving\nmx_driving.multi_scale_deformable_attn(value=1)', 'has no argument value'),
        ('import mx_driving\nknn = getattr(mx_driving, "nearest")', 'mx_driving has no nearest'),
        ('from mx_driving._C import nothing_of_that_name', 'mx_driving._C has no nothing_of_that_name'),
        ('import torch_npu\ntorch_npu.npu()', 'is called, and it is a module'),
    ],
)
def test_wrong_source_is_noticed(tmp_path, source, fault):
    found = check(packages('npu-2.1'), tmp_path, source)
    assert len(found) == 1
    assert found[0].startswith('source.py:')
    assert fault in found[0]
