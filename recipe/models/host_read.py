"""The one host read of a training step, open to others.

Mask2Former's matching brings its costs to the host in every iteration. What
else the host wants to know of the device can go along at no further wait.
"""

from typing import Callable, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor


class _Passenger(NamedTuple):
    values: Tensor
    arrived: Callable[[np.ndarray], None]


class HostRead:
    """Joins what is to be read with the next read.

    Attributes:
        on_bad_costs (Callable, optional): Called with a description where a
            matching cost is not finite. The step then goes on, with losses
            that are NaN, so that all ranks come to know. None: the matching
            raises an error.
    """

    def __init__(self) -> None:
        self.on_bad_costs: Optional[Callable[[str], None]] = None
        self._passengers: List[_Passenger] = []

    def join(self, values: Tensor, arrived: Callable[[np.ndarray], None]) -> None:
        """Have values brought along by the next read.

        Args:
            values (Tensor): Floating point, on the device that is read from,
                shape (N, ).
            arrived (Callable): Called with the N values once they are there;
                may raise, which ends the step.
        """
        self._passengers.append(_Passenger(values, arrived))

    def leave(self, arrived: Callable[[np.ndarray], None]) -> bool:
        """Take back what joined with a callback; say whether it was there."""
        staying = [p for p in self._passengers if p.arrived is not arrived]
        left = len(staying) < len(self._passengers)
        self._passengers = staying
        return left

    def read(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """Bring tensors, and whatever joined, to the host in one copy.

        Args:
            tensors (sequence[Tensor]): Of any shape, at least one.

        Returns:
            np.ndarray: The values of ``tensors`` one after the other, 1-D.
        """
        passengers, self._passengers = self._passengers, []
        parts = [tensor.flatten() for tensor in tensors]
        end = sum(part.numel() for part in parts)
        host = torch.cat(parts + [p.values for p in passengers]).cpu().numpy()
        begin = end
        for passenger in passengers:
            stop = begin + passenger.values.numel()
            passenger.arrived(host[begin:stop])
            begin = stop
        return host[:end]


HOST_READ = HostRead()
