"""What happens if the costs of Mask2Former's matching are not finite."""

from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Optional, Union

from torch import Tensor, nn

Describe = Callable[[], Optional[str]]


class CostFaults:
    """Decides what happens if a matching cost is not finite.

    Each accelerated Mask2Former head has one, as ``head.cost_faults``. By default the matching raises an error, for
    which the host waits for the device. If they are tolerated, the step goes on with NaN losses. So all ranks notice,
    and the host can ask later what was wrong.

    Attributes:
        tolerates: Whether they are tolerated; see also :meth:`tolerated`.
    """

    def __init__(self) -> None:
        self.tolerates = False
        self._describe: Optional[Describe] = None

    def judge(self, usable: Union[Tensor, bool], describe: Describe) -> Union[Tensor, bool]:
        """Take note of the costs of one matching.

        Args:
            usable: Whether they are finite; a bool, or a scalar on the device.
            describe: Describes those that are not, None if all are. It may wait for the device.

        Returns:
            ``usable``. It is True if it was read.

        Raises:
            ValueError: They are not finite, and that is not tolerated; holds the description.
        """
        if usable is True:
            return True
        if not self.tolerates:
            if not usable:
                raise ValueError(describe())
            return True
        if self._describe is None:
            self._describe = describe
        return usable

    def take(self) -> Optional[Describe]:
        """Return what describes the first costs since the last call that may not be finite; None if all are."""
        describe, self._describe = self._describe, None
        return describe

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Let the matching go on in the context; forget what was wrong at its end."""
        before, self.tolerates = self.tolerates, True
        try:
            yield
        finally:
            self.tolerates = before
            self._describe = None


def cost_faults_of(model: nn.Module) -> Optional[CostFaults]:
    """Return the ``cost_faults`` of the Mask2Former head of a model.

    Args:
        model: The model; it may be wrapped for distributed training.

    Returns:
        None if it has no accelerated or watched head.
    """
    modules: Iterable[Any] = model.modules()
    return next((module.cost_faults for module in modules if hasattr(module, 'cost_faults')), None)
