"""mmdetection's own head keeps its API: forward, loss and prediction equal those of the unpatched upstream."""

import torch

from recipe.bench import model as bench_model

HEIGHT, WIDTH = 64, 96


def build_head(num_things, num_stuff, seed=0):
    """Build mmdet's head for panoptic segmentation, small, with the demo's options."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    cfg = Config.fromfile(bench_model.ROOT / bench_model.DEMO).model.decode_head
    for key in ('num_classes', 'align_corners', 'strides'):
        del cfg[key]
    classes = num_things + num_stuff
    cfg.update(type='mmdet.Mask2FormerHead', num_things_classes=num_things, num_stuff_classes=num_stuff)
    cfg.loss_cls.class_weight = [1.0] * classes + [0.1]
    cfg.train_cfg.num_points = 256
    torch.manual_seed(seed)
    head = MODELS.build(cfg)
    head.init_weights()
    return head.train()


def features(seed):
    random = torch.Generator().manual_seed(seed)
    channels, strides = (48, 96, 192, 384), (4, 8, 16, 32)
    return [
        torch.randn(2, c, HEIGHT // s, WIDTH // s, generator=random).requires_grad_() for c, s in zip(channels, strides)
    ]


def run(head, seed):
    """Return predictions, losses and gradients of two images, one with and one without stuff."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    random = torch.Generator().manual_seed(seed)
    samples = []
    for count in (3, 0):
        sample = DetDataSample(metainfo=dict(img_shape=(HEIGHT, WIDTH), batch_input_shape=(HEIGHT, WIDTH)))
        masks = (torch.rand(count, HEIGHT, WIDTH, generator=random) > 0.6).numpy()
        sample.gt_instances = InstanceData(labels=torch.arange(count) % 2, masks=BitmapMasks(masks, HEIGHT, WIDTH))
        semantic = (
            torch.randint(2, 4, (1, HEIGHT, WIDTH), generator=random) if count else torch.full((1, HEIGHT, WIDTH), 255)
        )
        sample.gt_sem_seg = PixelData(sem_seg=semantic)
        samples.append(sample)
    x = features(seed)
    head.zero_grad()
    cls, masks = head(x, samples)
    torch.manual_seed(seed)
    losses = head.loss(x, samples)
    sum(losses.values()).sum().backward()
    head.eval()
    with torch.no_grad():
        predicted = head.predict(x, samples)
    head.train()
    return {
        'types': [type(cls).__name__, type(masks).__name__, len(cls), len(masks)],
        'forward': [t.detach() for t in (*cls, *masks)],
        'losses': {k: v.detach() for k, v in losses.items()},
        'gradients': {k: v.grad for k, v in head.named_parameters() if v.grad is not None},
        'inputs': [t.grad for t in x],
        'predicted': list(predicted),
    }


def test_panoptic_head(sides):
    heads = sides.keep(build_head, 2, 2)
    bench_model.same_weights(sides, heads)
    theirs, ours = sides.call(run, heads, 4)
    assert theirs.pop('types') == ours.pop('types')
    tolerance = {'forward': 1e-4, 'losses': 1e-5, 'gradients': 1e-4, 'inputs': 1e-4, 'predicted': 1e-4}
    for name, limit in tolerance.items():
        assert bench_model.relative_difference(theirs[name], ours[name]) < limit, name
