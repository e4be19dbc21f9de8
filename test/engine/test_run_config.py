from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch

from recipe.core import console, paths
from recipe.engine import config as run_config
from recipe.engine import config_values, overrides, size
from recipe.launch import options

DATA = Path('/some/cityscapes')


def make(script='full', *argv, device='cpu'):
    return run_config.make(options.parse(script, list(argv)), device, DATA)


def test_the_recipe_is_untouched_where_nothing_is_asked():
    config = make()
    assert config.model == run_config.load(run_config.RECIPE).model
    assert (config.train_cfg.max_iters, config.train_cfg.val_interval) == (90000, 5000)
    assert config.default_hooks.checkpoint.interval == 5000
    assert config.train_dataloader.batch_size == 2


def data_roots(config):
    return [value for key, value in overrides.leaves(config) if key.endswith('.data_root')]


def test_the_data_root_reaches_every_data_set():
    assert data_roots(make()) == [str(DATA)] * 3  # to train, validate and test on


def test_the_data_root_reaches_wrapped_and_joined_data_sets(tmp_path):
    inner = "dict(type='CityscapesDataset', data_root='x', pipeline=[dict(type='LoadAnnotations')])"
    wrapped = f"dict(type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset={inner}), {inner}])"
    path = tmp_path / 'wrapped.py'
    path.write_text(
        f"_base_ = ['{run_config.RECIPE}']\ntrain_dataloader = dict(dataset=dict(_delete_=True, **{wrapped}))\n"
    )
    assert data_roots(make('full', f'--config={path}')) == [str(DATA)] * 4


def test_numbers_of_the_options():
    config = make('full', '--batch_size=3', '--num_workers=4', '--seed=7', '--val_interval=50')
    assert config.train_dataloader.batch_size == 3
    assert config.val_dataloader.batch_size == run_config.load(run_config.RECIPE).val_dataloader.batch_size
    assert config.train_dataloader.num_workers == config.val_dataloader.num_workers == 4
    assert config.randomness.seed == 7
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == 50


@pytest.mark.parametrize('script', ['full', 'performance'])
def test_points_of_the_loss(script):
    assert make(script).model.decode_head.train_cfg.num_points == 12544
    assert make(script, '--num_points=3136').model.decode_head.train_cfg.num_points == 3136


def test_points_need_a_head_that_compares_masks_at_points(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        f"_base_ = ['{run_config.RECIPE}']\nmodel = dict(decode_head=dict(train_cfg=dict(_delete_=True)))\n"
    )
    with pytest.raises(console.UserError, match='--num_points: the config has no'):
        make('full', '--num_points=3136', f'--config={path}')


def test_a_resumed_run_is_told_that_its_points_have_changed(tmp_path):
    make('full', '--num_points=3136').dump(str(tmp_path / 'config.py'))
    assert run_config.differences(tmp_path / 'config.py', make('full', '--num_points=3136')) == []
    (told,) = run_config.differences(tmp_path / 'config.py', make('full'))
    assert told == 'model.decode_head.train_cfg.num_points: 3136 -> 12544'


@pytest.mark.parametrize(
    ('given', 'kept'), [((), 3), (('--keep_checkpoints=5',), 5), (('--keep_checkpoints=all',), -1)]
)
@pytest.mark.parametrize('engine', ['recipe', 'upstream'])
def test_checkpoints_to_keep(given, kept, engine):
    hook = make('full', f'--engine={engine}', *given).default_hooks.checkpoint
    assert (hook.max_keep_ckpts, hook.save_best) == (kept, 'mIoU')


@pytest.mark.parametrize(
    ('given', 'existing', 'count'),
    [
        ((), 0, 5),  # three, the best and the one that is being written
        (('--keep_checkpoints=all',), 0, 19),  # 90000 / 5000, and one twice while it is replaced
        (('--keep_checkpoints=all',), 18, 1),
        (('--keep_checkpoints=all', '--max_iters=100', '--val_interval=60'), 0, 3),
        (('--max_iters=100', '--val_interval=100'), 0, 2),
    ],
)
def test_room_for_the_checkpoints(given, existing, count):
    model = torch.nn.Linear(9, 1)
    assert size.disk_bytes(make('full', *given), model, existing) == count * 10 * 12 + size.LOG_BYTES
    assert size.disk_bytes(make('performance'), model) == size.LOG_BYTES


