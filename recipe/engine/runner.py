"""mmengine's runner, with changes that a hook cannot make."""

import os
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast, is_main_process
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmseg.registry import RUNNERS
from torch import nn
from torch.utils.data import DataLoader

from recipe.core import run_folder
from recipe.data.position_seeded_dataset import PositionSeededDataset
from recipe.data.unreadable import FileNamingDataset
from recipe.models import accelerate
from recipe.models.freezing import freeze_backbone

_NAME_BYTES = 32
# Options of mmengine's DDP, as BucketedDataParallel has them, and those that change no result.
_BUCKETED = {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False, 'find_unused_parameters': False}
_LAYOUT = ('bucket_cap_mb', 'device_ids', 'gradient_as_bucket_view')


@RUNNERS.register_module()
class RecipeRunner(Runner):
    """mmengine's runner, with five additions.

    It

    - leaves the config file that the launcher wrote alone;
    - puts the fast modules into the model, unless the config has ``fast=False``;
    - names the file of a sample that cannot be read;
    - averages gradients over the ranks with few operators, unless the config needs DDP (:meth:`wrap_model`);
    - gives each start its own log folder. Its name sorts after the names of all earlier starts: ``20260101_120000``, or
      ``20260101_120000_002`` if there is a folder of this second or a later one. mmengine names the folder by the
      second of the start, so two starts in one second would overwrite each other's files.
    """

    def setup_env(self, env_cfg: Dict) -> None:
        """Set up the environment. Rank 0 makes the log folder and sends its name to the other ranks."""
        super().setup_env(env_cfg)
        name = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
        if is_main_process():
            chosen = make_log_folder(Path(self.work_dir)).encode()
            name[: len(chosen)] = torch.tensor(list(chosen), dtype=torch.uint8)
        broadcast(name)
        self._timestamp = bytes(name.tolist()).rstrip(b'\0').decode()

    def dump_config(self) -> None:
        """Write the config into the work directory, unless it was read from there.

        The launcher's file stays as it is. It holds what the user chose, without what this process has filled in.
        """
        own = self.cfg.filename
        if own is None or os.path.realpath(os.path.dirname(own)) != os.path.realpath(self.work_dir):
            super().dump_config()

    def build_model(self, model: Union[nn.Module, Dict]) -> nn.Module:
        """Build the model, before it is moved to the device and wrapped."""
        model, replaced = adapt_model(super().build_model(model), self.cfg)
        if replaced is not None:
            parts = ', '.join(f'{count} {name}' for name, count in replaced.items())
            self.logger.info(f'fast modules (--fast=0 leaves them out): {parts or "none fits this model"}')
        return model

    def wrap_model(self, model_wrapper_cfg: Optional[Dict], model: nn.Module) -> nn.Module:
        """Wrap the model for distributed training.

        :class:`BucketedDataParallel` takes the place of mmengine's DDP, whose result it has, unless the config asks DDP
        for more, as for its search for unused parameters.
        """
        # What mmengine does without model_wrapper_cfg, and what DDP does by default with it.
        unused = not model_wrapper_cfg and self.cfg.get('find_unused_parameters', False)
        default = {'find_unused_parameters': unused, 'broadcast_buffers': bool(model_wrapper_cfg)}
        asked = {**default, **(model_wrapper_cfg or {})}.items()
        if all(name in _LAYOUT or _BUCKETED.get(name) == value for name, value in asked):
            model_wrapper_cfg = {'type': 'BucketedDataParallel'}
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(
        dataloader: Union[DataLoader, Dict], seed: Optional[int] = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a data loader whose errors name the file; see :class:`FileNamingDataset`."""
        if isinstance(dataloader, dict):
            dataset = dataloader.get('dataset')
            if isinstance(dataset, dict) and dataset['type'] is not PositionSeededDataset:  # it names files itself
                dataloader = {**dataloader, 'dataset': {'type': FileNamingDataset, 'dataset': dataset}}
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)


def adapt_model(model: nn.Module, config: Any) -> Tuple[nn.Module, Optional[Dict[str, int]]]:
    """Adapt a built model to the device and the config.

    Args:
        model: The model, on the CPU.
        config: ``mmengine.Config``; ``fast=False`` keeps upstream's modules, ``freeze_backbone=True`` does not train
            the backbone.

    Returns:
        The model; if it trains on a CPU, synchronized batch norms are replaced by plain ones. And how many modules of
        each class were replaced by fast ones, None with ``fast=False``.
    """
    if get_device() == 'cpu':
        model = revert_sync_batchnorm(model)
    replaced = accelerate(model) if config.get('fast', True) else None
    if config.get('freeze_backbone'):
        freeze_backbone(model)
    # A backbone freezes its frozen_stages here. A wrapper for distributed training, which is next, has to know of it.
    return model.train(), replaced


def make_log_folder(work_dir: Path) -> str:
    """Make a new log folder.

    Args:
        work_dir: The parent folder.

    Returns:
        Name of the new folder.
    """
    while True:
        name = run_folder.next_name(os.listdir(work_dir), time.strftime('%Y%m%d_%H%M%S'))
        try:
            (work_dir / name).mkdir()
        except FileExistsError:
            continue
        return name
