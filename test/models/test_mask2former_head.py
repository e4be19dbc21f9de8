"""The batched Mask2Former loss and the fused decoder: what the parity tests, which compare losses, do not see."""

import copy
import math

import pytest
import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmseg.models.decode_heads import Mask2FormerHead
from mmseg.registry import MODELS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.bench import model as bench_model
from recipe.bench import trainer as bench_trainer
from recipe.models import accelerate, decode, masked_attention
from recipe.models.head import FastMask2FormerHead
from recipe.models.points import draw_points

pytestmark = pytest.mark.trains

READS = ('cpu', 'item', 'tolist', 'numpy', '__bool__', '__int__', '__float__', '__index__', '__contains__')
# Operators whose result has a shape that the device must tell the host, and the one that reads a number.
SYNCS = ('nonzero', '_unique2', 'unique_dim', 'unique_consecutive', 'masked_select', '_local_scalar_dense', 'bincount')
CLASSES = [[0, 3, 18], [5, 6]]


@pytest.fixture(scope='module')
def model():
    built = bench_model.build(
        overrides={
            'backbone.depths': [1, 1, 1, 1],
            'decode_head.pixel_decoder.encoder.num_layers': 1,
            'decode_head.train_cfg.num_points': 128,
        }
    )
    accelerate(built)
    return built


@pytest.fixture
def head(model):
    return copy.deepcopy(model.decode_head)


def prepared(model, classes=CLASSES, height=32, width=64):
    """Return what the head's loss takes: features and data samples, as the preprocessor leaves them."""
    batch = bench_model.random_batch(images=len(classes), height=height, width=width, classes=classes, block=8)
    data = model.data_preprocessor(bench_model.samples(batch), True)
    with torch.no_grad():
        return model.extract_feat(data['inputs']), data['data_samples']


class FunctionReads(TorchFunctionMode):
    """Collects the calls that bring a tensor to the host."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, '__name__', '') in READS:
            self.calls.append(function.__name__)
        return function(*args, **(kwargs or {}))


class OperatorSyncs(TorchDispatchMode):
    """Collects the operators that make the host wait."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split('::')[1]
        boolean = name in ('index', 'index_put_') and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in SYNCS or boolean:
            self.calls.append(name)
        return function(*args, **(kwargs or {}))


def reads_of_a_step(head, features, samples):
    # the pixel decoder has tests of its own
    with torch.no_grad():
        result = head.pixel_decoder(features)
    head.pixel_decoder.forward = lambda x: result
    with FunctionReads() as reads, OperatorSyncs() as syncs:
        losses = head.loss(features, samples, None)
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
    return reads.calls, syncs.calls


def test_the_host_reads_once_and_no_shape_depends_on_data(model, head):
    reads, syncs = reads_of_a_step(head, *prepared(model, [list(range(19)), []]))
    # the costs come to the host, where NumPy takes them
    assert reads == ['cpu', 'numpy']
    assert syncs == []


def test_reading_more_is_noticed(model, head):
    features, samples = prepared(model)
    for sample in samples:  # data that came from elsewhere than the preprocessor
        sample.gt_sem_seg = type(sample.gt_sem_seg)(data=sample.gt_sem_seg.data)
    reads, syncs = reads_of_a_step(head, features, samples)
    assert reads.count('tolist') == len(samples)
    assert syncs

    head.__class__ = Mask2FormerHead
    reads, syncs = reads_of_a_step(head, features, samples)
    assert '_unique2' in syncs and 'index' in syncs and reads.count('cpu') == 2 * 4


def test_points_are_those_of_separate_draws():
    torch.manual_seed(1)
    draws = draw_points(2, 3, 4, 8, 3.0, 0.75, torch.device('cpu'))
    torch.manual_seed(1)
    for layer in range(2):
        for image in range(3):
            assert torch.equal(draws.matching[image][layer], torch.rand(1, 8, 2)[0] * 2 - 1)
        assert torch.equal(draws.candidates[layer * 4 : layer * 4 + 4], torch.rand(4, 24, 2) * 2 - 1)
        assert torch.equal(draws.others[layer * 4 : layer * 4 + 4], torch.rand(4, 2, 2) * 2 - 1)


def test_costs_that_are_not_finite_stop_the_step(model, head):
    features, samples = prepared(model)
    with torch.no_grad():
        head.cls_embed.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match=r'cost is not finite.* image 0 .* nan of prediction 0, query 0, class 0'):
        head.loss(features, samples, None)