def test_what_may_be_skipped():
    config = make('full', '--on_nan=skip:3', '--on_bad_image=skip:4')
    assert (config.default_hooks.nonfinite_guard.max_skips, config.train_cfg.max_unreadable) == (3, 4)
    config = make('full', '--on_nan=stop', '--on_bad_image=stop')
    assert (config.default_hooks.nonfinite_guard.max_skips, config.train_cfg.max_unreadable) == (0, 0)


@pytest.mark.parametrize(
    ('option', 'without', 'lacks'),
    [
        ('--on_nan=skip:3', "default_hooks['nonfinite_guard'] = dict(type='EmptyCacheHook')", 'NonFiniteGuardHook'),
        ('--on_nan=skip:3 --engine=upstream', '', 'NonFiniteGuardHook'),
        ('--on_bad_image=stop --engine=upstream', '', 'ResumableIterBasedTrainLoop'),
    ],
)
def test_skipping_needs_what_does_it(tmp_path, option, without, lacks):
    recipe = run_config.load(run_config.RECIPE)
    path = tmp_path / 'config.py'
    recipe.dump(str(path))
    path.write_text(f'{path.read_text()}\n{without}\n')
    with pytest.raises(console.UserError, match=f'{option.split("=")[0]}: the config has no {lacks}'):
        make('full', *option.split(), f'--config={path}')


def test_loaders_without_processes_have_none_that_persist():
    for loader in ('train_dataloader', 'val_dataloader'):
        assert make('full', '--num_workers=0')[loader].persistent_workers is False
        assert make('full', '--num_workers=1')[loader].persistent_workers is True


def test_the_learning_rate_follows_max_iters():
    config = make('full', '--max_iters=123')
    assert config.train_cfg.max_iters == 123
    assert [phase['end'] for phase in config.param_scheduler] == [123]


def test_a_training_shorter_than_its_warm_up_is_all_warm_up():
    whole = run_config.load(run_config.DEMO).param_scheduler
    assert whole[0]['end'] > 10
    config = make('full', '--demo', '--max_iters=10')
    assert [(phase['type'], phase['begin'], phase['end']) for phase in config.param_scheduler] == [('LinearLR', 0, 10)]
    assert config.default_hooks.logger.interval <= 10


def test_a_performance_run_keeps_no_checkpoint_and_is_short():
    config = make('performance')
    assert config.default_hooks.checkpoint is None
    assert (config.train_cfg.max_iters, config.train_cfg.val_interval) == (1000, 1000)
    assert config.param_scheduler[-1]['end'] == 1000
    assert make('performance', '--max_iters=30').train_cfg.val_interval == 30
    assert make('full', '--demo').train_cfg.max_iters > make('performance', '--demo').train_cfg.max_iters


def test_precision(monkeypatch):
    assert make('full', '--amp=bf16').optim_wrapper.type == 'Bf16OptimWrapper'
    assert 'loss_scale' not in make('full', '--amp=bf16').optim_wrapper
    for device in ('npu', 'cuda', 'cpu'):
        assert make('full', '--amp=fp16', device=device).optim_wrapper.type == 'Fp16OptimWrapper'
    assert make('full', '--amp=off').optim_wrapper.type == 'OptimWrapper'
    monkeypatch.delattr(torch.amp, 'GradScaler', raising=False)  # as in torch before 2.3
    with pytest.raises(console.UserError, match='--amp=fp16'):
        make('full', '--amp=fp16', device='cpu')


def test_tf32_is_left_to_torch_unless_asked_for():
    assert make('full').get('allow_tf32') is None
    assert make('full', '--tf32=1').allow_tf32 is True
    assert make('full', '--tf32=0').allow_tf32 is False


def test_graphs_come_with_a_hook_and_not_on_an_npu():
    assert not any(hook['type'] == 'CompileHook' for hook in make('full').get('custom_hooks') or [])
    for device in ('cuda', 'cpu'):
        assert [hook['type'] for hook in make('full', '--compile=1', device=device).custom_hooks][-1] == 'CompileHook'
    with pytest.raises(console.UserError, match=r'--compile=1: .*NPU'):
        make('full', '--compile=1', device='npu')


