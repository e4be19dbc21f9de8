"""Sums the loss terms, and stacks them in one tensor for the log."""

from collections import OrderedDict
from typing import Any, Dict, Iterable, List, Tuple, Union

import torch
from mmengine.utils import is_list_of
from torch import Tensor


class StackedScalars(OrderedDict):
    """Scalars by name, and all of them as one tensor.

    Attributes:
        stacked: All of them in order, shape (len(self), ), without gradient.
    """

    stacked: Tensor

    @classmethod
    def of(cls, names: Iterable[str], stacked: Tensor) -> 'StackedScalars':
        """Name the elements of a tensor (N, )."""
        scalars = cls(zip(names, stacked.unbind()))
        scalars.stacked = stacked
        return scalars


def parse_losses(losses: Dict[str, Union[Tensor, List[Tensor]]]) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Sum the loss terms, and list them for the log.

    It does what :meth:`mmengine.model.BaseModel.parse_losses` does, but with one sum instead of one addition per term,
    and with all terms in one tensor.

    Args:
        losses: Terms from the heads. Terms with ``loss`` in their name are minimized.

    Returns:
        The sum of the minimized terms, a scalar; and scalars without gradient: first this sum, as ``loss``, then all
        terms.

    Raises:
        TypeError: A term is neither a tensor nor a list of tensors.
    """
    terms: List[Any] = []  # tensors of one element
    for name, value in losses.items():
        if isinstance(value, Tensor):
            terms.append(value.mean() if value.numel() != 1 else value)
        elif is_list_of(value, Tensor):
            terms.append(sum(one.mean() for one in value))
        else:
            raise TypeError(f'{name} is not a tensor or list of tensors')
    is_loss = ['loss' in name for name in losses]
    if not any(is_loss):
        nothing: Any = 0  # as mmengine's method returns it
        plain = (term.reshape(()) for term in terms)
        return nothing, OrderedDict([('loss', nothing), *zip(losses, plain)])
    minimized = _one_vector([term for term, chosen in zip(terms, is_loss) if chosen])
    loss = minimized.sum()
    stacked = minimized.detach() if all(is_loss) else _one_vector([term.detach().to(loss.dtype) for term in terms])
    stacked = torch.cat((loss.detach()[None], stacked))
    return loss, StackedScalars.of(('loss', *losses), stacked)


def _one_vector(terms: List[Tensor]) -> Tensor:
    """Concatenate tensors of one element: (len(terms), )."""
    return torch.cat([term if term.dim() == 1 else term.reshape(1) for term in terms])
