"""Mixed precision: what stays in float32, how far the losses are from float32's, and steps that overflow."""

import types

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from recipe.bench import model as bench_model
from recipe.bench import trainer as bench_trainer
from recipe.engine import precision
from recipe.engine.optimizers import fp16_optim_wrapper
from recipe.engine.optimizers.bf16_optim_wrapper import Bf16OptimWrapper

pytestmark = pytest.mark.trains

# Relative difference from float32 that most loss terms stay under, on the model of the demo, freshly initialised.
NEAR = {'bf16': 2e-2, 'fp16': 3e-3}
HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}


def trainer(amp, **overrides):
    """The demo's trainer with its small model made smaller."""
    return bench_trainer.Trainer(overrides={'model.decode_head.train_cfg.num_points': 256, **overrides}, amp=amp)


@pytest.fixture(scope='module')
def batch():
    return bench_model.random_batch(2, 64, 128, seed=1)


@pytest.fixture(scope='module')
def exact(batch):
    """Loss terms in float32."""
    return bench_trainer.iterate(trainer('off'), batch, seed=0)


@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_a_step_is_near_float32_and_what_has_to_be_float32_is(amp, batch, exact, monkeypatch):
    from recipe.models import deform_attn, loss

    one = trainer(amp)
    seen = {}

    def note(name, *tensors):
        seen.setdefault(name, set()).update(tensor.dtype for tensor in tensors)

    def listen(module, name, call):
        original = getattr(module, name)

        def listening(*args, **kwargs):
            result = original(*args, **kwargs)
            call(args, result)
            return result

        monkeypatch.setattr(module, name, listening)

    listen(loss, 'cost_matrix', lambda args, cost: note('matching', cost, *args[1:4]))
    listen(loss, 'sample', lambda args, result: note('points', *args[:2], result))
    listen(loss, '_point_losses', lambda args, result: note('mask and dice loss', *args[1:3], *result))
    listen(loss, '_class_loss', lambda args, result: note('class loss', args[1], result))

    def attend(value, shapes, starts, locations, *rest):
        note('coordinates', locations)
        note('values', value)
        return original_attention(value, shapes, starts, locations, *rest)

    original_attention = deform_attn.multi_scale_deformable_attn
    monkeypatch.setattr(deform_attn, 'multi_scale_deformable_attn', attend)
    for module in one.model.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.register_forward_hook(lambda module, args, result: note('norms', result))
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, result: note('linear layers', result))

    losses = bench_trainer.iterate(one, batch, seed=0)

    assert {name: dtypes for name, dtypes in seen.items() if dtypes != {torch.float32}} == {
        'values': {HALF[amp]},
        # sampling offsets are the ones in float32
        'linear layers': {HALF[amp], torch.float32},
    }
    assert {'matching', 'points', 'mask and dice loss', 'class loss', 'coordinates', 'norms'} <= set(seen)
    off = {name: abs(losses[name] - exact[name]) / abs(exact[name]) for name in exact if 'loss' in name}
    # Rounding may choose another uncertain point, which moves one term further than all others.
    assert sorted(off.values())[len(off) // 2] < NEAR[amp] and max(off.values()) < 0.1, off
    assert off['loss'] < 3 * NEAR[amp], off
    assert any(losses[name] != exact[name] for name in exact)  # it did run in half precision
    for name, parameter in one.model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is None or (parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all())
    assert hasattr(one.runner.optim_wrapper, 'loss_scaler') == (amp == 'fp16')


def test_bf16_wrapper_computes_in_bfloat16_and_steps_in_float32():
    model = nn.Linear(4, 4)
    before = model.weight.clone()
    wrapper = Bf16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        out = model(torch.randn(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)


def test_norms_without_autocast_are_left_alone():
    from recipe.engine.optimizers.float32_norms import keep_norms_in_float32

    keep_norms_in_float32('cpu')
    x = torch.randn(2, 8, 4).bfloat16()
    assert nn.functional.layer_norm(x, (4,)).dtype == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        normed = nn.functional.layer_norm(x, (4,), eps=1e-3)
        grouped = nn.functional.group_norm(x, 2)
    torch.testing.assert_close(normed, nn.functional.layer_norm(x.float(), (4,), eps=1e-3), rtol=0, atol=0)
    torch.testing.assert_close(grouped, nn.functional.group_norm(x.float(), 2), rtol=0, atol=0)


def wrapper_of(model, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return OPTIM_WRAPPERS.build(dict(type='Fp16OptimWrapper', optimizer=optimizer, **settings))


@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0)])
def test_a_step_that_overflows_float16_is_left_out_and_halves_the_scale(clip):
    model = nn.Linear(4, 4)
    wrapper = wrapper_of(model, loss_scale=dict(init_scale=2.0**16), clip_grad=clip)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.float16
    wrapper.update_params((out * 60000.0).float().sum())  # the gradient of the layer is float16 and does not fit
    assert wrapper.loss_scaler.get_scale() == 2.0**15
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    wrapper.update_params(out.float().mean())
    assert wrapper.loss_scaler.get_scale() == 2.0**15
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_scale_is_part_of_the_checkpoint():
    model = nn.Linear(2, 2)
    wrapper = wrapper_of(model, loss_scale=dict(init_scale=8.0))
    other = wrapper_of(nn.Linear(2, 2))
    wrapper.loss_scaler.scale(torch.ones(1))  # made when first used
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == 8.0


def test_a_fixed_scale_stays(monkeypatch):
    model = nn.Linear(2, 2)
    wrapper = wrapper_of(model, loss_scale=4.0)
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 2))
    wrapper.update_params(out.float().mean())
    assert wrapper.loss_scaler.get_scale() == 4.0
    monkeypatch.delattr(fp16_optim_wrapper.torch.amp, 'GradScaler')
    with pytest.raises(RuntimeError, match=r'needs torch 2\.3'):
        wrapper_of(model)


@pytest.mark.parametrize('allowed', [False, True])
def test_tf32_and_hf32_follow_the_config(monkeypatch, allowed):
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    try:
        precision.set_tf32('cuda', allowed)
        assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == allowed
    finally:
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
    npu = types.SimpleNamespace(matmul=types.SimpleNamespace(), conv=types.SimpleNamespace())
    monkeypatch.setattr(torch, 'npu', npu, raising=False)
    precision.set_tf32('npu', allowed)
    assert npu.matmul.allow_hf32 == npu.conv.allow_hf32 == allowed