def test_a_whole_step_graph_is_for_a_gpu():
    assert make('full', '--graph=1', device='cuda').train_cfg.graph is True
    assert 'graph' not in make('full', device='cuda').train_cfg
    for device in ('npu', 'cpu'):
        with pytest.raises(console.UserError, match=f'--graph=1: a CUDA graph needs a GPU, and .* on {device}'):
            make('full', '--graph=1', device=device)


def test_the_recipes_runner_trains_and_is_told_whether_to_accelerate(tmp_path):
    for given, fast in (((), True), (('--fast=1',), True), (('--fast=0',), False)):
        config = make('full', *given)
        assert (config.runner_type, config.fast) == ('RecipeRunner', fast)
        assert config.custom_imports['imports'] == ['recipe.engine.components']
    own = tmp_path / 'own.py'
    own.write_text(
        f"_base_ = {str(run_config.RECIPE)!r}\ncustom_imports = dict(imports='json', allow_failed_imports=True)\n"
    )
    imports = make('full', f'--config={own}').custom_imports
    assert imports == dict(imports=['json', 'recipe.engine.components'], allow_failed_imports=True)


def test_overrides_come_last_and_have_the_syntax_of_cfg_options():
    config = make(
        'full',
        '--batch_size=3',
        '--',
        'train_dataloader.batch_size=5',
        'optim_wrapper.optimizer.betas=(0.8, 0.9)',
        'val_dataloader.dataset.pipeline.1.keep_ratio=False',
        'model.backbone.init_cfg=None',
    )
    assert config.train_dataloader.batch_size == 5
    assert config.optim_wrapper.optimizer.betas == (0.8, 0.9)
    assert config.val_dataloader.dataset.pipeline[1].keep_ratio is False
    assert config.model.backbone.init_cfg is None


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('model.backbone.dephts=1', 'did you mean model.backbone.depths?'),
        ('model.decode_head.num_querys=3', 'did you mean model.decode_head.num_queries?'),
        ('no_such_thing_at_all=1', 'the config has no no_such_thing_at_all'),
        ('val_dataloader.dataset.pipeline.99.prob=1', 'the config has no val_dataloader.dataset.pipeline.99'),
        ('model.backbone.embed_dims.more=1', 'the config has no model.backbone.embed_dims.more'),
        ('model=1', 'model is a group of settings'),
        ('train_cfg.max_iters=many', 'give a number'),
        ('model.backbone.with_cp=maybe', 'give True or False'),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(console.UserError) as caught:
        make('full', '--', text)
    assert said in str(caught.value)


@functools.lru_cache(maxsize=None)
def made_once(demo):
    return make('full', *(['--demo'] if demo else []))


def overridden(text, demo=False):
    """The end of ``make``, which takes a hundredth of the time of all of it."""
    config = copy.deepcopy(made_once(demo))
    run_config.override(config, [text])
    config_values.require(config)


