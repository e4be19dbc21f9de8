"""What mmcv.patch promises: operators on demand, and deformable attention without them and on an NPU."""

import subprocess
import sys
import types

import pytest
import torch
from mmcv.ops import nms
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch, mx_driving_deformable_attn
from mmcv.utils import collect_env
from mmcv.utils.ext_loader import check_ops_exist, load_ext
from mmcv.utils.lazy_ext import LazyExtension

SHAPES = torch.tensor([[6, 4], [3, 2]])
STARTS = torch.tensor([0, 24])

needs_no_ops = pytest.mark.skipif(check_ops_exist(), reason='mmcv was built with its compiled operators')


def attention_inputs(dtype=torch.float32, queries=5, heads=2, dim=4, points=3):
    """Return value, sampling locations and attention weights, the last summing to 1."""
    value = torch.randn(2, 30, heads, dim)
    locations = torch.rand(2, queries, heads, 2, points, 2)
    weights = torch.rand(2, queries, heads, 2 * points).softmax(-1).view(2, queries, heads, 2, points)
    return value.to(dtype), locations, weights


@needs_no_ops
def test_importing_every_operator_module_needs_no_extension():
    code = 'import sys, mmcv.ops; assert "mmcv._ext" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


@needs_no_ops
def test_an_operator_that_was_not_built_is_named_when_called():
    with pytest.raises(NotImplementedError, match=r'"nms".*MMCV_WITH_OPS=1'):
        nms(torch.rand(3, 4), torch.rand(3), 0.5)


@needs_no_ops
def test_environment_report_works_without_operators():
    assert collect_env()['MMCV Compiler'] == 'n/a'


def test_a_function_that_was_not_declared_is_an_attribute_error():
    with pytest.raises(AttributeError, match='bogus'):
        _ = load_ext('_ext', ['nms']).bogus


def test_a_built_extension_is_found_at_the_first_call():
    # Any module with functions will do for an extension.
    assert LazyExtension('math', ['sqrt']).sqrt(9.0) == 3.0
    with pytest.raises(NotImplementedError, match='built without it'):
        LazyExtension('math', ['nms']).nms()


def test_an_extension_that_cannot_be_loaded_says_why(tmp_path, monkeypatch):
    (tmp_path / 'broken_ext.py').write_text('raise ImportError("undefined symbol: _ZN3c10")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotImplementedError, match='undefined symbol'):
        LazyExtension('broken_ext', ['nms']).nms()


def test_a_missing_package_inside_an_extension_is_not_mistaken_for_a_missing_extension(tmp_path, monkeypatch):
    (tmp_path / 'needy_ext.py').write_text('import package_that_is_not_there')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='package_that_is_not_there'):
        LazyExtension('needy_ext', ['nms']).nms()


def test_npu_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mx_driving', None)  # as if it were not installed
    value, locations, weights = attention_inputs()
    with pytest.raises(ImportError, match='mx_driving=='):
        mx_driving_deformable_attn(value, SHAPES, STARTS, locations, weights)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_an_npu_samples_in_float32(monkeypatch, dtype):
    def operator(value, shapes, starts, locations, weights):
        assert value.dtype == locations.dtype == weights.dtype == torch.float32
        return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)

    monkeypatch.setitem(sys.modules, 'mx_driving', types.SimpleNamespace(multi_scale_deformable_attn=operator))
    value, locations, weights = attention_inputs(dtype)
    out = mx_driving_deformable_attn(value, SHAPES, STARTS, locations, weights)
    assert out.dtype == dtype
    expected = multi_scale_deformable_attn_pytorch(value.float(), SHAPES, locations, weights)
    torch.testing.assert_close(out, expected.to(dtype))
