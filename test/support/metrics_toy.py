"""Real logs for the tests of the metrics: mmengine's Runner, mmseg's data set, metric and pictures, and a toy model."""

import logging
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from PIL import Image
from torch import nn

from recipe.engine import components  # noqa: F401  registers what the config names

HEIGHT, WIDTH = 32, 64
CLASSES_USED = 3  # of Cityscapes' 19: road, sidewalk, building
BATCH_SIZE = 2


@MODELS.register_module(force=True)
class MetricsToyModel(BaseModel):
    """A 1x1 convolution that can crash or go NaN at a chosen iteration of this process."""

    def __init__(self, crash_at=0, nan_at=0):
        super().__init__()
        self.head = nn.Conv2d(3, 19, 1)
        self.crash_at, self.nan_at = crash_at, nan_at
        self.iterations = 0

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.head(torch.stack(list(inputs)).float() / 255)
        if mode == 'predict':
            for sample, prediction in zip(data_samples, logits.argmax(1)):
                sample.pred_sem_seg = PixelData(data=prediction[None])
            return data_samples
        self.iterations += 1
        if self.iterations == self.crash_at:
            raise RuntimeError('toy crash')
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples])
        loss = nn.functional.cross_entropy(logits, labels.long(), ignore_index=255)
        if self.nan_at and self.iterations >= self.nan_at:
            loss = loss * float('nan')
        return {'decode.loss_cls': loss, 'decode.d0.loss_cls': loss / 2}


def make_cityscapes(root):
    """Eight tiny pictures in Cityscapes' layout, in each split."""
    rng = np.random.default_rng(0)
    for split, city in (('train', 'aachen'), ('val', 'frankfurt')):
        for part in ('leftImg8bit', 'gtFine'):
            (root / part / split / city).mkdir(parents=True)
        for index in range(8):
            label = np.sort(rng.integers(0, CLASSES_USED, (HEIGHT, WIDTH)), axis=0).astype(np.uint8)
            image = (label[..., None] * 80 + rng.integers(0, 60, (HEIGHT, WIDTH, 3))).astype(np.uint8)
            stem = f'{city}_{index:06d}_000019'
            Image.fromarray(image).save(root / 'leftImg8bit' / split / city / f'{stem}_leftImg8bit.png')
            Image.fromarray(label).save(root / 'gtFine' / split / city / f'{stem}_gtFine_labelTrainIds.png')
    return root


def config(
    work_dir,
    data_root,
    max_iters=12,
    val_interval=4,
    interval=2,
    patched=True,
    resume=False,
    draw=False,
    batch_size=BATCH_SIZE,
    **model,
):
    def loader(split, sampler, batch_size):
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=sampler,
            dataset=dict(
                type='CityscapesDataset',
                data_root=str(data_root),
                data_prefix=dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
            ),
        )

    validation = {}
    if val_interval:
        validation = dict(
            val_dataloader=loader('val', dict(type='DefaultSampler', shuffle=False), 1),
            val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
            val_cfg=dict(type='ValLoop'),
        )
    return Config(
        dict(
            default_scope='mmseg',
            work_dir=str(work_dir),
            experiment_name=f'toy_{time.time_ns()}',  # mmengine keeps loggers by this name
            model=dict(type='MetricsToyModel', **model),
            train_dataloader=loader(
                'train', dict(type='ResumableInfiniteSampler' if patched else 'InfiniteSampler'), batch_size
            ),
            train_cfg=dict(
                type='ResumableIterBasedTrainLoop' if patched else 'IterBasedTrainLoop',
                max_iters=max_iters,
                val_interval=val_interval or max_iters + 1,
            ),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.3)),
            param_scheduler=dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=max_iters, by_epoch=False),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=interval, log_metric_by_epoch=False),
                checkpoint=dict(
                    type='AtomicCheckpointHook' if patched else 'CheckpointHook', interval=4, by_epoch=False
                ),
                visualization=dict(type='SegVisualizationHook', draw=draw, interval=2),
            ),
            visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            log_processor=dict(by_epoch=False, window_size=interval),
            randomness=dict(seed=0),
            resume=resume,
            log_level='INFO',
            **validation,
        )
    )


def train(work_dir, data_root, edit=None, **options):
    """Train a toy, its config changed by ``edit``; returns the ``<timestamp>/`` folder of this start."""
    cfg = config(work_dir, data_root, **options)
    if edit:
        edit(cfg)
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        logger = MMLogger.get_instance(runner.experiment_name)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
    return Path(runner.log_dir)


def next_second():
    """Wait until mmengine names the folder of the next start differently."""
    time.sleep(1.0 - time.time() % 1.0 + 0.01)
