"""A trainer that is paused at the beginning of its loop; a caller runs iterations one by one.

Everything that belongs to an iteration is real: mmengine's Runner with its hooks, the optimizer wrapper, the schedules,
gradient clipping, and DDP if there are several ranks. Only the batches come from the caller. There are two kinds of
trainers: ours, and one with upstream's model, loop, hooks and optimizer.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List, Optional, Sequence
from unittest import mock

import torch

from recipe.bench import model as bench_model

_NEVER = 10**9


class _Begun(Exception):  # noqa: N818  not an error: it ends Runner.train where the first iteration would begin
    pass


@contextlib.contextmanager
def unformatted_configs() -> Iterator[None]:
    """Turn off the formatting of configs, which takes longer than a small training; ``dump`` needs it elsewhere."""
    from mmengine.config import Config

    with mock.patch.object(Config, 'pretty_text', property(repr)):
        yield


class Trainer:
    """A trainer that is paused before its next iteration.

    Args:
        config: Path, relative to the repository or absolute.
        overrides: Of the config, by dotted key.
        seed: Seed of the weights.
        amp: ``off``, ``bf16`` or ``fp16``.
        graphs: Whether to train in graphs of torch.compile: ours as with ``--compile``, upstream as mmengine does it.
        log_interval: Iterations between two log lines; 0 logs nothing.
        left_out: Default hooks to leave out, by their names in the config.
        upstream: Whether to train as upstream does, with the patches alone.

    Attributes:
        runner: The Runner.
        outputs: Values of the last iteration that the hooks log, by name.
    """

    def __init__(
        self,
        config: str = bench_model.DEMO,
        overrides: Optional[Dict[str, Any]] = None,
        seed: int = 0,
        amp: str = 'off',
        log_interval: int = 0,
        graphs: bool = False,
        left_out: Sequence[str] = (),
        upstream: bool = False,
    ) -> None:
        from mmengine.hooks import Hook
        from mmseg.engine.device import prepare_device
        from mmseg.utils import register_all_modules

        register_all_modules()
        trainer = self

        class Capture(Hook):
            def after_train_iter(
                self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
            ) -> None:
                trainer.outputs = outputs

        self._folder = tempfile.TemporaryDirectory(prefix='trainer-')
        cfg = resolve(config, overrides, seed, amp, log_interval, upstream)
        for name in left_out:
            cfg.default_hooks.pop(name)
        if graphs and not upstream:
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='CompileHook')]
        elif graphs:
            cfg.compile = True
        cfg.work_dir = self._folder.name
        # mmengine keeps objects by name until the process ends
        cfg.visualizer.name = cfg.experiment_name = Path(self._folder.name).name
        prepare_device(cfg)
        self.outputs: Dict[str, torch.Tensor] = {}
        with unformatted_configs():
            self._start(cfg, Capture(), upstream)

    def _start(self, cfg: Any, capture: Any, upstream: bool) -> None:
        from mmengine.runner import Runner

        from recipe.engine.runner import RecipeRunner

        self.runner = (Runner if upstream else RecipeRunner).from_cfg(cfg)
        self.runner.register_hook(capture, priority='LOWEST')
        build = self.runner.build_train_loop

        def build_held(loop: Any) -> Any:
            built = build(loop)
            built.run = self._begin
            return built

        self.runner.build_train_loop = build_held
        with contextlib.suppress(_Begun):
            self.runner.train()

    def _begin(self) -> None:
        loop = self.runner.train_loop
        if hasattr(loop, 'begin'):
            loop.begin()
        else:
            self.runner.call_hook('before_train')
            self.runner.call_hook('before_train_epoch')
        raise _Begun

    @property
    def model(self) -> Any:
        """The segmentor, without a wrapper."""
        return getattr(self.runner.model, 'module', self.runner.model)

    def iterate(self, data: Dict[str, Any], seed: Optional[int] = None) -> None:
        """Run one iteration as the loop does.

        Args:
            data: From ``model.samples``, as from the data loader; good for one iteration.
            seed: Seed of torch's random state before it; None leaves the state.
        """
        if seed is not None:
            torch.manual_seed(seed)
        loop = self.runner.train_loop
        getattr(loop, 'ensure_train_mode', self.runner.model.train)()
        loop.run_iter(data)


def resolve(
    config: str,
    overrides: Optional[Dict[str, Any]],
    seed: int,
    amp: str,
    log_interval: int = 0,
    upstream: bool = False,
) -> Any:
    """Config of a training from scratch without validation, checkpoints and files; the arguments of ``Trainer``."""
    from mmengine.config import Config
    from mmseg.registry import DATASETS

    from recipe.engine import equip

    cfg = Config.fromfile(bench_model.ROOT / config)
    if upstream:
        cfg.optim_wrapper.optimizer.type = 'AdamW'
    else:
        equip.equip(cfg)
    cfg.model.backbone.init_cfg = None
    cfg.randomness = dict(seed=seed)
    cfg.log_level = 'ERROR'
    cfg.launcher = 'pytorch' if int(os.environ.get('WORLD_SIZE', 1)) > 1 else 'none'
    for name in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{name}_{part}', None)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.pop('prefetch_factor', None)
    if 'NoImages' not in DATASETS:
        DATASETS.register_module(name='NoImages', module=_NoImages)
    cfg.train_dataloader.dataset = dict(type='NoImages')
    cfg.default_hooks.pop('visualization', None)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]  # ours also writes files, and takes no part
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    cfg.default_hooks.checkpoint.pop('save_best', None)
    cfg.default_hooks.logger.interval = log_interval or _NEVER
    cfg.default_hooks.logger.interval_exp_name = _NEVER
    if amp != 'off':
        _set_precision(cfg, amp, upstream)
    cfg.merge_from_dict(overrides or {})
    return cfg


class _NoImages(torch.utils.data.Dataset):
    """Replaces the data set, which is not read: the caller gives the batches."""

    metainfo: ClassVar[Dict[str, Any]] = {}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise IndexError(index)


def _set_precision(cfg: Any, amp: str, upstream: bool) -> None:
    for name in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(name, None)
    if not upstream:
        cfg.optim_wrapper.type = {'bf16': 'Bf16OptimWrapper', 'fp16': 'Fp16OptimWrapper'}[amp]
    else:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype={'bf16': 'bfloat16', 'fp16': 'float16'}[amp])


def iterate(trainer: Trainer, batch: Dict[str, List[torch.Tensor]], seed: Optional[int] = None) -> Dict[str, float]:
    """Run one iteration and read what it logs: loss terms by name, and ``loss``, their sum."""
    trainer.iterate(bench_model.samples(batch), seed)
    return {name: float(value) for name, value in trainer.outputs.items()}
