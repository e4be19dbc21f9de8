"""A real training in small, to resume from any file: mmengine's Runner, the recipe's loop, hooks and optimizer."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from torch import nn

from recipe.engine import components  # noqa: F401  registers the types that the toy's training names


@MODELS.register_module(force=True)
class CheckpointToyModel(BaseModel):
    """A backbone and a head of one layer each."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.decode_head = nn.Linear(8, classes)

    def forward(self, inputs: Any, labels: Any, mode: str = 'tensor') -> dict:
        scores = self.decode_head(self.norm(self.backbone(inputs)))
        return {'loss': nn.functional.cross_entropy(scores, labels)}


@DATASETS.register_module(force=True)
class CheckpointToySet(torch.utils.data.Dataset):
    """Points of two classes."""

    def __init__(self) -> None:
        self.metainfo = {'classes': ('left', 'right')}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple:
        return torch.randn(3), index % 2


def make(folder: Path, max_iters: int = 2, load_from: Any = None, resume: bool = False, **model: Any) -> Runner:
    """A Runner that writes a checkpoint after every second iteration."""
    torch.manual_seed(0)
    return Runner(
        model=dict(type='CheckpointToyModel', **model),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=dict(type='CheckpointToySet'),
            batch_size=4,
            sampler=dict(type='ResumableInfiniteSampler'),
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='ResumableIterBasedTrainLoop', max_iters=max_iters, val_interval=100),
        optim_wrapper=dict(
            optimizer=dict(type='MergedAdamW', lr=0.1, weight_decay=0.05),
            paramwise_cfg=dict(norm_decay_mult=0.0),
            clip_grad=dict(max_norm=1.0),
        ),
        param_scheduler=[dict(type='PolyLR', power=0.9, eta_min=0, begin=0, end=10, by_epoch=False)],
        default_hooks=dict(
            runtime_info=dict(type='DeferredRuntimeInfoHook'),
            checkpoint=dict(type='AtomicCheckpointHook', interval=2, max_keep_ckpts=2),
            logger=None,
        ),
        default_scope='mmseg',
        experiment_name=uuid.uuid4().hex,  # mmengine keeps loggers by this name
        randomness=dict(seed=0),
        log_level='ERROR',
        load_from=None if load_from is None else str(load_from),
        resume=resume,
    )


def checkpoint(folder: Path) -> Path:
    """A checkpoint after two iterations."""
    make(folder).train()
    return folder / 'iter_2.pth'
