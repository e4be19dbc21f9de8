"""Losses and the gradient's norm are read when somebody reads the log, and the log stays what it was."""

import copy
import json
import pickle
import uuid

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from recipe.bench import counts as bench_counts
from recipe.engine.deferred_scalars import DeferredHistoryBuffer, DeferredScalars
from recipe.models.stacked_losses import parse_losses

pytestmark = pytest.mark.trains


class ToyModel(BaseModel):
    """A model with three terms, one of which is no loss."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, inputs, labels, mode='tensor'):
        out = self.fc(inputs)
        error = (out - labels).square()
        return {'loss_a': error, 'a.loss_b': [error.mean(), out.abs()], 'acc': out.detach()[:1].mean()}

    parse_losses = staticmethod(parse_losses)


class ToySet(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(index)
        return torch.randn(3, generator=random), torch.randn(2, generator=random)


def train(folder, hook, resume=False, max_iters=12):
    """Train a toy with mmengine's loop; return the Runner."""
    torch.manual_seed(0)
    runner = Runner(
        model=ToyModel(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=ToySet(),
            batch_size=2,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=0.5)),
        param_scheduler=dict(type='PolyLR', end=12, by_epoch=False),
        default_hooks=dict(
            runtime_info=dict(type=hook),
            logger=dict(type='LoggerHook', interval=4),
            checkpoint=dict(type='CheckpointHook', interval=6, by_epoch=False),
        ),
        log_processor=dict(
            window_size=3, by_epoch=False, custom_cfg=[dict(data_src='loss_a', method_name='max', window_size=4)]
        ),
        default_scope='mmseg',
        experiment_name=uuid.uuid4().hex,
        resume=resume,
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    runner.train()
    return runner


def logged(folder):
    """Return what was logged, without times."""
    lines = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if 'time' not in key} for line in lines]


def test_the_log_is_that_of_mmengine(tmp_path):
    for name, hook in (('theirs', 'RuntimeInfoHook'), ('ours', 'DeferredRuntimeInfoHook')):
        train(tmp_path / name, hook)
    assert len(logged(tmp_path / 'theirs')) == 3
    assert logged(tmp_path / 'ours') == logged(tmp_path / 'theirs')
    assert [*logged(tmp_path / 'ours')[0]] == [*logged(tmp_path / 'theirs')[0]]  # in the same order

    # and so are the histories that a checkpoint holds
    theirs, ours = (
        torch.load(tmp_path / name / 'iter_12.pth', weights_only=False)['message_hub'] for name in ('theirs', 'ours')
    )
    assert ours['log_scalars'].keys() == theirs['log_scalars'].keys()
    assert ours['resumed_keys'] == theirs['resumed_keys']
    for name, history in ours['log_scalars'].items():
        assert type(history) is HistoryBuffer
        if 'time' not in name:
            for one, other in zip(history.data, theirs['log_scalars'][name].data):
                np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_resumed_run_goes_on_with_the_histories(tmp_path):
    train(tmp_path, 'DeferredRuntimeInfoHook', max_iters=6)
    hub = train(tmp_path, 'DeferredRuntimeInfoHook', resume=True).message_hub
    assert len(hub.get_scalar('train/loss_a').data[0]) == len(hub.get_scalar('train/lr').data[0]) == 12


def test_between_two_lines_of_the_log_nothing_is_read(tmp_path):
    counts = {}
    for hook in ('RuntimeInfoHook', 'DeferredRuntimeInfoHook'):
        runner = train(tmp_path / hook, hook)
        loop = runner.train_loop
        batch = next(loop.dataloader_iterator)
        with bench_counts.counting() as counted:
            loop.run_iter(batch)  # iteration 13: no line is due
        counts[hook] = counted.synchronisations[bench_counts.READ]
    assert counts == {'RuntimeInfoHook': 5, 'DeferredRuntimeInfoHook': 0}  # loss, its three terms, the norm


def make_hub(name):
    """Return a new hub and a deferral on it."""
    hub = MessageHub.get_instance(f'{name}-{uuid.uuid4().hex}')
    return hub, DeferredScalars(hub, limit=5)


def test_reading_any_history_reads_all_in_order():
    hub, scalars = make_hub('order')
    for number in range(3):
        scalars.update({'train/a': torch.tensor(float(number)), 'train/b': torch.tensor(10.0 + number), 'train/c': 1.5})
    with bench_counts.counting() as counted:
        assert hub.get_scalar('train/b').current() == 12.0
        assert hub.get_scalar('train/a').data[0].tolist() == [0.0, 1.0, 2.0]
    assert sum(counted.synchronisations.values()) == 1
    assert hub.get_scalar('train/c').mean(2) == 1.5


def test_pending_values_are_bounded():
    hub, scalars = make_hub('bound')
    for number in range(12):
        scalars.update({'train/a': torch.tensor(float(number))})
        assert len(scalars._pending) < 5
    assert hub.get_scalar('train/a').data[0].tolist() == list(range(12))


def test_values_keep_no_graph():
    hub, scalars = make_hub('graph')
    scalars.update({'train/a': torch.ones((), requires_grad=True) * 2})
    assert all(vector.grad_fn is None for _, vector in scalars._pending)
    assert hub.get_scalar('train/a').current() == 2


@pytest.mark.parametrize('length', [0, 1, 63, 64, 200])
def test_a_history_is_mmengines_whatever_its_length(length):
    history, plain = DeferredHistoryBuffer(), HistoryBuffer()
    history.max_length = plain.max_length = 150
    for number in range(length):
        history.update(float(number), 1 + number % 3)
        plain.update(float(number), 1 + number % 3)
    for one in (history, copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        for ours, theirs in zip(one.data, plain.data):
            np.testing.assert_array_equal(ours, theirs)
        if length:
            assert one.mean(7) == plain.mean(7) and one.max() == plain.max() and one.min(3) == plain.min(3)
            assert one.statistics('current') == plain.current()
    with pytest.raises(TypeError):
        history.update('1')


def test_parsed_losses_are_those_of_mmengine():
    torch.manual_seed(0)
    values = {'decode.loss_a': torch.rand(2, 3), 'loss_b': [torch.rand(()), torch.rand(4)], 'acc': torch.rand(1)}
    total, scalars = parse_losses(values)
    expected_total, expected = BaseModel.parse_losses(None, values)
    torch.testing.assert_close(total, expected_total)
    assert [*scalars] == [*expected]
    for name, value in expected.items():
        torch.testing.assert_close(scalars[name], value.reshape(()))
    torch.testing.assert_close(scalars.stacked, torch.stack([*scalars.values()]))
    with pytest.raises(TypeError, match='loss_c'):
        parse_losses({'loss_c': 1.0})
