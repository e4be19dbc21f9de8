"""Values that are copied to the host while it goes on."""

from typing import Any, List

import torch
from torch import Tensor


class LateValues:
    """A tensor on its way to the host.

    The copy is queued behind the work that computes the tensor. The host does not wait for it before :meth:`read`.

    Args:
        values: Of one dimension, on any device. It must not be written to before it is read.
    """

    def __init__(self, values: Tensor) -> None:
        values = values.detach()
        self._copied: Any = None
        if values.device.type == 'cpu':
            self._host = values.to('cpu', non_blocking=True)
            return
        # A copy into memory that is not pinned makes the host wait.
        self._host = torch.empty_like(values, device='cpu').pin_memory()
        self._host.copy_(values, non_blocking=True)
        self._copied = getattr(torch, values.device.type).Event()
        self._copied.record()

    def read(self) -> List[float]:
        """Return the values. The host waits if the device has not computed them yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.tolist()
