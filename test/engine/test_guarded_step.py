"""What leaves out a step: the flag of fused optimizers, torch_npu's too, a read, a gradient scaler; and who tells."""

import copy
import math
import uuid

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from recipe.engine.hooks.nonfinite_guard_hook import OVERFLOWS, SKIPPED, NonFiniteGuardHook
from recipe.engine.nonfinite import guarded_step
from recipe.engine.nonfinite.guarded_step import SpreadNonFinite
from recipe.engine.optimizers.guarded_adamw import guarded as guard
from recipe.engine.termination import TrainingEnded
from recipe.models.stacked_losses import parse_losses

pytestmark = pytest.mark.trains

BAD = 6  # iteration


class ToyModel(BaseModel):
    """One layer; its loss is NaN where its input is."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, inputs, labels, mode='tensor'):
        return {'loss': (self.fc(inputs) - labels).square().mean()}

    parse_losses = staticmethod(parse_losses)


class ToySet(torch.utils.data.Dataset):
    """The sixth and the ninth sample hold NaN."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(index)
        inputs = torch.randn(3, generator=random)
        return inputs * (math.nan if index + 1 in (BAD, 9) else 1), torch.randn(2, generator=random)


@OPTIM_WRAPPERS.register_module()
class ToyScaledWrapper(OptimWrapper):
    """What mmengine's AmpOptimWrapper does; that one refuses CPUs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu')

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.unscale_(self.optimizer)
        self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def make(folder, optim_wrapper, hook='DeferredRuntimeInfoHook', **guard):
    """A Runner of the toy with mmengine's own loop."""
    torch.manual_seed(0)
    return Runner(
        model=ToyModel(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=ToySet(),
            batch_size=1,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=11),
        optim_wrapper=copy.deepcopy(optim_wrapper),
        default_hooks=dict(
            runtime_info=dict(type=hook),
            nonfinite_guard=dict(type='NonFiniteGuardHook', **guard),
            logger=None,
            checkpoint=None,
        ),
        default_scope='mmseg',
        experiment_name=uuid.uuid4().hex,
        randomness=dict(seed=0),
        log_level='ERROR',
    )


def state(runner):
    """Parameters and the optimizer's state."""
    optimizer = runner.optim_wrapper.optimizer
    return copy.deepcopy([runner.model.state_dict(), optimizer.state_dict()['state']])


FUSED = dict(type='AdamW', lr=0.1, fused=True)
WRAPPERS = {
    'fused': dict(optimizer=FUSED, clip_grad=dict(max_norm=0.5)),
    'fused, not clipped': dict(optimizer=FUSED),
    'not fused': dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(max_norm=0.5)),
    'clipped by value': dict(optimizer=FUSED, clip_grad=dict(type='value', clip_value=0.1)),
    'accumulating': dict(optimizer=FUSED, clip_grad=dict(max_norm=0.5), accumulative_counts=2),
}


@pytest.mark.parametrize('hook', ['RuntimeInfoHook', 'DeferredRuntimeInfoHook'])
@pytest.mark.parametrize('name', WRAPPERS)
def test_no_optimizer_takes_a_step_that_is_not_finite(tmp_path, name, hook):
    """Also in mmengine's own loop, with models whose losses nobody matches."""
    runner = make(tmp_path, WRAPPERS[name], hook)
    before = []
    step = runner.train_loop.run_iter

    def keeping(data_batch):
        if runner.iter + 1 == BAD:
            before.extend(state(runner))
        step(data_batch)

    runner.train_loop.run_iter = keeping
    with pytest.raises(TrainingEnded, match='65'):
        runner.train()
    torch.testing.assert_close(state(runner), before, rtol=0, atol=0)
    assert (tmp_path / 'nonfinite' / f'iter_{BAD}_rank_0.pth').is_file()


@pytest.mark.parametrize('max_norm', [0.05, 100.0])
def test_a_step_that_clips_is_one_after_clipping(tmp_path, monkeypatch, max_norm):
    """As on a GPU: two steps are skipped, the others are those of clip_grad_norm_."""
    ends = []
    for kind in ('cpu', 'cuda'):
        monkeypatch.setattr(guarded_step, 'device_kind', lambda device, kind=kind: kind)
        runner = make(tmp_path / kind, {**WRAPPERS['fused'], 'clip_grad': dict(max_norm=max_norm)}, max_skips=2)
        runner.train()
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, NonFiniteGuardHook))
        assert hook._guard.clips_in_step == (kind == 'cuda')
        assert runner.message_hub.get_info(SKIPPED) == 2
        ends.append(state(runner))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


