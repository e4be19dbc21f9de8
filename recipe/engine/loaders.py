"""Default settings of the data loaders for each device."""

import torch
from mmengine.config import Config
from mmengine.utils import digit_version

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Batches that each process keeps ready: enough for one iteration in which the other processes load slow samples.
PREFETCH = 4


def prepare_loaders(cfg: Config, device: str) -> None:
    """Fill in the loader settings that the config does not set.

    Loader processes stay alive between epochs and validations and load ahead. Batches for an accelerator go into pinned
    memory, from which they are copied while the host goes on.

    Args:
        cfg (Config): The training config; changed in place.
        device (str): ``npu``, ``cuda`` or ``cpu``.
    """
    for name in LOADERS:
        loader = cfg.get(name)
        if not loader:
            continue
        if loader.get('num_workers', 0) > 0:
            loader.setdefault('persistent_workers', True)
            loader.setdefault('prefetch_factor', PREFETCH)
        if device != 'cpu' and 'pin_memory' not in loader:
            loader['pin_memory'] = True
            if device == 'npu' and digit_version(torch.__version__) < digit_version('2.9'):
                # Newer versions of torch find the accelerator themselves.
                loader.setdefault('pin_memory_device', 'npu')
