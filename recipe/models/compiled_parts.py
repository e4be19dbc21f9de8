"""The parts of a training step that torch.compile turns into graphs."""

from typing import Any, Callable, List, NamedTuple, Sequence, Set

import torch
from torch import Tensor, nn

NAME = 'compiled_parts'


class CompiledParts(NamedTuple):
    """Functions of modules and tensors, each compiled into one graph.

    They take the modules as arguments. Otherwise a copy of a model, such as its moving average, would run with the
    weights of the original.

    Attributes:
        backbone: (backbone, images) -> features.
        decode: (head, features) -> ``QueryPredictions``.
        costs: ``static_costs``.
        point_losses: ``static_point_losses``.
    """

    backbone: Callable[..., Sequence[Tensor]]
    decode: Callable[..., Any]
    costs: Callable[..., Tensor]
    point_losses: Callable[..., Any]


def _run(module: nn.Module, x: Tensor) -> List[Tensor]:
    return module(x)


class _Warmed:
    """Runs a function without a graph once per input shape, and then its graph.

    The first run makes and keeps the tensors that depend on shapes alone, such as position encodings and window maps. A
    graph would make them again in every step.
    """

    def __init__(self, function: Callable, **options: Any) -> None:
        self.function = function
        self.graph = torch.compile(function, dynamic=False, **options)
        self.seen: Set[tuple] = set()

    def __call__(self, module: nn.Module, x: Any) -> Any:
        inputs = [x] if isinstance(x, Tensor) else list(x)
        shapes = tuple((tuple(one.shape), one.device) for one in inputs)
        if shapes not in self.seen:
            self.seen.add(shapes)
            device = inputs[0].device
            devices, kind = ([], 'cuda') if device.type == 'cpu' else ([device], device.type)
            with torch.no_grad(), torch.random.fork_rng(devices, device_type=kind):
                self.function(module, x)
        return self.graph(module, x)


def compile_parts(model: nn.Module, **options: Any) -> None:
    """Make a segmentor train in graphs, before and after the assignment of the matching.

    Only the training uses them. Predictions, parameter names and checkpoints do not change. All shapes follow from
    batch size and crop, so each part is compiled once.

    Args:
        model: An ``EncoderDecoder`` with a ``Mask2FormerHead``.
        options: Options of ``torch.compile``.

    Raises:
        ValueError: The graphs do not compute the same as this head, its matching or its losses.
    """
    from recipe.models.decode import decode
    from recipe.models.static_loss import can_be_static, static_costs, static_point_losses

    head = model.decode_head
    if not (getattr(head, 'batches_loss', False) and can_be_static(head)):
        raise ValueError(
            f'{type(head).__name__} of this config cannot be compiled: it takes the Mask2FormerHead of mmseg with the '
            'matching and losses of its configs, and --fast=1'
        )
    parts = CompiledParts(
        *(_Warmed(part, **options) for part in (_run, decode)),
        *(torch.compile(part, dynamic=False, **options) for part in (static_costs, static_point_losses)),
    )
    setattr(model, NAME, parts)
    setattr(head, NAME, parts)


def parts_of(module: nn.Module) -> Any:
    """Return the graphs that a segmentor or head trains with.

    Returns:
        The ``CompiledParts``; None if nothing was compiled, and in evaluation.
    """
    return module.__dict__.get(NAME) if module.training else None
