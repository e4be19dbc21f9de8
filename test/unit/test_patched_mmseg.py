"""What mmsegmentation.patch and mmdetection.patch promise beyond resume, which has its own tests."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from mmseg.engine.device import BACKENDS, prepare_device
from mmseg.models.backbones import SwinTransformer
from mmseg.models.utils.pretrained import match_weights
from torch import nn

SMALL = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)


def small_swin(**kwargs):
    """Build a Swin with a few thousand parameters."""
    return SwinTransformer(**{**SMALL, **kwargs})


def test_importing_mmseg_needs_no_text_packages():
    code = 'import sys; sys.modules.update(ftfy=None, regex=None); import mmseg.models, mmseg.engine'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_tokenizing_still_works():
    from mmseg.utils import tokenize
    from mmseg.utils.tokenizer import decode, default_tokenizer

    tokens = tokenize('a photo of a road')[0]
    start, end = (default_tokenizer().encoder[t] for t in ('<start_of_text>', '<end_of_text>'))
    assert tokens[0] == start and end in tokens
    assert decode(tokens[1:6]).strip() == 'a photo of a road'


def test_pretrained_swin_is_loaded_and_its_extra_keys_reported(tmp_path, caplog):
    source = small_swin()
    weights = {**source.state_dict(), 'head.weight': torch.zeros(2, 2)}
    del weights['norm3.weight']
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in weights.items()}}, tmp_path / 'swin.pth')
    target = small_swin(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    target.init_weights()
    assert torch.equal(target.patch_embed.projection.weight, source.patch_embed.projection.weight)
    match = match_weights(target, weights)
    assert match.missing == ['norm3.weight'] and match.unexpected == ['head.weight'] and not match.mismatched


@pytest.mark.parametrize('other', [dict(embed_dims=16), 'linear'])
def test_weights_of_another_model_are_refused(tmp_path, other):
    model = nn.Linear(3, 3) if other == 'linear' else small_swin(**other)
    torch.save(model.state_dict(), tmp_path / 'other.pth')
    target = small_swin(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth')))
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match='another model'):
        target.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_device_adamw_takes_the_same_steps_as_adamw():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    kwargs = dict(lr=1e-2, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8)
    optimizer = OPTIMIZERS.build(dict(type='DeviceAdamW', params=ours.parameters(), **kwargs))
    reference = torch.optim.AdamW(theirs.parameters(), **kwargs)
    for _ in range(5):
        x = torch.randn(8, 4)
        for model, opt in ((ours, optimizer), (theirs, reference)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_bf16_wrapper_computes_in_bfloat16_and_steps_in_float32():
    model = nn.Linear(4, 4)
    before = model.weight.clone()
    wrapper = OPTIM_WRAPPERS.build(dict(type='Bf16OptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=0.1)))
    with wrapper.optim_context(model):
        out = model(torch.randn(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)


def test_prepare_device_sets_the_collectives_of_the_device():
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl')), launcher='none'))
    assert prepare_device(cfg) == get_device()
    assert cfg.env_cfg.dist_cfg.backend == BACKENDS[get_device()]


def test_prepare_device_refuses_another_device():
    other = next(d for d in BACKENDS if d != get_device())
    with pytest.raises(ValueError, match=f'{other}.*{get_device()}'):
        prepare_device(Config(dict(launcher='none')), other)


def test_mask_sampler_returns_what_unique_would():
    from mmdet.models.task_modules.assigners import AssignResult
    from mmdet.models.task_modules.samplers import MaskPseudoSampler
    from mmengine.structures import InstanceData

    gt_inds = torch.tensor([0, 2, 0, 1, 3, 0, -1])
    assigned = AssignResult(3, gt_inds, None, labels=torch.tensor([-1, 5, -1, 4, 6, -1, -1]))
    sampled = MaskPseudoSampler().sample(
        assigned,
        InstanceData(masks=torch.rand(7, 2, 2)),
        InstanceData(masks=torch.rand(3, 2, 2), labels=torch.tensor([4, 5, 6])),
    )
    assert sampled.pos_inds.tolist() == torch.nonzero(gt_inds > 0).squeeze(-1).unique().tolist()
    assert sampled.neg_inds.tolist() == torch.nonzero(gt_inds == 0).squeeze(-1).unique().tolist()
