"""--compile: the loss in fixed shapes, graphs without a break, one of each for the whole training."""

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS

from random_mask2former import TINY
from recipe.bench import model as bench_model
from recipe.bench import trainer as bench_trainer
from recipe.engine import compile_hook
from recipe.models import accelerate, compiled_parts
from recipe.models import static_loss as static
from recipe.models.decode import decode

pytestmark = pytest.mark.trains

EVERY = list(range(19))
# Classes of both images: none, one, all, and some of them.
CLASSES = [([], [3]), (EVERY, [0, 1, 2]), ([5, 6, 7, 9], [2, 11]), ([], [])]


def batch(classes, seed=1):
    return bench_model.random_batch(2, 64, 128, seed=seed, classes=classes)


@pytest.fixture
def model():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    built = bench_model.build(overrides=TINY)
    accelerate(built)
    yield built
    torch._dynamo.reset()


def use(model, **parts):
    """Have a model train with the parts of a step as they are, uncompiled but for those given."""
    plain = dict(
        backbone=compiled_parts._run,
        decode=decode,
        costs=static.static_costs,
        point_losses=static.static_point_losses,
    )
    model.compiled_parts = model.decode_head.compiled_parts = compiled_parts.CompiledParts(**{**plain, **parts})


@pytest.mark.parametrize('classes', CLASSES)
def test_the_loss_in_fixed_shapes_is_the_loss(model, classes):
    expected = bench_model.step(model, batch(classes), seed=3)
    shapes = []

    def listen(*args):
        shapes.append([tuple(part.shape) for part in args[3]])
        return static.static_point_losses(*args)

    use(model, point_losses=listen)
    found = bench_model.step(model, batch(classes), seed=3)
    # without any class the other loss has no axis
    terms = [{name: value.reshape(1) for name, value in one['losses'].items()} for one in (expected, found)]
    assert bench_model.relative_difference(*terms) < 1e-5
    assert bench_model.relative_difference(expected['gradients'], found['gradients']) < 1e-4
    assert shapes[0][:5] == [(2 * 2 * 19,), (2 * 2 * 20,), (2 * 19 * 2,), (2 * 2 * 19,), (2 * 19,)]


def test_more_classes_than_queries_are_padded():
    # One layer, two queries, four places for masks: masks 1 and 0 of the three of the first image, none of the second.
    head = SimpleNamespace(num_classes=4, num_queries=2, num_transformer_decoder_layers=0)
    targets = static.targets_of(head, torch.zeros(2, 8, 8), [[1, 2, 3], []])
    assert targets.names.tolist() == [[1, 2, 3, 0], [0, 0, 0, 0]]
    assert targets.is_pair.tolist() == [1, 1, 0, 0]
    assert targets.num_masks.tolist() == [3]  # an image without any counts as one
    padded = static.pad_pairs(torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 0, 0]), targets, 1, 2)
    assert padded.queries.tolist() == [0, 1, 0, 0]
    assert padded.labels.tolist() == [2, 1, 4, 4]
    assert padded.by_pair.tolist() == [1, 0, 0, 0]
    assert padded.by_mask.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_one_compilation_of_each_part_serves_every_number_of_classes(model):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # dynamo's, of caches that it does not use
        compiled_parts.compile_parts(model, backend='eager', fullgraph=True)
        for number in range(2):
            bench_model.step(model, batch(CLASSES[number]))
        graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
        assert graphs == 4
        random = np.random.default_rng(0)
        for count in (1, 2, 11, 19):
            classes = [sorted(random.choice(19, count, replace=False).tolist()), EVERY[: 20 - count]]
            bench_model.step(model, batch(classes, seed=count))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == graphs
    assert not torch._dynamo.utils.counters['graph_break']


@pytest.mark.release
def test_a_shape_that_changes_is_compiled_again(model):
    """What the test above counts would be seen."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        compiled_parts.compile_parts(model, backend='eager')
        bench_model.step(model, batch(CLASSES[2]))
        bench_model.step(model, bench_model.random_batch(1, 64, 128, classes=[EVERY]))
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 8


def test_names_predictions_and_copies_are_the_models_own(model):
    names = list(model.state_dict())
    images = batch(CLASSES[1])
    expected = bench_model.predict(model, images)

    def never(*args):
        raise AssertionError('a graph of the training')

    use(model, backbone=never, decode=never)
    assert list(model.state_dict()) == names
    assert all(torch.equal(*pair) for pair in zip(expected, bench_model.predict(model, images)))
    use(model)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.decode_head.cls_embed.weight)
    theirs, ours = (bench_model.step(one, images, gradients=False)['losses'] for one in (model, other))
    assert theirs['decode.loss_cls'] != ours['decode.loss_cls']


@pytest.mark.release
def test_a_training_in_graphs_is_the_training(monkeypatch):
    """Code of the compiler, with the trainer's hooks, optimizer and drop path."""
    torch._dynamo.reset()
    overrides = {f'model.{key}': value for key, value in TINY.items()}
    overrides['model.backbone.drop_path_rate'] = 0.3
    trainers = [
        bench_trainer.Trainer(overrides={**overrides, **extra})
        for extra in ({}, {'custom_hooks': [dict(type='CompileHook')]})
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for number in range(3):
            images = batch(CLASSES[number], seed=number)
            trainers[1].model.load_state_dict(trainers[0].model.state_dict())  # or rounding would grow step by step
            eager, graphs = (bench_trainer.iterate(one, images, seed=number) for one in trainers)
            assert eager.keys() == graphs.keys()
            assert graphs['loss'] == pytest.approx(eager['loss'], rel=1e-3)
            for name in eager:  # rounding may choose another uncertain point
                assert graphs[name] == pytest.approx(eager[name], rel=5e-2), name
    assert trainers[0].model.state_dict().keys() == trainers[1].model.state_dict().keys()
    torch._dynamo.reset()


def test_an_npu_and_another_head_are_refused_in_one_line():
    with pytest.raises(ValueError, match='not tried on an NPU'):
        compile_hook.refuse_on('npu')
    model = bench_model.build(overrides=TINY)
    with pytest.raises(ValueError, match=r'Mask2FormerHead of this config cannot be compiled.* --fast=1'):
        compiled_parts.compile_parts(model)
    accelerate(model)
    model.decode_head.loss_dice.naive_dice = False
    with pytest.raises(ValueError, match='Mask2FormerHead of this config cannot be compiled'):
        compiled_parts.compile_parts(model)
    assert HOOKS.build(dict(type='CompileHook', mode='reduce-overhead')).options['mode'] == 'reduce-overhead'
