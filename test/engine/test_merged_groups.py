"""The recipe's optimizer has few parameter groups, and takes up the state of one that had many."""

import copy

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR, PolyLR
from torch import nn

from recipe.engine.optimizers import merged_adamw  # noqa: F401  registers it
from recipe.engine.optimizers.merged_groups import adopt_checkpoint

PARAMWISE = dict(
    norm_decay_mult=0.0,
    custom_keys={
        'backbone': dict(lr_mult=0.1, decay_mult=1.0),
        'backbone.norm': dict(lr_mult=0.1, decay_mult=0.0),
        'embed': dict(lr_mult=1.0, decay_mult=0.0),
    },
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.backbone = nn.ModuleDict({'fc': nn.Linear(4, 4), 'norm': nn.LayerNorm(4), 'fc2': nn.Linear(4, 4)})
        self.head = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)])

    def forward(self, x):
        x = self.backbone['fc2'](self.backbone['norm'](self.backbone['fc'](x + self.embed.weight[0]))).relu()
        for layer in self.head:
            x = layer(x)
        return x


def make(kind, paramwise=PARAMWISE, seed=0, **options):
    """Return a model, its optimizer wrapper and two schedules; each call gives the same weights."""
    torch.manual_seed(seed)
    model = Model().double()  # so that rounding, which Adam widens, is no matter
    optimizer = dict(type=kind, lr=1e-2, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, **options)
    wrapper = DefaultOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=0.1)), copy.deepcopy(paramwise)
    )(model)
    schedules = [
        LinearLR(wrapper, start_factor=0.1, begin=0, end=4, by_epoch=False),
        PolyLR(wrapper, eta_min=1e-4, power=0.9, begin=4, end=8, by_epoch=False),
        CosineAnnealingLR(wrapper, T_max=10, begin=8, end=18, by_epoch=False),
    ]
    return model, wrapper, schedules


def train(model, wrapper, schedules, begin, end):
    """Train some iterations on data that depend on their numbers alone; return what the log calls lr."""
    logged = []
    for number in range(begin, end):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number)).double()
        logged.append({name: values[0] for name, values in wrapper.get_lr().items()})
        wrapper.update_params(model(x).square().mean())
        for schedule in schedules:
            schedule.step()
    return logged


def checkpoint_of(wrapper, schedules):
    """Return what mmengine saves of an optimizer and its schedules."""
    return copy.deepcopy(
        dict(optimizer=wrapper.state_dict(), param_schedulers=[schedule.state_dict() for schedule in schedules])
    )


def resume(checkpoint, model, wrapper, schedules):
    """Do what mmengine and AtomicCheckpointHook do to resume."""
    adopt_checkpoint(checkpoint, wrapper)
    wrapper.load_state_dict(checkpoint['optimizer'])
    for schedule, state in zip(schedules, checkpoint['param_schedulers']):
        schedule.load_state_dict(state)


def assert_same(one, other):
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=name)


def test_groups_are_those_of_equal_settings():
    model, wrapper, _ = make('MergedAdamW')
    groups = wrapper.optimizer.param_groups
    found = sorted((group['initial_lr'], group['weight_decay']) for group in groups)
    assert found == [(1e-3, 0.0), (1e-3, 0.05), (1e-2, 0.0), (1e-2, 0.05)]
    grouped = [parameter for group in groups for parameter in group['params']]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))


def test_training_and_logged_rates_equal_those_of_a_group_each():
    ours, theirs = make('MergedAdamW'), make('AdamW')
    assert len(theirs[1].optimizer.param_groups) == len(list(theirs[0].parameters()))
    assert train(*ours, 0, 18) == train(*theirs, 0, 18)
    assert_same(ours[0], theirs[0])


@pytest.mark.parametrize('fused', [False, True])  # as upstream wrote it, and as this recipe did before it merged
def test_a_checkpoint_with_a_group_each_is_taken_up(fused):
    unbroken, resumed = make('AdamW', fused=fused), make('MergedAdamW', seed=1)
    train(*unbroken, 0, 9)
    checkpoint = checkpoint_of(*unbroken[1:])
    resumed[0].load_state_dict(unbroken[0].state_dict())
    resume(checkpoint, *resumed)
    assert train(*resumed, 9, 18) == train(*unbroken, 9, 18)
    assert_same(resumed[0], unbroken[0])
    # the fused step is not lost to a checkpoint that was written without it
    assert all(group['fused'] for group in resumed[1].optimizer.param_groups) or torch.__version__ < '2.4'


def test_its_own_checkpoint_is_taken_up():
    unbroken, resumed = make('MergedAdamW'), make('MergedAdamW', seed=1)
    train(*unbroken, 0, 9)
    checkpoint = checkpoint_of(*unbroken[1:])
    resumed[0].load_state_dict(unbroken[0].state_dict())
    resume(checkpoint, *resumed)
    assert train(*resumed, 9, 18) == train(*unbroken, 9, 18)
    assert all(torch.equal(*pair) for pair in zip(resumed[0].parameters(), unbroken[0].parameters()))


def test_without_paramwise_options_nothing_changes():
    ours, theirs = make('MergedAdamW', paramwise=None), make('AdamW', paramwise=None)
    train(*theirs, 0, 3)
    ours[0].load_state_dict(theirs[0].state_dict())
    resume(checkpoint_of(*theirs[1:]), *ours)
    train(*theirs, 3, 6)
    train(*ours, 3, 6)
    assert_same(ours[0], theirs[0])


def test_a_checkpoint_of_other_settings_is_refused():
    other = copy.deepcopy(PARAMWISE)
    other['custom_keys']['backbone.fc2'] = dict(lr_mult=0.5)
    trained = make('AdamW', paramwise=other)
    train(*trained, 0, 2)
    with pytest.raises(ValueError, match=r'differ in initial_lr, lr.*paramwise_cfg'):
        resume(checkpoint_of(*trained[1:]), *make('MergedAdamW'))
