"""The recipe with a tiny model on tiny images, trained in processes of its own.

The processes come from a fork server that has imported torch and mmseg once, so that one costs a second, not five.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional

import mmseg
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmseg.engine.device import prepare_device
from mmseg.registry import RUNNERS
from PIL import Image

from recipe.engine.checkpoint import find_resumable, load_from_local
from recipe.engine.equip import equip
from recipe.engine.loaders import prepare_loaders
from recipe.engine.termination import leave

Sabotage = Callable[[Runner], None]

CHECKOUT = Path(mmseg.__file__).resolve().parents[1]
RECIPE = (
    CHECKOUT / 'configs/mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024_any-device.py'
)
SWIN = {
    'init_cfg': None,
    'embed_dims': 16,
    'depths': [1, 1, 1, 1],
    'num_heads': [2, 2, 2, 2],
    # 144 x 144 x 2 looked-up biases: enough for torch to add up their gradient in several threads
    'window_size': 12,
    'drop_path_rate': 0.3,
}
TRAIN_IMAGES = 7
MAX_ITERS = 12
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(
    ['resume_faults', 'recipe.engine.components', 'mmseg.models', 'mmdet.models', 'torch._dynamo']
)


def plain_text(cfg: Config) -> str:
    """Return a config as Python; mmengine's formatting of it takes as long as 12 iterations here."""
    return '\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items())


def write_cityscapes(root: Path) -> Path:
    """Write images of coloured blocks in the layout of Cityscapes; 7 to train on, 2 to validate on."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (19, 3), dtype=np.uint8)
    for split, count in (('train', TRAIN_IMAGES), ('val', 2)):
        for folder in ('leftImg8bit', 'gtFine'):
            (root / folder / split / 'city').mkdir(parents=True)
        for number in range(count):
            labels = np.kron(random.integers(0, 19, (5, 6)), np.ones((16, 16))).astype(np.uint8)
            image = colours[labels] // 2 + random.integers(0, 128, (*labels.shape, 3), dtype=np.uint8)
            labels[:3] = 255
            stem = f'city_{number:06d}_000019'
            Image.fromarray(image).save(root / f'leftImg8bit/{split}/city/{stem}_leftImg8bit.png')
            Image.fromarray(labels).save(root / f'gtFine/{split}/city/{stem}_gtFine_labelTrainIds.png')
    return root


def recipe(
    data: Path,
    work_dir: Path,
    workers: int = 0,
    equipped: bool = True,
    config: Path = RECIPE,
    backbone: Optional[dict] = None,
    **options,
) -> Config:
    """Return the recipe's config with a tiny model and 12 iterations; options override it by dotted key.

    With ``equipped=False`` it is upstream's, to be trained by mmengine's own loop. Another config may be given, with
    the settings that make its backbone tiny.
    """
    cfg = Config.fromfile(config)
    crop = (64, 64)
    head = {
        'in_channels': [16, 32, 64, 128],
        'feat_channels': 16,
        'out_channels': 16,
        'num_queries': 20,
        'positional_encoding.num_feats': 8,
        'pixel_decoder.norm_cfg.num_groups': 4,
        'pixel_decoder.positional_encoding.num_feats': 8,
        'pixel_decoder.encoder.num_layers': 1,
        'pixel_decoder.encoder.layer_cfg.self_attn_cfg.embed_dims': 16,
        'pixel_decoder.encoder.layer_cfg.self_attn_cfg.num_heads': 2,
        'pixel_decoder.encoder.layer_cfg.ffn_cfg.embed_dims': 16,
        'pixel_decoder.encoder.layer_cfg.ffn_cfg.feedforward_channels': 32,
        'transformer_decoder.num_layers': 1,
        'transformer_decoder.layer_cfg.self_attn_cfg.embed_dims': 16,
        'transformer_decoder.layer_cfg.self_attn_cfg.num_heads': 2,
        'transformer_decoder.layer_cfg.cross_attn_cfg.embed_dims': 16,
        'transformer_decoder.layer_cfg.cross_attn_cfg.num_heads': 2,
        'transformer_decoder.layer_cfg.ffn_cfg.embed_dims': 16,
        'transformer_decoder.layer_cfg.ffn_cfg.feedforward_channels': 32,
        'train_cfg.num_points': 64,
    }
    cfg.merge_from_dict({f'model.backbone.{key}': value for key, value in (backbone or SWIN).items()})
    cfg.merge_from_dict({f'model.decode_head.{key}': value for key, value in head.items()})
    _, _, resize, crop_step, *_ = cfg.train_dataloader.dataset.pipeline
    resize.update(scales=[64, 72, 80, 96], max_size=256)
    crop_step.update(crop_size=crop)
    cfg.val_dataloader.dataset.pipeline[1].scale = (96, 80)
    loaders = {}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loaders[f'{name}.num_workers'] = workers
        loaders[f'{name}.persistent_workers'] = workers > 0
        loaders[f'{name}.dataset.data_root'] = str(data)
        loaders[f'{name}.dataset.serialize_data'] = False
    cfg.merge_from_dict(
        {
            'model.data_preprocessor.size': crop,
            'param_scheduler': [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=MAX_ITERS, by_epoch=False)],
            'optim_wrapper.optimizer.lr': 1e-2,
            **loaders,
            'train_cfg': dict(type='IterBasedTrainLoop', max_iters=MAX_ITERS, val_interval=4),
            'default_hooks.checkpoint': dict(
                type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=2, save_best='mIoU'
            ),
            'default_hooks.logger.interval': 1,
            'randomness': dict(seed=3),
            'work_dir': str(work_dir),
        }
    )
    if equipped:
        equip(cfg)
    cfg.merge_from_dict(options)
    # less text to format for each checkpoint
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(backbone=dict(lr_mult=0.1), query_embed=dict(decay_mult=0.0))
    for name in ('tta_model', 'tta_pipeline', 'train_pipeline', 'test_pipeline'):
        cfg.pop(name, None)
    return cfg


def train_rank(
    config: Path, rank: int, world: int, port: int, resume: bool, sabotage: Optional[Sabotage], log: Path
) -> None:
    """Train as one rank of a job, in a process of its own."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Config.pretty_text = property(plain_text)  # it is part of every checkpoint
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
        )
    cfg = Config.fromfile(config)
    cfg.launcher = 'pytorch' if world > 1 else 'none'
    if resume:
        cfg.load_from, skipped = find_resumable(cfg.work_dir)
        cfg.resume = True
        line = f'RESUMED {Path(cfg.load_from).name} {[(Path(path).name, why) for path, why in skipped]}\n'
        os.write(1, line.encode())  # in one piece: print() writes word by word, and the ranks share the file
    prepare_loaders(cfg, prepare_device(cfg))
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if sabotage is not None:
        sabotage(runner)
    try:
        runner.train()
    except SystemExit as ended:  # as recipe.engine.train does
        leave(ended)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@dataclass
