"""Logged scalars that stay on the device until their history is read."""

from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub

Scalar = Union[torch.Tensor, float, int]


class DeferredScalars:
    """Collects the scalars of each iteration and leaves them on the device.

    mmengine reads each loss term and the gradient norm at once, and the host waits for the device each time. Here the
    scalars are collected. One copy brings them to the host when one of their histories is read, for example by the log
    or a checkpoint.

    The scalars of one :meth:`update` become one vector.

    Args:
        hub (MessageHub): Holds the histories.
        limit (int): Updates after which the scalars are read in any case, so that they do not fill the device's memory.
            Defaults to 1000.
    """

    def __init__(self, hub: MessageHub, limit: int = 1000) -> None:
        self._hub = hub
        self._limit = limit
        self._pending: List[Tuple[Tuple[str, ...], torch.Tensor]] = []

    def update(self, scalars: Dict[str, Scalar], stacked: Optional[torch.Tensor] = None) -> None:
        """Add one value to each history.

        Args:
            scalars (dict[str, Tensor | float | int]): One-element tensors and numbers by the name of their history.
            stacked (Tensor, optional): All values in the same order, shape (len(scalars), ), if the caller has them as
                one tensor. Defaults to None.
        """
        names = tuple(scalars)
        if stacked is None:
            tensors = {name: value for name, value in scalars.items() if isinstance(value, torch.Tensor)}
            names = tuple(tensors)
            stacked = self._stack(list(tensors.values()))
        for name, value in scalars.items():
            if name not in names:
                self._hub.update_scalar(name, value)
            elif getattr(self._hub.log_scalars.get(name), 'source', None) is not self:
                self._make_history(name)
        if stacked is not None:
            self._pending.append((names, stacked.detach()))
        if len(self._pending) >= self._limit:
            self.flush()

    @staticmethod
    def _stack(values: List[torch.Tensor]) -> Optional[torch.Tensor]:
        """Concatenate one-element tensors of any dtypes: (len(values), ), float64 if any is, else float32."""
        if not values:
            return None
        exact = any(value.dtype == torch.float64 for value in values)
        dtype = torch.float64 if exact else torch.float32
        device = values[0].device
        return torch.stack([value.detach().to(device=device, dtype=dtype).reshape(()) for value in values])

    def _make_history(self, name: str) -> None:
        """Replace a history in the hub by one that reads the pending scalars."""
        known = self._hub.log_scalars.get(name)
        if known is None:
            # With this call the hub saves the history in checkpoints. The value 0 is dropped with the old buffer.
            self._hub.update_scalar(name, 0.0)
        self._hub.log_scalars[name] = DeferredHistoryBuffer(known, self)

    def flush(self) -> None:
        """Read the pending scalars, with one copy from each device."""
        pending, self._pending = self._pending, []
        devices = {vector.device: None for _, vector in pending}
        values = {
            device: iter(torch.cat([vector for _, vector in pending if vector.device == device]).tolist())
            for device in devices
        }
        for names, vector in pending:
            for name in names:
                self._hub.log_scalars[name].append(next(values[vector.device]))


class DeferredHistoryBuffer(HistoryBuffer):
    """A history that reads its pending values from the device when it is read.

    mmengine's class copies the whole history to append a value; this one grows like a list. It is pickled and copied as
    mmengine's class, so checkpoints do not contain this class.

    Args:
        history (HistoryBuffer, optional): The values to begin with. Defaults to None.
        source (DeferredScalars, optional): May hold pending values. Defaults to None.
    """

    def __init__(self, history: Optional[HistoryBuffer] = None, source: Optional[DeferredScalars] = None) -> None:
        self.source = source
        plain = HistoryBuffer() if history is None else history
        self.max_length = plain.max_length
        values, counts = plain.data
        self._size = len(values)
        self._values = np.array(values, dtype=np.float64)
        self._counts = np.array(counts, dtype=np.int64)
        self._set_default_statistics()

    def append(self, value: float, count: int = 1) -> None:
        """Append a value to those that have been read.

        Args:
            value (float): The value.
            count (int): How many values it sums up. Defaults to 1.
        """
        if self._size == len(self._values):
            # Drop the values beyond max_length and make room for as many as are kept, so that this happens rarely.
            kept = min(self._size, self.max_length)
            begin = self._size - kept
            room = np.zeros(max(64, kept))
            self._values = np.concatenate((self._values[begin:], room))
            self._counts = np.concatenate((self._counts[begin:], room.astype(np.int64)))
            self._size = kept
        self._values[self._size] = value
        self._counts[self._size] = count
        self._size += 1

    def update(self, log_val: Union[int, float], count: int = 1) -> None:
        """Add a value; see :class:`mmengine.logging.HistoryBuffer`."""
        if not isinstance(log_val, (int, float)) or not isinstance(count, (int, float)):
            raise TypeError(
                f'log_val must be int or float but got {type(log_val)}, count must be int but got {type(count)}'
            )
        self._read_pending()
        self.append(log_val, count)

    def _read_pending(self) -> None:
        if self.source is not None:
            self.source.flush()

    @property
    def _log_history(self) -> np.ndarray:
        """All values including the pending ones, float64; mmengine's statistics use them."""
        self._read_pending()
        return self._values[max(0, self._size - self.max_length) : self._size]

    @property
    def _count_history(self) -> np.ndarray:
        """The counts of the values, int64."""
        self._read_pending()
        return self._counts[max(0, self._size - self.max_length) : self._size]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return HistoryBuffer, (self._log_history.copy(), self._count_history.copy(), self.max_length)
