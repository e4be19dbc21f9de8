"""Signals that ask all ranks to stop."""

import signal
import threading
from typing import Any, Dict, Optional

import torch
from mmengine.dist import all_reduce, get_world_size

from recipe.engine.late_values import LateValues

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Notices SIGTERM and SIGUSR1 and makes all ranks stop together.

    A scheduler sends one of them some time before it kills a job, perhaps to all processes of the job at once. Within
    the context the first signal of a kind is only recorded, also in loader processes that are forked there. A second
    one of the same kind has its previous effect.

    Args:
        device (torch.device): The device of this rank, for the collective.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked = 0
        # On an accelerator, the ranks communicate rarely and the host reads the answer later, so it does not wait.
        self._interval = 1 if device.type == 'cpu' else 5
        self._answer: Optional[LateValues] = None

    def __enter__(self) -> 'StopRequest':
        # Python allows signal handlers to be set in its main thread only.
        self._before: Dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._asked = self._asked or number
        signal.signal(number, self._before[number])

    def asked_for(self, iteration: int) -> Optional[signal.Signals]:
        """The signal that any rank has received, if any. It is a collective.

        Args:
            iteration (int): Iterations done so far. On accelerators the ranks communicate every fifth iteration only,
                and the answer is returned in the iteration after it.

        Returns:
            signal.Signals, optional: The signal. If ranks received different ones, the one with the highest number.
        """
        asked = self._asked
        if get_world_size() > 1:
            answer, self._answer = self._answer, None
            if iteration % self._interval == 0:
                shared = torch.full((1,), asked, device=self._device)
                all_reduce(shared, op='max')
                self._answer = LateValues(shared)
                if self._device.type == 'cpu':
                    answer = self._answer
            asked = int(answer.read()[0]) if answer is not None else 0
        return signal.Signals(asked) if asked else None