def test_values_are_checked_when_a_config_is_made():
    with pytest.raises(console.UserError, match='batch_size=0 is not a whole number from 1 on'):
        make('full', '--', 'train_dataloader.batch_size=0')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0 is not a whole number from 1 on'),
        ('train_dataloader.batch_size=2.5', 'train_dataloader.batch_size=2.5 is not a whole number'),
        ('train_dataloader.batch_size=True', 'train_dataloader.batch_size=True is not a whole number'),
        ('val_dataloader.num_workers=-1', 'val_dataloader.num_workers=-1 is not a whole number from 0 on'),
        ('train_cfg.max_iters=-3', 'train_cfg.max_iters=-3 is not a whole number from 1 on'),
        ('train_cfg.max_iters=None', 'train_cfg.max_iters=None is not'),
        ('train_cfg.val_interval=0', 'train_cfg.val_interval=0 is not a whole number from 1 on'),
        ('default_hooks.logger.interval=99999', 'default_hooks.logger.interval=99999: no loss would be logged'),
        ('default_hooks.logger.interval=0', 'default_hooks.logger.interval=0 is not'),
        ('default_hooks.checkpoint.max_keep_ckpts=0', 'default_hooks.checkpoint.max_keep_ckpts=0 is not'),
        ('optim_wrapper=None', 'optim_wrapper=None: a training needs this group'),
        ('train_dataloader=None', 'train_dataloader=None: a training needs this group'),
        ('val_evaluator=None', 'val_evaluator=None: a training needs this group'),
        ('optim_wrapper.optimizer=None', 'optim_wrapper.optimizer=None: '),
        ('optim_wrapper.optimizer.lr=nan', 'optim_wrapper.optimizer.lr=nan is not a number from 0 on'),
        ('optim_wrapper.optimizer.lr=-0.1', 'optim_wrapper.optimizer.lr=-0.1 is not'),
        ('optim_wrapper.optimizer.lr=inf', 'optim_wrapper.optimizer.lr=inf is not'),
        ('optim_wrapper.optimizer.weight_decay=-1', 'optim_wrapper.optimizer.weight_decay=-1 is not'),
        ('optim_wrapper.optimizer.betas=(0.9,2)', 'optim_wrapper.optimizer.betas=(0.9, 2) is not two values'),
        ('optim_wrapper.clip_grad.max_norm=0', 'optim_wrapper.clip_grad.max_norm=0 is not a number above 0'),
        ('optim_wrapper.accumulative_counts=0', 'optim_wrapper.accumulative_counts=0 is not'),
        ('param_scheduler.0.power=nan', 'param_scheduler.0.power=nan is not'),
        ('model.decode_head.loss_dice.eps=nan', 'model.decode_head.loss_dice.eps=nan is not a number'),
        ('randomness.seed=-1', 'randomness.seed=-1 is not a whole number from 0 to 4294967295, or None'),
        ('train_dataloader.dataset.pipeline=[]', 'train_dataloader.dataset.pipeline=[] is not a list of at least one'),
        ('train_dataloader.dataset.pipeline=5', 'train_dataloader.dataset.pipeline is a list of groups of settings'),
        ('train_dataloader.dataset.pipeline.1.prob=5', 'train_dataloader.dataset.pipeline.1 (FastRandomFlip): '),
        (
            'train_dataloader.dataset.type=NoSuchSet',
            "train_dataloader.dataset.type='NoSuchSet': there is no such class",
        ),
        ('optim_wrapper.optimizer.type=NoSuch', "optim_wrapper.optimizer.type='NoSuch': there is no such class"),
        ('default_hooks.timer.type=NoSuchHook', "default_hooks.timer.type='NoSuchHook': there is no such class"),
        ('model.decode_head.loss_cls.class_weight=[1.0,2.0]', 'class_weight has 2 weights, and 20 are needed'),
        ('max_iters=-3', 'override max_iters: max_iters is a variable of the config file, and nothing reads it'),
        ('crop_size=(64,64)', 'nothing reads it after the file was read; override the setting itself'),
    ],
)
def test_a_value_that_no_training_can_have_is_refused_with_its_key(text, said):
    with pytest.raises(console.UserError) as caught:
        overridden(text, demo=text.startswith(('max_iters', 'randomness')))  # whose config has them
    assert said in str(caught.value)


def test_the_setting_that_was_meant_is_named():
    with pytest.raises(console.UserError, match=r'override the setting itself: train_cfg\.max_iters'):
        overridden('max_iters=7', demo=True)


def test_label_weights_count_the_class_of_no_object(tmp_path):
    right = [1.0] * 19 + [0.1]
    overridden(f'model.decode_head.loss_cls.class_weight={right}'.replace(' ', ''))
    for wrong in (right[1:], [*right, 1.0], [0.0] * 20, [-1.0, *right[1:]]):
        with pytest.raises(console.UserError, match=r'model\.decode_head\.loss_cls\.class_weight'):
            overridden(f'model.decode_head.loss_cls.class_weight={wrong}'.replace(' ', ''))


