"""accelerate(): replaces what it knows exactly, leaves the rest, and changes no name and no parameter."""

import copy

import pytest
import torch
from mmengine.runner import Runner
from mmseg.models.backbones.swin import SwinBlock, WindowMSA
from torch import nn

from recipe.bench import model as bench_model
from recipe.bench import trainer as bench_trainer
from recipe.engine.runner import RecipeRunner
from recipe.models import accelerate, adopt
from recipe.models.feed_forward import FastFFN
from recipe.models.segmentor import FastEncoderDecoder
from recipe.models.swin import FastSwinBlock

SMALL = {'backbone.depths': [1, 1, 1, 1], 'decode_head.pixel_decoder.encoder.num_layers': 1}


@pytest.fixture(scope='module')
def plain():
    return bench_model.build(overrides=SMALL)


def test_parameters_names_and_hooks_stay(plain):
    model = copy.deepcopy(plain)
    parameters, calls = dict(model.named_parameters()), []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    modules = list(model.modules())
    replaced = accelerate(model)
    assert replaced['SwinBlock'] == 4 and replaced['Mask2FormerHead'] == replaced['EncoderDecoder'] == 1
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(one is other for one, other in zip(model.modules(), modules))
    bench_model.predict(model, bench_model.random_batch(1, 64, 64))
    assert calls == [1]


def test_it_may_be_called_again_and_with_a_wrapped_model(plain):
    model = nn.DataParallel(copy.deepcopy(plain))
    assert accelerate(model)
    assert accelerate(model) == {}
    assert type(model.module) is FastEncoderDecoder


def test_checkpoints_of_both_kinds_fit_both(plain):
    model = copy.deepcopy(plain)
    accelerate(model)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


class OwnBlock(SwinBlock):
    """Someone's block."""

    def forward(self, x, hw_shape):
        return x


def test_subclasses_are_left_alone(plain):
    model = copy.deepcopy(plain)
    block = model.backbone.stages[0].blocks[0]
    block.__class__ = OwnBlock
    assert accelerate(model)['SwinBlock'] == 3
    assert type(block) is OwnBlock
    images = torch.randn(2, 3, 64, 64)
    assert len(model.backbone(images)) == 4


def test_a_block_with_another_attention_runs_as_upstream(plain):
    model = copy.deepcopy(plain)

    class OwnMSA(WindowMSA):
        def forward(self, x, mask=None):
            return torch.zeros_like(x)

    model.backbone.stages[0].blocks[0].attn.w_msa.__class__ = OwnMSA
    fast = copy.deepcopy(model)
    accelerate(fast)
    batch = bench_model.random_batch(1, 64, 64)
    theirs, ours = (bench_model.step(one, batch, seed=1) for one in (model, fast))
    assert bench_model.relative_difference(theirs['losses'], ours['losses']) < 1e-5


def test_hooks_of_attention_and_feed_forward_are_called(plain):
    model, calls = copy.deepcopy(plain), []
    accelerate(model)
    block = model.backbone.stages[0].blocks[0]
    for module in (block.attn, block.attn.w_msa, block.ffn):
        module.register_forward_hook(lambda *_: calls.append(1))
    model.backbone(torch.randn(1, 3, 64, 64))
    assert calls == [1, 1, 1]


def test_a_module_of_another_class_is_refused(plain):
    with pytest.raises(TypeError, match='FastFFN stands for FFN, not for Linear'):
        adopt(nn.Linear(2, 2), FastFFN)
    with pytest.raises(TypeError, match='FastSwinBlock stands for SwinBlock, not for OwnBlock'):
        block = copy.deepcopy(plain.backbone.stages[0].blocks[0])
        block.__class__ = OwnBlock
        adopt(block, FastSwinBlock)


@pytest.mark.parametrize('fast', [True, False])
def test_the_runner_accelerates_unless_the_config_says_no(fast, tmp_path, plain):
    options = dict(
        work_dir=str(tmp_path), cfg=dict(fast=fast), log_level='ERROR', experiment_name=f'{tmp_path.name}_{fast}'
    )
    assert type(RecipeRunner(model=copy.deepcopy(plain), **options).model) is (
        FastEncoderDecoder if fast else type(plain)
    )
    assert issubclass(RecipeRunner, Runner)


def test_the_engine_trains_upstreams_modules_to_the_same_losses():
    overrides = {**{f'model.{key}': value for key, value in SMALL.items()}, 'model.backbone.drop_path_rate': 0.3}
    overrides['model.decode_head.train_cfg.num_points'] = 128
    fast, plain = (bench_trainer.Trainer(overrides={**overrides, 'fast': is_fast}) for is_fast in (True, False))
    assert type(fast.model) is not type(plain.model)
    plain.model.load_state_dict(fast.model.state_dict())
    batch = bench_model.random_batch(2, 64, 64, block=32)
    for seed in range(2):
        ours, theirs = (bench_trainer.iterate(trainer, batch, seed) for trainer in (fast, plain))
        assert ours == pytest.approx(theirs, rel=1e-4 if seed == 0 else 1e-2)
