"""Running statistics of batch norms that differ between ranks."""

from mmengine.dist import broadcast, get_world_size
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_running_statistics(model: nn.Module) -> None:
    """Have all ranks take rank 0's running statistics, which are the ones in a checkpoint.

    Each rank's batch norm sees its own images only, unless it is synchronized. Before a validation and before a
    checkpoint all ranks call this, so that a resumed run validates with the statistics of one that was never stopped.

    Args:
        model: The model, also wrapped for distributed training.
    """
    if get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            for buffer in module.buffers(recurse=False):
                broadcast(buffer)
