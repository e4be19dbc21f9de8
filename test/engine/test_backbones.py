"""Each backbone is upstream's, whatever the data set; each Mask2Former config of the checkout gets the whole engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import meta_models
from recipe.bench import model_size
from recipe.core import console, paths
from recipe.core.run_options import BACKBONES
from recipe.data import other_sets
from recipe.engine import config as run_config
from recipe.launch import options
from recipe.models import accelerate

CHECKOUT = paths.ROOT / 'mmsegmentation' / 'configs' / 'mask2former'
CONFIGS = sorted(path.name for path in CHECKOUT.glob('*.py'))
CITYSCAPES = {
    'r50': 'mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'swin-t': 'mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py',
    'swin-s': 'mask2former_swin-s_8xb2-90k_cityscapes-512x1024.py',
    'swin-b': 'mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py',
    'swin-l': 'mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py',
}
ADE20K = {
    'r50': 'mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'swin-t': 'mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
    'swin-s': 'mask2former_swin-s_8xb2-160k_ade20k-512x512.py',
    'swin-b': 'mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py',
    'swin-l': 'mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py',
}
FILES = {
    'r50': 'https://download.pytorch.org/models/resnet50-0676ba61.pth',
    'swin-t': 'swin_tiny_patch4_window7_224_20220317-1cdeb081.pth',
    'swin-s': 'swin_small_patch4_window7_224_20220317-7ba6d6dd.pth',
    'swin-b': 'swin_base_patch4_window12_384_22k_20220317-e5c09f74.pth',
    'swin-l': 'swin_large_patch4_window12_384_22k_20220412-6580f57d.pth',
}
# Millions of values, with 19 classes. facebookresearch's model zoo has the same for its models.
MILLIONS = {'r50': 44.0, 'swin-t': 47.4, 'swin-s': 68.7, 'swin-b': 106.9, 'swin-l': 215.5}


def make(*argv: str) -> Config:
    return run_config.make(options.parse('full', list(argv)), 'cpu', Path('/some/data'))


@pytest.mark.parametrize('name', BACKBONES)
def test_a_backbone_is_that_of_upstreams_config(name):
    ours, upstream = make(f'--backbone={name}'), Config.fromfile(CHECKOUT / CITYSCAPES[name])
    assert ours.model == upstream.model
    assert ours.optim_wrapper.paramwise_cfg == upstream.optim_wrapper.paramwise_cfg
    kept = ('lr', 'weight_decay', 'betas', 'eps')
    assert {key: ours.optim_wrapper.optimizer[key] for key in kept} == {
        key: upstream.optim_wrapper.optimizer[key] for key in kept
    }
    assert (ours.param_scheduler, ours.train_cfg.max_iters) == (upstream.param_scheduler, 90000)
    assert ours.train_dataloader.dataset.pipeline[0].crop == upstream.train_dataloader.dataset.pipeline[3]
    assert ours.default_hooks.checkpoint.max_keep_ckpts == 3
    # The name of each file holds the first eight digits of its sha256, which is compared after a download.
    assert run_config.weights_source(ours).endswith(FILES[name])


@pytest.mark.parametrize('name', BACKBONES)
def test_any_config_of_mask2former_takes_any_backbone(name):
    """As upstream's configs of ADE20K have it, which differ in these settings and in the crop."""
    upstream = Config.fromfile(CHECKOUT / ADE20K[name])
    for start in ('r50', 'swin-b'):
        ours = make(f'--config={CHECKOUT / ADE20K[start]}', f'--backbone={name}')
        assert ours.model.backbone == upstream.model.backbone
        assert ours.model.decode_head == upstream.model.decode_head
        assert ours.optim_wrapper.paramwise_cfg == upstream.optim_wrapper.paramwise_cfg


def test_a_backbone_that_cannot_be_set_is_refused():
    with pytest.raises(console.UserError, match="'swin-xl' is not one of r50, swin-t, swin-s, swin-b, swin-l"):
        options.parse('full', ['--backbone=swin-xl'])
    with pytest.raises(console.UserError, match='--backbone=r50: the demo has a small model of its own'):
        options.read('full', ['--backbone=r50', '--demo'])
    other = paths.ROOT / 'mmsegmentation/configs/segnext/segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512.py'
    with pytest.raises(console.UserError, match='--backbone: the model of --config is no Mask2Former'):
        make(f'--config={other}', '--backbone=r50')


@pytest.mark.parametrize('name', CONFIGS)
def test_each_config_of_the_checkout_gets_the_whole_engine(name):
    config = make(f'--config={CHECKOUT / name}')
    assert config.train_cfg.type == 'ResumableIterBasedTrainLoop'
    assert config.train_dataloader.sampler.type == 'ResumableInfiniteSampler'
    assert config.default_hooks.checkpoint.type == 'AtomicCheckpointHook'
    assert config.default_hooks.nonfinite_guard.type == 'NonFiniteGuardHook'
    assert config.optim_wrapper.optimizer.type == 'MergedAdamW'
    assert config.val_evaluator.type == 'DeviceIoUMetric'
    assert config.train_dataloader.dataset.pipeline[-1].type == 'FastPackSegInputs'
    assert run_config.weights_source(config).startswith('https://')
    assert other_sets.are_in(config) == ('ade20k' in name)
    model = meta_models.build(config)
    assert model.num_classes == (150 if 'ade20k' in name else 19)
    before = {key: value.shape for key, value in model.state_dict().items()}
    replaced = accelerate(model)
    assert replaced['Mask2FormerHead'] == replaced['MSDeformAttnPixelDecoder'] == 1
    assert replaced.get('SwinTransformer', 0) == ('swin' in name)
    assert {key: value.shape for key, value in model.state_dict().items()} == before


@pytest.mark.release
@pytest.mark.parametrize('name', BACKBONES)
def test_parameters_and_multiplications_are_upstreams(name):
    counts = []
    for config in (make(f'--backbone={name}'), Config.fromfile(CHECKOUT / CITYSCAPES[name])):
        model = run_config.build_model(config)
        counts.append((model_size.parameters(model), model_size.multiplications(model, (64, 128))))
    assert counts[0] == counts[1]
    assert counts[0][0] / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)


def test_multiplications_are_counted():
    """A convolution by hand: 4 outputs of 3 x 3 x 3 products at 16 x 16 positions, and a head of 4 x 2."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Linear(4, 2)

        def extract_feat(self, images):
            return self.convolution(images)

        def decode_head(self, features, samples):
            return self.linear(features.flatten(2).transpose(1, 2))

    assert model_size.multiplications(Model(), (32, 32)) == 16 * 16 * (4 * 27 + 4 * 2)


def test_named_weights_become_urls(tmp_path):
    from recipe.engine import weights

    assert weights.resolve('torchvision://resnet101').endswith('resnet101-63fe2227.pth')
    assert weights.resolve('open-mmlab://resnet50_v1c').startswith('https://download.openmmlab.com/')
    for source in (str(tmp_path / 'a.pth'), 'https://host.invalid/a.pth', 's3://bucket/a.pth'):
        assert weights.resolve(source) == source
    with pytest.raises(console.UserError, match='--pretrained: mmengine knows no weights torchvision://resnet5'):
        weights.resolve('torchvision://resnet5')
