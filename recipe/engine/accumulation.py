"""One training step over a batch in several parts, whose gradients add up to that of the whole batch."""

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Dict, Iterator, List

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from recipe.models.loss_shares import LossShares
from recipe.models.stacked_losses import StackedScalars


class _OnePart:
    """Stands in for an optimizer wrapper: runs backward, and leaves the step to the caller.

    Args:
        optim_wrapper: Its precision and its ``backward`` are used.
        is_last: Whether the gradients are summed over the ranks in this backward pass.
    """

    def __init__(self, optim_wrapper: Any, is_last: bool) -> None:
        self._optim_wrapper = optim_wrapper
        self._is_last = is_last

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        no_sync: Any = getattr(model, 'no_sync', nullcontext)
        with nullcontext() if self._is_last else no_sync(), self._optim_wrapper.optim_context(model):
            yield

    def update_params(self, loss: Tensor) -> None:
        self._optim_wrapper.backward(loss)


def forward_and_backward(
    model: Any, optim_wrapper: Any, batch: Any, count: int, after_part: Callable[[], None] = lambda: None
) -> Dict[str, Tensor]:
    """Run forward and backward over the parts of a batch. The caller takes the step.

    Args:
        model: The model; it may be wrapped for distributed training.
        optim_wrapper: Its optimizer wrapper, whose own ``accumulative_counts`` has to be 1, or anything else with
            ``optim_context`` and ``backward``.
        batch: A batch of the loader: lists or tensors of as many items each.
        count: Number of parts.
        after_part: Called after each part but the last.

    Returns:
        Scalars for the log, without gradient: sums over the parts, which are the values of the whole batch.
    """
    parts = split(batch, count)
    segmentor: Any = model.module if is_model_wrapper(model) else model
    shares = LossShares(segmentor, parts)
    scalars: List[Dict[str, Tensor]] = []
    for number, part in enumerate(parts):
        with shares.of_part(number):
            terms = model.train_step(part, _OnePart(optim_wrapper, number == count - 1))
        scalars.append(terms if isinstance(terms, StackedScalars) else {k: v.detach() for k, v in terms.items()})
        if number < count - 1:
            after_part()
    return _sums(scalars)


def split(batch: Any, count: int) -> List[Any]:
    """Split a batch of the loader into parts of as many items each.

    Args:
        batch: A dict or tuple of batches, or a list or tensor with one item per image.
        count: Number of parts.

    Raises:
        ValueError: The images cannot be divided by ``count``.
    """
    if isinstance(batch, dict):
        by_name = {name: split(value, count) for name, value in batch.items()}
        return [{name: parts[number] for name, parts in by_name.items()} for number in range(count)]
    if isinstance(batch, tuple):
        return list(zip(*(split(value, count) for value in batch)))
    size, rest = divmod(len(batch), count)
    if rest:
        raise ValueError(f'a batch of {len(batch)} images cannot be split into {count} equal parts')
    return [batch[number * size : (number + 1) * size] for number in range(count)]


def _sums(scalars: List[Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """Add the scalars of all parts, name by name."""
    stacks = [one.stacked for one in scalars if isinstance(one, StackedScalars) and list(one) == list(scalars[0])]
    if len(stacks) == len(scalars):
        return StackedScalars.of(scalars[0], torch.stack(stacks).sum(0))
    sums_by_name: Dict[str, Any] = {}
    for one in scalars:
        for name, value in one.items():
            sums_by_name[name] = sums_by_name[name] + value if name in sums_by_name else value
    return sums_by_name
