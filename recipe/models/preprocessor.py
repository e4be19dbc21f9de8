"""The preprocessing of a batch; the host does not wait for the device."""

from typing import Any, Dict

from mmseg.models import SegDataPreProcessor

from recipe.models.present_classes import host_values, note_values


class FastSegDataPreProcessor(SegDataPreProcessor):
    """mmseg's preprocessor; it copies in the background and records the classes of each label map."""

    channel_conversion: bool

    def set_up(self) -> None:
        """Take over the channel conversion from upstream, and copy pinned memory in the background."""
        self._non_blocking = True
        self.flips_channels = self.channel_conversion
        self.channel_conversion = False

    def forward(self, data: Dict[str, Any], training: bool = False) -> Dict[str, Any]:
        """Move, convert, normalise and pad a batch.

        Args:
            data: ``inputs``, images (C, H, W), and ``data_samples``.
            training: Whether the batch is used for training.

        Returns:
            ``inputs``, (B, C, H, W), and ``data_samples``. In training their label maps carry their values, see
            ``present_classes``.
        """
        values = host_values(data.get('data_samples')) if training else []
        data = self.cast_data(data)
        if self.flips_channels and data['inputs'][0].size(0) == 3:
            # Upstream indexes with a list, which it copies to the device for each image.
            data = {**data, 'inputs': [image.flip(0) for image in data['inputs']]}
        result = super().forward(data, training)
        if self.batch_augments is None:
            for sample, present in zip(result['data_samples'] or (), values):
                note_values(sample, present, self.seg_pad_val)
        return result
