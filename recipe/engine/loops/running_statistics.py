"""Makes the running statistics of batch norms equal on all ranks."""

from mmengine.dist import broadcast, get_world_size
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_running_statistics(model: nn.Module) -> None:
    """Copy rank 0's running statistics to all ranks; a checkpoint holds those of rank 0.

    A batch norm that is not synchronized sees the images of its own rank only. All ranks call this before a validation
    and before a checkpoint, so that a resumed run validates with the same statistics as one that was never stopped.

    Args:
        model: The model; it may be wrapped for distributed training.
    """
    if get_world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            for buffer in module.buffers(recurse=False):
                broadcast(buffer)
