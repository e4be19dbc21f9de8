"""What mmsegmentation.patch and mmdetection.patch promise beyond resume, which has its own tests."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS
from mmseg.engine.device import BACKENDS, prepare_device
from torch import nn


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


def test_prepare_device_sets_the_collectives_of_the_device():
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl')), launcher='none'))
    assert prepare_device(cfg) == get_device()
    assert cfg.env_cfg.dist_cfg.backend == BACKENDS[get_device()]


def test_prepare_device_refuses_another_device():
    other = next(d for d in BACKENDS if d != get_device())
    with pytest.raises(ValueError, match=f'{other}.*{get_device()}'):
        prepare_device(Config(dict(launcher='none')), other)
