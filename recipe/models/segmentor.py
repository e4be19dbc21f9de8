"""The segmentor: sums of losses, and predictions at the size of the image."""

from typing import Dict, List, Sequence, Tuple, Union

from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg.utils import OptSampleList, SampleList, add_prefix
from torch import Tensor

from recipe.models.class_maps import most_likely
from recipe.models.compiled_parts import parts_of
from recipe.models.stacked_losses import parse_losses
from recipe.models.static_loss import Targets


class FastEncoderDecoder(EncoderDecoder):
    """mmseg's segmentor without host reads of the losses and without needless copies of logits."""

    def extract_feat(self, inputs: Tensor) -> List[Tensor]:
        """Extract features from images (B, 3, H, W), in a graph of torch.compile if there is one."""
        parts = parts_of(self)
        if parts is None:
            return super().extract_feat(inputs)
        x = parts.backbone(self.backbone, inputs)
        return self.neck(x) if self.with_neck else x

    def loss(self, inputs: Tensor, data_samples: Union[SampleList, Targets]) -> Dict[str, Tensor]:
        """Compute the losses of images (B, 3, H, W), in a whole-step graph of ``Targets``."""
        if not isinstance(data_samples, Targets):
            return super().loss(inputs, data_samples)
        return add_prefix(self.decode_head.loss_of_targets(self.extract_feat(inputs), data_samples), 'decode')

    def parse_losses(self, losses: Dict[str, Union[Tensor, List[Tensor]]]) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Add up the loss terms; see :func:`recipe.models.stacked_losses.parse_losses`."""
        return parse_losses(losses)

    def postprocess_result(self, seg_logits: Tensor, data_samples: OptSampleList = None) -> SampleList:
        """Bring logits to the size of each image and choose the classes, as upstream's method does.

        Args:
            seg_logits: Shape (B, C, H, W), with the padding of the batch.
            data_samples: Describe how each image was padded, flipped and resized. None: not at all.

        Returns:
            The samples, with ``seg_logits`` (C, h, w) and ``pred_sem_seg`` (1, h, w).
        """
        if seg_logits.shape[1] == 1:
            return super().postprocess_result(seg_logits, data_samples)
        if data_samples is None:
            data_samples = [SegDataSample() for _ in seg_logits]
            restored: Sequence[Tensor] = seg_logits.unbind()
        else:
            restored = [self._restore(*one) for one in zip(seg_logits.split(1), data_samples)]
        for sample, logits in zip(data_samples, restored):
            sample.set_data({'seg_logits': PixelData(data=logits), 'pred_sem_seg': PixelData(data=most_likely(logits))})
        return data_samples

    def _restore(self, logits: Tensor, sample: SegDataSample) -> Tensor:
        """Undo padding, flip and resize of one image: (1, C, H, W) -> (C, h, w)."""
        meta = sample.metainfo
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        height, width = logits.shape[2:]
        logits = logits[:, :, top : height - bottom, left : width - right]
        if meta.get('flip'):
            direction = meta.get('flip_direction')
            assert direction in ('horizontal', 'vertical')
            logits = logits.flip(dims=(3 if direction == 'horizontal' else 2,))
        size = tuple(meta['ori_shape'][:2])
        if tuple(logits.shape[2:]) != size:
            logits = resize(logits, size=size, mode='bilinear', align_corners=self.align_corners, warning=False)
        return logits.squeeze(0)
