"""How large a model is: its parameters, the multiplications of a forward pass, and the memory of a training step.

Multiplications are those of convolutions and matrix products, as torch's ``FlopCounterMode`` counts them: a multiply
and an add are one. The model has upstream's modules, which compute padded windows in full. Interpolation, norms and
the sampling of deformable attention are not counted.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from recipe.core import console


class _ShapesOnly(TorchDispatchMode):
    """Gives zeros of the right shape for every operator that is counted, which saves nearly all of the time."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket not in flop_registry:
            return function(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to('meta'), (args, kwargs or {}))
        return tree_map_only(
            torch.Tensor,
            lambda tensor: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).zero_(),
            function(*args, **kwargs),
        )


def parameters(model: Any) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: Any, crop: Tuple[int, int]) -> int:
    """Multiply-adds of the forward pass of one picture, with the queries of all layers of the decoder.

    Args:
        model: mmseg's segmentor with upstream's modules, on the CPU, in any mode.
        crop: Height and width of the picture, multiples of 32.
    """
    from mmseg.structures import SegDataSample

    was_training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), _ShapesOnly(), counter:
            features = model.extract_feat(torch.zeros(1, 3, *crop))
            model.decode_head(features, [SegDataSample(metainfo=dict(img_shape=crop))])
    finally:
        model.train(was_training)
    return int(counter.get_total_flops()) // 2


def show(result: Dict[str, Any]) -> None:
    """Print the result of ``bench.py size``."""
    memory = result['peak_bytes'] / 1e9
    console.say(
        f'{result["parameters"] / 1e6:.1f} million parameters, {result["multiplications_of_a_picture"] / 1e9:.0f} GMAC '
        f'for a picture, {memory:.1f} GB at the peak of a step'
    )
