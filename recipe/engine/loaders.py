"""How the data loaders work, which depends on the device."""

import torch
from mmengine.config import Config
from mmengine.utils import digit_version

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Batches that each process keeps ready: enough for an iteration in which the
# others happen upon slow samples.
PREFETCH = 4


def prepare_loaders(cfg: Config, device: str) -> None:
    """Fill in the settings of the loaders that the config leaves open.

    Loader processes stay from one epoch or validation to the next and load
    ahead. Batches for an accelerator are put into pinned memory, from which
    they are copied while the host goes on.

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
                # newer ones take the accelerator that is there
                loader.setdefault('pin_memory_device', 'npu')