class Outcome:
    """How a job ended: the exit code of each rank (-9: killed) and what all of them printed."""

    codes: List[int]
    output: str


def start(
    cfg: Config, world: int = 1, resume: bool = False, sabotage: Optional[Sabotage] = None
) -> List[multiprocessing.Process]:
    """Start the ranks of a job; they print to output.txt in its folder."""
    work_dir = Path(cfg.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    config = work_dir / 'config.py'
    config.write_text(plain_text(cfg))
    log = work_dir / 'output.txt'
    log.write_text('')
    port = free_port()
    ranks = [
        CONTEXT.Process(target=train_rank, args=(config, rank, world, port, resume, sabotage, log))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def train(cfg: Config, world: int = 1, resume: bool = False, sabotage: Optional[Sabotage] = None) -> Outcome:
    """Run a job to its end."""
    ranks = start(cfg, world, resume, sabotage)
    for process in ranks:
        process.join()
    output = Path(cfg.work_dir) / 'output.txt'  # it may be gone with its disk
    return Outcome([process.exitcode for process in ranks], output.read_text() if output.exists() else '')


def equal_or_both_nan(one: Any, other: Any) -> Any:
    """Compare arrays or tensors, element by element; where float16 overflows, the norm of the gradient is NaN."""
    return (one == other) | ((one != one) & (other != other))


def differences(one: Any, other: Any, where: str = '') -> List[str]:
    """Return where two checkpoints differ in what training made of them: not in times, paths and names of the runs."""
    # mmengine_version: with it mmengine notes the commit of whichever repository it is started in
    if where.split('/')[-1] in ('cfg', 'experiment_name', 'time', 'data_time', 'eta', 'last_ckpt', 'mmengine_version'):
        return []
    if where in ('/message_hub/runtime_info/iter', '/message_hub/runtime_info/keep_ckpt_ids'):
        # The former is set when an iteration begins, and one higher when training begins; the latter lists the files.
        return []
    if isinstance(one, HistoryBuffer):
        one, other = one.data, other.data
    if type(one) is not type(other):
        return [where]
    if isinstance(one, dict):
        keys = [f'{where}/{key}' for key in one.keys() ^ other.keys()]
        return keys + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f'{where}/{key}')
        ]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [where]
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f'{where}/{i}')]
    if isinstance(one, (torch.Tensor, np.ndarray)):
        same = one.dtype == other.dtype and one.shape == other.shape and bool(equal_or_both_nan(one, other).all())
    elif where.endswith('runtime_info/best_ckpt'):
        same = Path(one).name == Path(other).name
    else:
        same = one == other
    return [] if same else [where]


def assert_same_end(work_dir: Path, unbroken: Path) -> None:
    """Check that a run ended with the checkpoints, and bit by bit with the state, of one that was never stopped."""
    names = [sorted(path.name for path in folder.glob('*.pth*')) for folder in (work_dir, unbroken)]
    assert names[0] == names[1], names
    assert not list(work_dir.glob('.*')), 'temporary files are left'
    for name in names[0]:
        found = differences(load_from_local(work_dir / name), load_from_local(unbroken / name))
        assert not found, f'{name} differs in {found}'
