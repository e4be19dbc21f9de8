"""Parts of a built model that are not trained."""

from functools import lru_cache
from typing import Any

from torch import nn


def freeze_backbone(model: nn.Module) -> None:
    """Keep the backbone of a segmentor as it is: no gradient, and always in evaluation mode, in place.

    Args:
        model: The segmentor, before it is wrapped for distributed training and before its optimizer is built.
    """
    backbone: Any = model.backbone
    backbone.requires_grad_(False)
    kind: Any = type(backbone)
    backbone.__class__ = _always_evaluating(kind)
    backbone.eval()


@lru_cache(maxsize=None)
def _always_evaluating(base: Any) -> type:
    """A subclass that stays in evaluation mode: without dropout, and its batch norms keep their statistics."""

    def train(self: Any, mode: bool = True) -> Any:
        return base.train(self, False)

    return type(
        f'Frozen{base.__name__}', (base,), {'train': train, '__doc__': f'A {base.__name__} that is not trained.'}
    )