def test_between_guarded_iterations_they_stop_the_caller():
    trainer = bench_trainer.Trainer(overrides={'model.decode_head.train_cfg.num_points': 64})
    batch = bench_model.random_batch(height=32, width=64)
    bench_trainer.iterate(trainer, batch)
    with torch.no_grad():
        trainer.model.decode_head.cls_embed.weight.fill_(math.nan)
    with pytest.raises(ValueError, match='matching cost is not finite'):
        bench_model.step(trainer.model, batch)


def test_labels_that_the_model_does_not_have_are_named(model, head):
    with pytest.raises(ValueError, match=r'image 1 of the batch has labels \[19, 33\].* classes 0 to 18'):
        head.loss(*prepared(model, [[1], [3, 19, 33]]), None)


def test_a_layer_computes_what_its_module_does(head):
    layer = head.transformer_decoder.layers[0]
    query, query_pos, memory, key_pos = (torch.randn(2, n, 128) for n in (7, 7, 12, 12))
    allowed = torch.rand(2, 7, 12) > 0.5
    allowed[0, 3] = True
    mask = ~allowed[:, None].expand(-1, head.num_heads, -1, -1).flatten(0, 1)
    expected = layer(query, memory, memory, query_pos=query_pos, key_pos=key_pos, cross_attn_mask=mask)
    keys = masked_attention.project_keys(
        [layer.cross_attn], (memory + key_pos).flatten(0, 1), memory.flatten(0, 1), batch_size=2
    )
    query_pos = query_pos.flatten(0, 1)
    positions = masked_attention.self_positions(query_pos)
    ours = masked_attention.decoder_layer(layer, query.flatten(0, 1), query_pos, positions, keys[0], allowed)
    torch.testing.assert_close(ours.view_as(expected), expected, atol=1e-5, rtol=1e-5)


def test_a_query_that_would_see_nothing_sees_everything(head):
    head.mask_embed = torch.nn.Sequential()
    head.transformer_decoder.post_norm = torch.nn.Identity()
    features = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    masks = decode._AttentionMasks(head, features, [torch.Size((1, 2))])
    assert masks(torch.tensor([[1.0], [-1.0], [0.0]]), 0).tolist() == [[[True, False], [False, True], [True, True]]]
    masks = decode._AttentionMasks(head, -features.abs(), [torch.Size((1, 2))])
    assert masks(torch.tensor([[1.0]]), 0).tolist() == [[[True, True]]]


def test_autocast_keeps_every_gradient(model, head):
    features, samples = prepared(model)
    losses, missing = {}, {}
    for enabled in (False, True):
        head.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            terms = head.loss(features, samples, None)
        losses[enabled] = sum(term.sum() for term in terms.values())
        losses[enabled].backward()
        missing[enabled] = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing[True] == missing[False]
    assert losses[True].dtype == torch.float32
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0)


class OwnLoss(Mask2FormerHead):
    """Someone's head with another loss."""

    def _loss_by_feat_single(self, cls_scores, mask_preds, batch_gt_instances, batch_img_metas):
        zero = cls_scores.sum() * 0 + mask_preds.sum() * 0
        return zero + 1, zero + 2, zero + 3


def test_a_subclass_keeps_its_own_methods(model, head):
    head.__class__ = OwnLoss
    assert 'OwnLoss' not in accelerate(head)
    assert type(head) is OwnLoss
    losses = head.loss(*prepared(model), None)
    assert (losses['loss_cls'], losses['d0.loss_mask'], losses['loss_dice']) == (1, 2, 3)


def test_a_hook_on_the_head_is_called(model, head):
    features, samples = prepared(model)
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    head.loss(features, samples, None)
    head.predict(features, [sample.metainfo for sample in samples], None)
    assert calls == [1, 1]


def test_other_attentions_and_assigners_keep_the_path_of_upstream(head):
    for path, part in (
        ('transformer_decoder.layers.0.self_attn', torch.nn.Identity()),
        ('transformer_decoder.layers.1', torch.nn.Identity()),
        ('mask_embed', torch.nn.Linear(128, 128)),
    ):
        other = copy.deepcopy(head)
        parent, name = path.rsplit('.', 1) if '.' in path else ('', path)
        setattr(other.get_submodule(parent), name, part)
        assert not other.decodes_at_once, path
    head.assigner.match_costs.pop()
    assert head.decodes_at_once and not head.batches_loss


def test_the_registry_gives_the_head_that_was_tested(model):
    assert MODELS.get('Mask2FormerHead') is Mask2FormerHead
    assert type(model.decode_head) is FastMask2FormerHead
    assert ROOT_MODELS.get('mmdet.Mask2FormerHead') in Mask2FormerHead.__mro__