@pytest.mark.parametrize(
    'name',
    [
        'mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',  # a variable from before mmengine
        'san/san-vit-b16_coco-stuff164k-640x640.py',  # weights with no object among other losses
        'segnext/segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512.py',
        'maskformer/maskformer_r101-d32_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_configs_of_upstream_are_taken(name):
    make('full', f'--config={paths.ROOT}/mmsegmentation/configs/{name}', '--engine=upstream')


@pytest.mark.parametrize(
    'text',
    [
        'optim_wrapper.clip_grad.max_norm=inf',
        'optim_wrapper.clip_grad=None',
        'optim_wrapper.optimizer.lr=0',
        'param_scheduler=None',
        'default_hooks.checkpoint.interval=-1',
        'model.decode_head.loss_cls.class_weight=None',
        'visualizer=None',
        'randomness.seed=None',
        'train_dataloader.batch_size=3',
    ],
)
def test_unusual_values_that_can_be_meant_are_taken(text):
    overridden(text, demo=True)


@pytest.mark.parametrize(
    'text',
    [
        'optim_wrapper.accumulative_counts=2',
        'train_dataloader.pin_memory=True',
        'default_hooks.checkpoint.max_keep_ckpts=3',
        'model.decode_head.loss_cls.avg_non_ignore=True',
        'model.test_cfg.crop_size=512',
    ],
)
def test_a_key_that_the_config_lacks_and_its_class_knows_is_taken(text):
    key, value = text.split('=')
    config = make('full', '--', text)
    assert str(dict(overrides.leaves(config))[key]) == value


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('model = dict(', 'cannot be read: SyntaxError'),
        ("_base_ = ['no_such_base.py']", 'cannot be read'),
        ('x = 1', 'has no model'),
        (f"_base_ = ['{run_config.RECIPE}']\ntrain_cfg = dict(max_iters=None)", 'has no train_cfg.max_iters'),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, said):
    path = tmp_path / 'bad.py'
    path.write_text(content)
    with pytest.raises(console.UserError) as caught:
        make('full', f'--config={path}')
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_written_config_reads_back_the_same(tmp_path):
    config = make('full', '--max_iters=100', '--seed=3', '--amp=bf16')
    config.dump(str(tmp_path / 'config.py'))
    assert run_config.differences(tmp_path / 'config.py', config) == []
    changed = make('full', '--max_iters=100', '--seed=4', '--amp=bf16')
    assert run_config.differences(tmp_path / 'config.py', changed) == ['randomness.seed: 3 -> 4']
    assert run_config.differences(tmp_path / 'none.py', config) == []


def test_the_config_of_a_run_from_elsewhere_is_not_run(tmp_path):
    """A folder to resume may come from anywhere, and a config is Python."""
    config = run_config.make(options.parse('full', []), 'cpu', tmp_path)
    path = tmp_path / 'config.py'
    path.write_text(f'{config.pretty_text}\nopen({str(tmp_path / "ran")!r}, "w")\nseed = __import__("os").getpid()\n')
    assert run_config.differences(path, config) == []
    assert not (tmp_path / 'ran').exists()


def test_where_the_weights_come_from(tmp_path):
    config = make()
    assert run_config.weights_source(config).endswith('-e5c09f74.pth')
    run_config.set_weights(config, tmp_path / 'w.pth')
    assert run_config.weights_source(config) == str(tmp_path / 'w.pth')
    run_config.set_weights(config, None)
    assert run_config.weights_source(config) is None
    assert run_config.weights_source(make('full', '--demo')) is None


def test_a_config_that_makes_no_model_is_one_line():
    with pytest.raises(console.UserError, match='the config does not make a model: '):
        run_config.build_model(make('full', '--demo', '--', 'model.backbone.depths=5'))


def test_the_config_of_a_run_made_before_the_engine_left_the_patch(tmp_path):
    """Its types are those of the patch of then, and processes filled settings in; nothing that was chosen differs."""
    before = make()
    before.optim_wrapper.optimizer.type = 'DeviceAdamW'
    before.val_evaluator.type = before.test_evaluator.type = 'IoUMetric'
    for name in ('custom_imports', 'runner_type', 'fast'):
        before.pop(name)
    before.launcher, before.work_dir = 'pytorch', str(tmp_path)
    before.model_wrapper_cfg = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    before.env_cfg.dist_cfg.backend = 'gloo'
    before.resume, before.load_from = True, str(tmp_path / 'iter_5.pth')
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        before[name].update(pin_memory=True, prefetch_factor=4)
    before.dump(str(tmp_path / 'config.py'))
    assert run_config.differences(tmp_path / 'config.py', make(device='cuda'), 'cuda') == []


def test_what_was_chosen_anew_is_said(tmp_path):
    make('full', '--engine=upstream', '--fast=0', '--num_workers=3').dump(str(tmp_path / 'config.py'))
    assert run_config.differences(tmp_path / 'config.py', make('full', '--num_workers=1', '--seed=4')) == [
        'engine: upstream -> recipe',
        'fast: False -> True',
        'randomness.seed: None -> 4',
        'test_dataloader.num_workers: 3 -> 1',
        'train_dataloader.num_workers: 3 -> 1',
        'val_dataloader.num_workers: 3 -> 1',
    ]