def test_skipped_steps_are_counted(tmp_path):
    runner = make(tmp_path, WRAPPERS['fused'], max_skips=2)
    runner.train()
    assert runner.message_hub.get_info(SKIPPED) == 2
    steps = [float(one['step']) for one in runner.optim_wrapper.optimizer.state.values()]
    assert steps == [9.0, 9.0]
    assert all(bool(parameter.isfinite().all()) for parameter in runner.model.parameters())


@pytest.mark.skipif(not hasattr(torch, 'amp') or not hasattr(torch.amp, 'GradScaler'), reason='a scaler for CPUs: 2.3')
def test_overflows_of_a_scaler_are_counted_and_do_not_end_the_training(tmp_path):
    wrapper = dict(type='ToyScaledWrapper', optimizer=FUSED, clip_grad=dict(max_norm=0.5))
    runner = make(tmp_path / 'two', wrapper)
    runner.train()
    assert runner.message_hub.get_info(OVERFLOWS) == 2
    assert runner.message_hub.get_info(SKIPPED) is None
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**16 / 4
    # the scale cannot be what is wrong if it has been lowered many times in a row
    with pytest.raises(TrainingEnded):
        make(tmp_path / 'one', wrapper, max_overflows=1).train()


class ToyCombinedAdamW(torch.optim.Optimizer):
    """torch_npu's fused AdamW in its names and structure, on a CPU; test/npu/test_optimizer.py has the real one."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad))
        self.combined_param_states_indexed_by_group = None
        self.is_params_grads_combined = False

    def _maybe_init_combined_params_and_grads(self):
        groups = [group['params'] for group in self.param_groups]
        self.combined_params_indexed_by_group = [[params[0].data, None] for params in groups]
        self.combined_grads_indexed_by_group = [[params[0].grad, None] for params in groups]
        self.grads_all_group_combined = [params[0].grad for params in groups] + [None]
        self.is_params_grads_combined = True

    def _maybe_init_combined_states(self):
        if self.combined_param_states_indexed_by_group is not None:
            return
        self.combined_param_states_indexed_by_group = []
        for group in self.param_groups:
            param = group['params'][0]
            moments = {'exp_avg': torch.zeros_like(param), 'exp_avg_sq': torch.zeros_like(param)}
            self.state[param].update(step=0, **moments)
            self.combined_param_states_indexed_by_group.append([{'step': 0, **moments}, {'step': 0}])

    def step(self, closure=None):
        self._maybe_init_combined_params_and_grads()
        self._maybe_init_combined_states()
        for index in range(len(self.param_groups)):
            self._group_step(index)

    def _group_step(self, index):
        raise AssertionError('not without a flag')


def test_torch_npu_s_step_is_left_out_by_the_flag():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3, 2))]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]

    def groups(params):
        return [dict(params=[params[0]], lr=0.1), dict(params=[params[1]], weight_decay=0.0)]

    guarded = guard(ToyCombinedAdamW(groups(ours)))
    plain = torch.optim.AdamW(groups(theirs))
    assert guarded.takes_found_inf
    for number in range(6):
        gradients = [torch.randn_like(param) for param in ours]
        bad = number in (0, 3)
        for param, gradient in zip(ours, gradients):
            param.grad = gradient / 0 if bad else gradient.clone()
        for param, gradient in zip(theirs, gradients):
            param.grad = gradient
        before = copy.deepcopy(ours)
        guarded.found_inf = torch.tensor(float(bad))
        guarded.step()
        guarded.found_inf = None
        if bad:
            guarded.retract_step_count()
            assert all(map(torch.equal, before, ours))
        else:
            plain.step()
        torch.testing.assert_close(ours, theirs)
    assert [one['step'] for one in guarded.state.values()] == [4, 4]


def test_a_flag_is_not_for_amsgrad():
    guarded = guard(ToyCombinedAdamW([nn.Parameter(torch.zeros(1))], amsgrad=True))
    assert not guarded.takes_found_inf


@pytest.mark.parametrize('value', [1.0, 0.0, -3.0, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not(value):
    term = torch.tensor(2.0, requires_grad=True)
    loss = term * 8 + value
    spread = SpreadNonFinite.apply(loss)
    (spread * 4).backward()
    assert torch.equal(spread, loss) or math.isnan(value)
    if math.isfinite(value):
        assert float(term.grad) == 4 * 8
    else:
        assert math.isnan(term.grad)
