"""What mmcv.patch promises: operators on demand, and one deformable attention for every device and precision."""

import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import deform_attn_dispatch, nms
from mmcv.ops.deform_attn_cpu_layer import CPUDeformableLayer
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
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


@given(seed=st.integers(0, 2**16), queries=st.integers(1, 9), heads=st.integers(1, 4), points=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_float32_equals_the_upstream_function_with_gradients(seed, queries, heads, points):
    torch.manual_seed(seed)
    inputs = attention_inputs(queries=queries, heads=heads, points=points)
    ours = [t.clone().requires_grad_() for t in inputs]
    theirs = [t.clone().requires_grad_() for t in inputs]
    out = deform_attn_dispatch.multi_scale_deformable_attn(ours[0], SHAPES, STARTS, *ours[1:])
    expected = multi_scale_deformable_attn_pytorch(theirs[0], SHAPES, *theirs[1:])
    # Levels are added one after the other instead of all samples at once.
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(out.square().sum(), ours)
    expected_grads = torch.autograd.grad(expected.square().sum(), theirs)
    for grad, expected_grad in zip(grads, expected_grads):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(dtype):
    value, locations, weights = attention_inputs(dtype)
    out = MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)
    expected = multi_scale_deformable_attn_pytorch(value.float(), SHAPES, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_module_runs_under_autocast_and_trains():
    module = MultiScaleDeformableAttention(embed_dims=16, num_heads=4, num_levels=2, batch_first=True)
    query = torch.randn(2, 30, 16)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(query, reference_points=torch.rand(2, 30, 2, 2), spatial_shapes=SHAPES, level_start_index=STARTS)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_moves_no_sample(monkeypatch, dtype):
    module = MultiScaleDeformableAttention(embed_dims=16, num_heads=4, num_levels=2, batch_first=True)
    module.value_proj.register_forward_hook(lambda *_: None)  # without autocast too the projections run one by one
    torch.nn.init.normal_(module.sampling_offsets.weight)
    query = torch.randn(2, 30, 16)
    places = []

    def attend(value, shapes, starts, locations, *rest):
        places.append(locations)
        return value.new_zeros(2, 30, 16)

    monkeypatch.setattr(deform_attn_dispatch, 'multi_scale_deformable_attn', attend)
    arguments = dict(reference_points=torch.rand(2, 30, 2, 2), spatial_shapes=SHAPES, level_start_index=STARTS)
    for enabled in (False, True):
        with torch.autocast('cpu', dtype, enabled=enabled):
            module(query, **arguments)
    assert places[0].dtype == torch.float32
    assert torch.equal(places[0], places[1])


def layer_results(module, tensors, **options):
    query, key, reference = (t.clone().requires_grad_() for t in tensors)
    out = module(
        query, value=key, reference_points=reference, spatial_shapes=SHAPES, level_start_index=STARTS, **options
    )
    wanted = [query, key, *module.parameters()]
    return [out, *torch.autograd.grad((out * torch.arange(out.numel()).view(out.shape).cos()).sum(), wanted)]


@given(
    seed=st.integers(0, 2**16), queries=st.integers(1, 9), batch_first=st.booleans(), ratio=st.sampled_from([0.5, 1])
)
@settings(max_examples=25, deadline=None)
def test_a_layer_on_cpu_equals_its_modules_with_gradients(seed, queries, batch_first, ratio):
    torch.manual_seed(seed)
    module = MultiScaleDeformableAttention(
        16, num_heads=4, num_levels=2, num_points=3, dropout=0.0, batch_first=batch_first, value_proj_ratio=ratio
    ).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    keys = int((SHAPES[:, 0] * SHAPES[:, 1]).sum())
    tensors = [torch.randn(2, count, 16).double() for count in (queries, keys)]
    tensors = [*(t if batch_first else t.transpose(0, 1) for t in tensors), torch.rand(2, queries, 2, 2).double()]
    apply = CPUDeformableLayer.apply
    with mock.patch.object(CPUDeformableLayer, 'apply', side_effect=apply) as layer:
        found = layer_results(module, tensors)
        layer.assert_called_once()
        listener = module.output_proj.register_forward_hook(lambda *_: None)
        expected = layer_results(module, tensors)
        listener.remove()
        mask = torch.zeros(2, keys, dtype=torch.bool)
        masked = layer_results(module, tensors, key_padding_mask=mask)
        layer.assert_called_once()
    for others in (expected, masked):
        for one, other in zip(found, others):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_npu_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mx_driving', None)  # as if it were not installed
    attention, dtypes = deform_attn_dispatch._implementation('npu')
    assert dtypes == (torch.float32,)
    value, locations, weights = attention_inputs()
    with pytest.raises(ImportError, match='mx_driving=='):
        attention(value, SHAPES, STARTS, locations, weights, 64)
