"""Images per second in validation: upstream's and ours, in turns, on the same pictures.

``bench.py validation`` runs it. Each side runs mmengine's own validation of the same config, weights and pictures:
loading, preprocessing, model, prediction at full size, and the metric. The loader processes live through all rounds. A
round is one pass over the pictures; the first one warms up. If a metric of a round differs from upstream's, nothing is
reported.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from recipe.core import console
from recipe.core.paths import ROOT

# Points of mIoU, mAcc and aAcc. A pixel whose two best classes are equal but for rounding may change its class.
TOLERANCE = 0.05
_SCENE_SEED = 0


def scenes(folder: Path, images: int, height: int, width: int) -> Path:
    """Draw street scenes to validate on.

    Args:
        folder: An empty folder.
        images: How many.
        height: Of each, in pixels.
        width: Likewise.

    Returns:
        The Cityscapes root.
    """
    from recipe.data import demo, prepare

    root = folder / 'data'
    demo.demo(root, demo.DemoSet(1, images, width, height, _SCENE_SEED))
    prepare.prepare(root)
    return root


class Validation:
    """A runner that is paused before a validation.

    Args:
        config: Path, relative to the repository or absolute.
        overrides: Of the config, by dotted key.
        data_root: Cityscapes root.
        images: Number of pictures to use; None takes all.
        workers: Loader processes.
        seed: Seed of the weights.
        upstream: Whether model, transforms and metric are upstream's.
    """

    def __init__(
        self,
        config: str,
        overrides: Dict[str, Any],
        data_root: str,
        images: Optional[int] = None,
        workers: int = 2,
        seed: int = 0,
        upstream: bool = False,
    ) -> None:
        from mmengine.config import Config
        from mmengine.runner import Runner
        from mmseg.engine.device import prepare_device
        from mmseg.utils import register_all_modules

        from recipe.bench import trainer
        from recipe.engine import equip
        from recipe.engine.loaders import prepare_loaders
        from recipe.engine.runner import RecipeRunner

        register_all_modules()
        self._folder = tempfile.TemporaryDirectory(prefix='validation-')
        cfg = Config.fromfile(ROOT / config)
        cfg.model.backbone.init_cfg = None
        cfg.merge_from_dict({'randomness': dict(seed=seed), 'log_level': 'ERROR', **overrides})
        loader = cfg.val_dataloader
        loader.update(num_workers=workers, persistent_workers=workers > 0)
        if workers:
            loader.setdefault('prefetch_factor', 4)  # on both sides
        loader.dataset.data_root = data_root
        if images is not None:
            loader.dataset.indices = images
        cfg.work_dir = self._folder.name
        device = prepare_device(cfg)
        if not upstream:
            equip.equip(cfg)
            prepare_loaders(cfg, device)
        with trainer.unformatted_configs():
            self.runner = (Runner if upstream else RecipeRunner)(
                model=cfg.model,
                work_dir=self._folder.name,
                val_dataloader=loader,
                val_cfg=cfg.val_cfg,
                val_evaluator=cfg.val_evaluator,
                randomness=cfg.randomness,
                env_cfg=cfg.env_cfg,
                log_level='ERROR',
                default_scope=cfg.default_scope,
                experiment_name=Path(self._folder.name).name,
                default_hooks=dict(logger=dict(type='LoggerHook', interval=10**9), checkpoint=None),
            )
        self.model.init_weights()
        self.loop = self.runner.build_val_loop(cfg.val_cfg)

    @property
    def model(self) -> Any:
        """The segmentor."""
        return self.runner.model

    def run(self) -> Tuple[float, Dict[str, float]]:
        """Validate once; returns seconds, with the device synchronised, and the metrics."""
        import torch

        device = next(self.model.parameters()).device

        def synchronize() -> None:
            if device.type != 'cpu':
                getattr(torch, device.type).synchronize()

        synchronize()
        begin = time.perf_counter()
        metrics = self.loop.run()
        synchronize()
        return time.perf_counter() - begin, {name: float(value) for name, value in metrics.items()}


def require_same(theirs: Dict[str, float], ours: Dict[str, float]) -> None:
    """Raise an error if metrics differ.

    Raises:
        console.UserError: Names the metric.
    """
    for name in sorted({*theirs, *ours}):
        one, other = theirs.get(name, float('nan')), ours.get(name, float('nan'))
        if not abs(one - other) <= TOLERANCE:
            raise console.UserError(
                f'the metrics differ: {name} is {other}, upstream has {one} (tolerance {TOLERANCE}); '
                'nothing is reported'
            )
