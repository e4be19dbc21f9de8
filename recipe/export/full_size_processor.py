"""An image processor of transformers that computes label maps at the full size of the images.

transformers' own processor computes them at 384 x 384 pixels and enlarges the scores, whatever the size of the images.
This file imports nothing of the recipe: exports hold a copy of it, which AutoImageProcessor takes with
trust_remote_code=True.
"""

from typing import Any

import torch
import transformers
from transformers.utils import is_torchvision_available

# From transformers 5 on the plain name needs torchvision, and the other one does not.
_PLAIN = is_torchvision_available() or not hasattr(transformers, 'Mask2FormerImageProcessorPil')
_Base: Any = getattr(transformers, 'Mask2FormerImageProcessor' if _PLAIN else 'Mask2FormerImageProcessorPil')
_DIVISOR = 32  # of the sides of the images that the model takes
_STRIDE = 4  # of the masks


def _resized(maps, size):
    return torch.nn.functional.interpolate(maps, size=size, mode='bilinear', align_corners=False)


class FullSizeMask2FormerImageProcessor(_Base):
    """Mask2Former's image processor with padding to multiples of 32 pixels and label maps at full size."""

    def preprocess(self, images, *args, **kwargs):
        """Normalise images, and pad them on the right and below.

        Args:
            images: As the base class takes them.
            args: Likewise.
            kwargs: Likewise; ``return_tensors`` is ``pt`` if not given.

        Returns:
            ``pixel_values``, (B, 3, H, W), H and W multiples of 32, and what else the base class returns.
        """
        inputs = super().preprocess(images, *args, **{'return_tensors': 'pt', **kwargs})
        for name in ('pixel_values', 'pixel_mask'):
            if name in inputs:
                height, width = inputs[name].shape[-2:]
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, -width % _DIVISOR, 0, -height % _DIVISOR))
        return inputs

    def semantic_scores(self, outputs):
        """Sum class probability times mask probability over the queries.

        Args:
            outputs: Of ``Mask2FormerForUniversalSegmentation``.

        Returns:
            Class scores, (B, C, H, W), at the size of ``pixel_values``.
        """
        masks = outputs.masks_queries_logits
        size = tuple(_STRIDE * side for side in masks.shape[-2:])
        masks = _resized(masks, size).sigmoid()
        return torch.einsum('bqc,bqhw->bchw', outputs.class_queries_logits.softmax(dim=-1)[..., :-1], masks)

    def post_process_semantic_segmentation(self, outputs, target_sizes=None, **kwargs):
        """Choose the class of each pixel.

        Args:
            outputs: Of ``Mask2FormerForUniversalSegmentation``.
            target_sizes: Height and width of each image, without the padding; None: with it.
            kwargs: Not used.

        Returns:
            A label map for each image, (height, width).
        """
        scores = self.semantic_scores(outputs)
        size = scores.shape[-2:]
        maps = []
        for number, target in enumerate(target_sizes or [size] * len(scores)):
            height, width = (int(side) for side in target)
            of_image = scores[number : number + 1]
            if 0 <= size[0] - height < _DIVISOR and 0 <= size[1] - width < _DIVISOR:
                of_image = of_image[..., :height, :width]
            else:  # another size than that of the image
                of_image = _resized(of_image, (height, width))
            maps.append(of_image[0].argmax(dim=0))
        return maps
