"""Training equals upstream's: over many steps, from its checkpoints, and on two processes."""

import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from recipe.bench import model as bench_model
from recipe.bench import trainer as bench_trainer
from recipe.data import demo, prepare

# The demo's model at a quarter of its pixels and of its points.
SMALL = {'model.data_preprocessor.size': (64, 128), 'model.decode_head.train_cfg.num_points': 256}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Batches of two images each from the demo's data set."""
    root = tmp_path_factory.mktemp('scenes')
    demo.demo(root, demo.DemoSet(train=10, val=1, width=128, height=64, seed=0))
    prepare.prepare(root)
    inputs, labels = [], []
    for image in sorted(root.glob('leftImg8bit/train/*/*.png')):
        label = str(image).replace('leftImg8bit.png', 'gtFine_labelTrainIds.png').replace('leftImg8bit', 'gtFine')
        inputs.append(torch.from_numpy(np.array(Image.open(image))[..., ::-1].copy()).permute(2, 0, 1))
        labels.append(torch.from_numpy(np.array(Image.open(label)))[None])
    return [{'inputs': inputs[i : i + 2], 'labels': labels[i : i + 2]} for i in range(0, 10, 2)]


def train(trainer, batches, begin, end):
    """Train iterations ``begin`` to ``end`` on batches in turn; return the loss of each."""
    return [
        bench_trainer.iterate(trainer, batches[number % len(batches)], seed=number)['loss']
        for number in range(begin, end)
    ]


def save(trainer, folder):
    """Save a checkpoint as mmengine does; return its path."""
    trainer.runner.save_checkpoint(str(folder), 'upstream.pth', by_epoch=False)
    return str(folder / 'upstream.pth')


def group_count(trainer):
    return len(trainer.runner.optim_wrapper.optimizer.param_groups)


def stop_schedules(trainer):
    """A fault: learning rates stay what they are, at ten times their value."""
    for schedule in trainer.runner.param_schedulers:
        schedule.step = int
    for group in trainer.runner.optim_wrapper.optimizer.param_groups:
        group['lr'] *= 10


@pytest.mark.parametrize('steps', [10, pytest.param(50, marks=pytest.mark.release)])
def test_training_ends_at_upstreams_loss_and_a_fault_does_not(scenes, double_precision, steps):
    theirs, ours = (bench_trainer.Trainer(overrides=SMALL, upstream=upstream) for upstream in (True, False))
    for trainer in (theirs, ours):
        trainer.model.double()
    ours.model.load_state_dict(theirs.model.state_dict())
    assert group_count(ours) == 2  # with and without weight decay
    expected, found = (train(trainer, scenes, 0, steps) for trainer in (theirs, ours))
    assert expected[-1] < 0.8 * expected[0]  # it has learned something
    assert found == pytest.approx(expected, rel=1e-3)

    stop_schedules(ours)
    expected, found = (train(trainer, scenes, steps, steps + 3) for trainer in (theirs, ours))
    assert found != pytest.approx(expected, rel=1e-3)


def test_a_checkpoint_of_upstreams_trainer_is_resumed(scenes, tmp_path):
    trainer = bench_trainer.Trainer(overrides=SMALL, upstream=True)
    train(trainer, scenes, 0, 6)
    path = save(trainer, tmp_path)
    assert group_count(trainer) > 100
    resumed = bench_trainer.Trainer(overrides={**SMALL, 'load_from': path, 'resume': True}, seed=1)
    theirs, ours = (train(one, scenes, 6, 10) for one in (trainer, resumed))
    assert ours == pytest.approx(theirs, rel=1e-4)


def step_with_gradients(trainer, batch, seed):
    """Run an iteration; return its loss terms and the gradients before they are clipped."""
    kept = {}
    wrapper = trainer.runner.optim_wrapper
    step = wrapper.step

    def keeping(**kwargs):
        kept.update({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()})
        step(**kwargs)

    wrapper.step = keeping
    try:
        losses = bench_trainer.iterate(trainer, batch, seed)
    finally:
        del wrapper.step
    return {'losses': losses, 'gradients': kept}


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def run_rank(rank, port, upstream, weights, batches, folder):
    """Be a rank: train on its batch of each step, and leave what it saw of each in a file."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank))
    os.environ['LOCAL_RANK'] = str(rank)
    trainer = bench_trainer.Trainer(overrides=SMALL, upstream=upstream)
    trainer.model.load_state_dict(torch.load(weights))
    seen = [step_with_gradients(trainer, batch[rank], seed) for seed, batch in enumerate(batches)]
    torch.save(seen, folder / f'{upstream}_{rank}.pth')


def distributed_steps(upstream, weights, batches, folder):
    """Train two ranks and return what each rank saw in each step: [step][rank]."""
    torch.multiprocessing.spawn(run_rank, (free_port(), upstream, weights, batches, folder), nprocs=2)
    ranks = [torch.load(folder / f'{upstream}_{rank}.pth') for rank in range(2)]
    return list(zip(*ranks))


@pytest.mark.release
def test_two_processes_equal_upstreams_two_processes(tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(bench_trainer.Trainer(overrides=SMALL, upstream=True).model.state_dict(), weights)
    # other images and other numbers of classes on each rank
    classes = [[[[0, 1, 2], [5]], [list(range(19)), [3, 4]]], [[[7], [8, 9]], [[1, 2, 3, 4, 5], [0]]]]
    batches = [
        [bench_model.random_batch(2, 64, 128, seed=10 * step + rank, classes=classes[step][rank]) for rank in range(2)]
        for step in range(2)
    ]
    theirs, ours = (distributed_steps(upstream, weights, batches, tmp_path) for upstream in (True, False))
    for step in range(2):
        for rank in range(2):
            one, other = theirs[step][rank], ours[step][rank]
            assert bench_model.relative_difference(one['losses'], other['losses']) < 1e-5
            if step:  # from weights between which AdamW has widened what rounding left
                continue
            # A gradient that is zero but for rounding, as of a key's bias, has the rounding of the others.
            rounding = 1e-7 * max(value.norm() for value in one['gradients'].values())
            for name, gradient in one['gradients'].items():
                difference = (other['gradients'][name] - gradient).norm()
                assert difference <= 1e-4 * gradient.norm() + rounding, (name, difference, gradient.norm())
        # the ranks share their gradients, and not their losses
        assert bench_model.relative_difference(*(ours[step][rank]['gradients'] for rank in range(2))) == 0
        assert ours[step][0]['losses'] != ours[step][1]['losses']
