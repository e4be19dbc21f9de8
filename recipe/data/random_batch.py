"""Random batches, in the form of the data loader's."""

from __future__ import annotations

from typing import Any, Dict, List

import torch


def random_batch(
    images: int = 2,
    height: int = 128,
    width: int = 256,
    seed: int = 0,
    classes: Any = 19,
    block: int = 16,
) -> Dict[str, List[torch.Tensor]]:
    """Draw images of noise with labels in blocks.

    Args:
        images: How many.
        height: Of each, in pixels, a multiple of ``block``.
        width: Likewise.
        seed: Of the draw.
        classes: How many classes the labels are drawn from, or one list of class ids for each image: ``[]`` gives an
            image with all pixels ignored (255), ``[3]`` one of a single class.
        block: Side of a block of one label, in pixels.

    Returns:
        ``inputs``: uint8 (3, height, width) each; ``labels``: uint8 (1, height, width) each, 255 in some blocks.
    """
    random = torch.Generator().manual_seed(seed)
    inputs, labels = [], []
    for number in range(images):
        ids = list(range(classes)) if isinstance(classes, int) else list(classes[number])
        shape = (height // block, width // block)
        table = torch.tensor([*ids, 255], dtype=torch.uint8)
        drawn = table[torch.randint(len(table), shape, generator=random)]
        # every requested class occurs
        drawn.view(-1)[: len(ids)] = table[: len(ids)][: drawn.numel()]
        labels.append(drawn.repeat_interleave(block, 0).repeat_interleave(block, 1)[None])
        inputs.append(torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8))
    return {'inputs': inputs, 'labels': labels}


def samples(batch: Dict[str, List[torch.Tensor]]) -> Dict[str, Any]:
    """Input of the model's preprocessor: the batch with mmseg's data samples."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    data_samples = []
    for image, label in zip(batch['inputs'], batch['labels']):
        shape = tuple(image.shape[1:])
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=1.0))
        sample.gt_sem_seg = PixelData(data=label.long())  # as mmseg's PackSegInputs does
        data_samples.append(sample)
    return {'inputs': list(batch['inputs']), 'data_samples': data_samples}
