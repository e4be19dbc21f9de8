"""equip(): which settings of a config it replaces, and which it leaves or refuses."""

import copy
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg import registry

from recipe.core import console, paths
from recipe.engine.equip import equip, fast_pipeline

CONFIGS = sorted((Path(mmseg.__file__).resolve().parents[1] / 'configs' / 'mask2former').glob('mask2former_*.py'))
CITYSCAPES = next(path for path in CONFIGS if path.name == 'mask2former_r50_8xb2-90k_cityscapes-512x1024.py')


def equipped(path=CITYSCAPES, **overrides):
    config = Config.fromfile(path)
    config.merge_from_dict(overrides)
    equip(config)
    return config


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_mask2former_config_gets_the_engine(path):
    config = equipped(path)
    init_default_scope('mmseg')
    hooks = config.default_hooks
    assert registry.LOOPS.get(config.train_cfg.type).__module__ == 'recipe.engine.loops.resumable_loop'
    assert registry.RUNNERS.get(config.runner_type).__module__ == 'recipe.engine.runner'
    assert config.train_dataloader.sampler == dict(type='ResumableInfiniteSampler', shuffle=True)
    assert (hooks.checkpoint.type, hooks.runtime_info.type) == ('AtomicCheckpointHook', 'DeferredRuntimeInfoHook')
    assert {'nonfinite_guard', 'loader_pace'} <= set(hooks)
    assert config.optim_wrapper.optimizer.type == 'MergedAdamW'
    assert config.val_evaluator.type == 'DeviceIoUMetric'
    assert config.visualizer.vis_backends == [dict(type='SturdyVisBackend')]
    train, val = config.train_dataloader.dataset.pipeline, config.val_dataloader.dataset.pipeline
    assert [step['type'] for step in train[-3:]] == [
        'FastRandomFlip',
        'TablePhotoMetricDistortion',
        'FastPackSegInputs',
    ]
    assert val[0]['type'] == 'FastLoadImageFromFile' and val[-1]['label_dtype'] == 'uint8'
    for step in (*train, *val):
        registry.TRANSFORMS.build(step)
    # what is trained stays
    before = Config.fromfile(path)
    for name in ('model', 'param_scheduler', 'randomness', 'log_processor', 'custom_hooks'):
        assert config.get(name) == before.get(name)
    assert config.train_cfg.max_iters == before.train_cfg.max_iters
    assert {**config.optim_wrapper.optimizer, 'type': 0} == {**before.optim_wrapper.optimizer, 'type': 0}


def test_it_may_be_called_again():
    config = equipped()
    again = copy.deepcopy(config)
    equip(again)
    assert again.to_dict() == config.to_dict()


def test_what_is_not_known_stays():
    config = Config.fromfile(CITYSCAPES)
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline.insert(4, dict(type='RandomCutOut', prob=0.5, n_holes=1, cutout_shape=(8, 8)))  # writes into the picture
    config.optim_wrapper.optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
    config.visualizer.vis_backends.append(dict(type='TensorboardVisBackend'))
    config.val_evaluator = [config.val_evaluator, dict(type='CityscapesMetric', output_dir='here')]
    config.default_hooks.runtime_info = dict(type='EmptyCacheHook')
    before = copy.deepcopy(config)
    equip(config)
    assert config.train_dataloader.dataset.pipeline == before.train_dataloader.dataset.pipeline
    assert config.optim_wrapper.optimizer == before.optim_wrapper.optimizer
    assert config.visualizer.vis_backends[1] == dict(type='TensorboardVisBackend')
    assert [one.type for one in config.val_evaluator] == ['DeviceIoUMetric', 'CityscapesMetric']
    assert config.default_hooks.runtime_info == dict(type='EmptyCacheHook')


@pytest.mark.parametrize(
    'step',
    [
        dict(type='LoadImageFromFile', to_float32=True),
        dict(type='LoadImageFromFile', imdecode_backend='pillow'),
        dict(type='LoadImageFromFile', color_type='grayscale'),
    ],
)
def test_pictures_that_are_loaded_otherwise_stay_so(step):
    steps = [step, dict(type='LoadAnnotations'), dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
    assert fast_pipeline(steps, 'uint8') == steps


def test_labels_keep_their_type_for_other_heads():
    config = equipped(**{'model.decode_head.type': 'FCNHead'})
    assert config.train_dataloader.dataset.pipeline[-1] == dict(type='FastPackSegInputs', label_dtype='int64')


def test_joined_data_sets_are_reached():
    config = Config.fromfile(CITYSCAPES)
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[config.train_dataloader.dataset] * 2)
    equip(config)
    for dataset in config.train_dataloader.dataset.datasets:
        assert dataset.pipeline[0].type == 'LoadResizedCrop'


def test_own_imports_are_kept():
    config = equipped(custom_imports=dict(imports='json', allow_failed_imports=True))
    assert config.custom_imports == dict(imports=['json', 'recipe.engine.components'], allow_failed_imports=True)


@pytest.mark.parametrize(
    ('overrides', 'named'),
    [
        ({'train_cfg.type': 'EpochBasedTrainLoop'}, 'train_cfg is EpochBasedTrainLoop'),
        ({'train_dataloader.sampler.type': 'DefaultSampler'}, 'train_dataloader.sampler is DefaultSampler'),
        ({'train_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler')}, 'has a batch_sampler'),
        ({'default_hooks.checkpoint.type': 'OwnHook'}, 'default_hooks.checkpoint is OwnHook'),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused(overrides, named):
    with pytest.raises(console.UserError, match=f'{named}.*--engine=upstream'):
        equipped(**overrides)


@pytest.mark.trains
def test_plain_mmengine_loads_the_config_of_a_run(tmp_path):
    equipped().dump(tmp_path / 'config.py')
    code = """
import sys
sys.modules['transformers'] = None  # not needed here, and slow to import
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import LOOPS, RUNNERS
config = Config.fromfile(sys.argv[1])
init_default_scope('mmseg')
assert LOOPS.get(config.train_cfg.type) and RUNNERS.get(config.runner_type)
"""
    subprocess.run([sys.executable, '-c', code, str(tmp_path / 'config.py')], cwd=paths.ROOT, check=True)
