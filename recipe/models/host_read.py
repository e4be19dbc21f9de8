"""The one host read of a training step, which other values can join.

In each iteration the host waits for the costs of Mask2Former's matching. Other values can come in the same copy,
without another wait.
"""

from typing import Callable, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor


class _Joined(NamedTuple):
    values: Tensor
    arrived: Callable[[np.ndarray], None]


class HostRead:
    """Reads tensors on the host, together with the values that joined the read.

    Each accelerated Mask2Former head has one, as ``head.host_read``.

    Attributes:
        on_bad_costs: Called with a description if a matching cost is not finite. The step then goes on with NaN losses,
            so that all ranks notice. None: the matching raises an error.
    """

    def __init__(self) -> None:
        self.on_bad_costs: Optional[Callable[[str], None]] = None
        self._joined: List[_Joined] = []

    def join(self, values: Tensor, arrived: Callable[[np.ndarray], None]) -> None:
        """Read values together with the next tensors.

        Args:
            values: Floating point, shape (N,), on the device of the next tensors.
            arrived: Called with the N values after the read. An exception from it ends the step.
        """
        self._joined.append(_Joined(values, arrived))

    def leave(self, arrived: Callable[[np.ndarray], None]) -> bool:
        """Remove the values that joined with this callback; return whether there were any."""
        staying = [one for one in self._joined if one.arrived is not arrived]
        found = len(staying) < len(self._joined)
        self._joined = staying
        return found

    def read(self, tensors: Sequence[Tensor]) -> List[np.ndarray]:
        """Bring tensors and all values that joined to the host in one copy.

        Args:
            tensors: At least one, of any shapes, on one device.

        Returns:
            Each tensor as an array of the same shape.
        """
        joined, self._joined = self._joined, []
        parts = [tensor.flatten() for tensor in tensors] + [one.values for one in joined]
        host = torch.cat(parts).cpu().numpy()
        arrays = np.split(host, np.cumsum([part.numel() for part in parts])[:-1])
        for one, values in zip(joined, arrays[len(tensors) :]):
            one.arrived(values)
        return [array.reshape(tuple(tensor.shape)) for array, tensor in zip(arrays, tensors)]
