"""Training equals the unpatched upstream's: step by step, from its checkpoints, and on two processes."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image

from recipe.bench import sides_model, sides_train
from recipe.bench.sides import OURS, UPSTREAM, Side, Sides
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
        sides_train.iterate(trainer, batches[number % len(batches)], seed=number)['loss']
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


def use_double_precision():
    """Have a side compute in float64 from now on.

    In float32 a rounding error grows to some permille of the loss within fifty steps, since matching and the choice of
    points are not continuous. In float64 what remains is a difference of the mathematics.
    """
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # by which masks and images are turned into floats


@pytest.fixture(scope='module')
def double_sides():
    """Sides of their own, since the precision is set for the whole process."""
    with Sides(threads=1) as pair:
        pair.call(use_double_precision)
        yield pair


def build_in_double(*args, **kwargs):
    """Build a trainer that computes in float64, also what names float32 as it is built."""
    trainer = sides_train.build(*args, **kwargs)
    trainer.model.double()
    for state in trainer.runner.optim_wrapper.optimizer.state.values():
        state.update({name: value.double() for name, value in state.items() if name != 'step'})
    return trainer


def build_equal(sides, overrides):
    """Return a trainer on each side, with the same weights."""
    trainers = sides.keep(build_in_double, overrides=overrides)
    sides.ours.call(sides_train.load, trainers.ours, sides.upstream.call(sides_train.state, trainers.upstream))
    return trainers


@pytest.mark.parametrize('steps', [25, pytest.param(50, marks=pytest.mark.release)])
def test_training_ends_at_upstreams_loss_and_a_fault_does_not(double_sides, scenes, steps):
    trainers = build_equal(double_sides, SMALL)
    assert double_sides.call(group_count, trainers).ours == 2  # with and without weight decay
    theirs, ours = double_sides.call(train, trainers, scenes, 0, steps)
    assert theirs[-1] < 0.8 * theirs[0]  # it has learned something
    assert ours == pytest.approx(theirs, rel=1e-3)

    double_sides.ours.call(stop_schedules, trainers.ours)
    theirs, ours = double_sides.call(train, trainers, scenes, steps, steps + 5)
    assert ours != pytest.approx(theirs, rel=1e-3)


def test_a_checkpoint_of_upstreams_trainer_is_resumed(double_sides, scenes, tmp_path):
    trainer = double_sides.upstream.keep(build_in_double, overrides=SMALL)
    double_sides.upstream.call(train, trainer, scenes, 0, 6)
    path = double_sides.upstream.call(save, trainer, tmp_path)
    assert double_sides.upstream.call(group_count, trainer) > 100
    resumed = double_sides.ours.keep(build_in_double, overrides={**SMALL, 'load_from': path, 'resume': True}, seed=1)
    theirs = double_sides.upstream.call(train, trainer, scenes, 6, 10)
    ours = double_sides.ours.call(train, resumed, scenes, 6, 10)
    assert ours == pytest.approx(theirs, rel=1e-6)


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
        losses = sides_train.iterate(trainer, batch, seed)
    finally:
        del wrapper.step
    return {'losses': losses, 'gradients': kept}


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def on_all(ranks, function, *arguments, keep=False):
    """Run a function on all ranks at once; arguments are one for each rank."""
    for rank, own in zip(ranks, zip(*arguments)):
        rank.send(function, *own, _keep=keep)
    return [rank.receive() for rank in ranks]


def distributed_steps(side, weights, batches):
    """Train two ranks of a side for two iterations and return what each rank saw in each."""
    port = str(free_port())
    common = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port, OMP_NUM_THREADS='1')
    ranks = [Side(side, 1, env={**common, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}) for rank in range(2)]
    try:
        trainers = on_all(ranks, sides_train.build, [sides_model.DEMO] * 2, [SMALL] * 2, keep=True)
        on_all(ranks, sides_train.load, trainers, [weights] * 2)
        return [
            on_all(ranks, step_with_gradients, trainers, batches[number], [number] * 2)
            for number in range(len(batches))
        ]
    finally:
        for rank in ranks:
            rank.close()


def test_two_processes_equal_upstreams_two_processes(sides):
    weights = sides.upstream.call(sides_train.state, sides.upstream.keep(sides_train.build, overrides=SMALL))
    # other images and other numbers of classes on each rank
    classes = [[[[0, 1, 2], [5]], [list(range(19)), [3, 4]]], [[[7], [8, 9]], [[1, 2, 3, 4, 5], [0]]]]
    batches = [
        [sides_model.random_batch(2, 64, 128, seed=10 * step + rank, classes=classes[step][rank]) for rank in range(2)]
        for step in range(2)
    ]
    theirs = distributed_steps(UPSTREAM, weights, batches)
    ours = distributed_steps(OURS, weights, batches)
    for step in range(2):
        for rank in range(2):
            one, other = theirs[step][rank], ours[step][rank]
            if step:  # from weights between which AdamW has widened what rounding left
                assert other['losses']['loss'] == pytest.approx(one['losses']['loss'], rel=1e-3)
                continue
            assert sides_model.relative_difference(one['losses'], other['losses']) < 1e-4
            # A gradient that is zero but for rounding, as of a key's bias, has the rounding of the others.
            rounding = 1e-7 * max(value.norm() for value in one['gradients'].values())
            for name, gradient in one['gradients'].items():
                difference = (other['gradients'][name] - gradient).norm()
                assert difference <= 1e-3 * gradient.norm() + rounding, (name, difference, gradient.norm())
        # the ranks share their gradients, and not their losses
        assert sides_model.relative_difference(*(ours[step][rank]['gradients'] for rank in range(2))) == 0
        assert ours[step][0]['losses'] != ours[step][1]['losses']
