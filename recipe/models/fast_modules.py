"""Puts the fast modules into a built model."""

from collections import Counter
from typing import Dict, Tuple, Type

from torch import nn

from recipe.models.deform_attn import FastMultiScaleDeformableAttention
from recipe.models.feed_forward import FastFFN
from recipe.models.head import FastMask2FormerHead
from recipe.models.pixel_decoder import FastMSDeformAttnPixelDecoder
from recipe.models.preprocessor import FastSegDataPreProcessor
from recipe.models.segmentor import FastEncoderDecoder
from recipe.models.swin import (
    FastShiftWindowMSA,
    FastSwinBlock,
    FastSwinBlockSequence,
    FastSwinTransformer,
    FastWindowMSA,
)

# The first base of each class is the upstream class that it replaces.
FAST_CLASSES: Tuple[Type[nn.Module], ...] = (
    FastSegDataPreProcessor,
    FastEncoderDecoder,
    FastSwinTransformer,
    FastSwinBlockSequence,
    FastSwinBlock,
    FastShiftWindowMSA,
    FastWindowMSA,
    FastFFN,
    FastMultiScaleDeformableAttention,
    FastMSDeformAttnPixelDecoder,
    FastMask2FormerHead,
)


def accelerate(model: nn.Module) -> Dict[str, int]:
    """Replace the parts of a model that have a faster form, in place.

    A part is replaced if its type is exactly the first base of one of ``FAST_CLASSES``. Subclasses and all other parts
    stay as they are. Parameters, state-dict names, mathematics (up to float rounding) and random draws do not change.
    It may be called again, and the model may be wrapped for distributed training.

    Args:
        model: A built segmentor of mmseg, on any device.

    Returns:
        Number of replaced modules by the name of their upstream class.
    """
    fast = {cls.__bases__[0]: cls for cls in FAST_CLASSES}
    replaced: Dict[str, int] = Counter()
    for module in list(model.modules()):
        cls = fast.get(type(module))
        if cls is not None:
            replaced[type(module).__name__] += 1
            adopt(module, cls)
    return dict(replaced)


def adopt(module: nn.Module, cls: Type[nn.Module]) -> None:
    """Turn a module into a direct subclass of its class, in place.

    Only its class changes. So its parameters, buffers and hooks, its name in state dicts, and all references to it
    (from other modules, an optimizer or a wrapper) stay valid. With a new module each of these references would have to
    be found and changed. ``cls`` may define ``set_up()``, which sets the attributes that ``__init__`` would have set.

    Args:
        module: An instance of ``cls.__bases__[0]`` itself.
        cls: The subclass.

    Raises:
        TypeError: The module is of another class.
    """
    if type(module) is not cls.__bases__[0]:
        raise TypeError(f'{cls.__name__} stands for {cls.__bases__[0].__name__}, not for {type(module).__name__}')
    module.__class__ = cls
    if hasattr(cls, 'set_up'):
        module.set_up()
