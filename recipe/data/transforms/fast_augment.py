"""Faster forms of upstream's random flip, photometric distortion and packing."""

from typing import Any, Callable, Dict

import cv2
import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.datasets.transforms.formatting import PackSegInputs
from mmseg.datasets.transforms.transforms import PhotoMetricDistortion, RandomFlip
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample
from numpy import random

_FLIP_CODES = {'horizontal': 1, 'vertical': 0, 'diagonal': -1}
_ALL_VALUES = np.arange(256, dtype=np.uint8)
# OpenCV rounds products; upstream truncates them. Both agree if OpenCV first subtracts (0.5 - margin), unless a product
# is less than the margin below a whole number. The margin is larger than float32's rounding error.
_MARGIN = 1e-4


@TRANSFORMS.register_module()
class FastRandomFlip(RandomFlip):
    """:class:`RandomFlip` with OpenCV, whose result is contiguous in memory.

    The result equals upstream's bit by bit. It flips images and label maps only.
    """

    def _flip(self, results: Dict) -> None:
        """Flip the image and its label maps."""
        code = _FLIP_CODES[results['flip_direction']]
        results['img'] = cv2.flip(results['img'], code)
        for key in results.get('seg_fields', []):
            if results.get(key) is None:
                continue
            if self.swap_seg_labels is None:
                results[key] = cv2.flip(results[key], code)
            else:
                results[key] = self._flip_seg_map(results[key], direction=results['flip_direction']).copy()


@TRANSFORMS.register_module()
class TablePhotoMetricDistortion(PhotoMetricDistortion):
    """:class:`PhotoMetricDistortion` in integer arithmetic, for uint8 images.

    Brightness, contrast, saturation and hue map each of the 256 values of a channel to another value. Upstream's own
    arithmetic makes a table of these values, and the fastest OpenCV function with the same values is applied to the
    image. It draws the same random numbers, and the result equals upstream's bit by bit.
    """

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """Multiply a uint8 array by ``alpha``, add ``beta`` and clip to 0 to 255."""
        table = super().convert(_ALL_VALUES, alpha, beta)
        shift = (int(table[128]) - 128,) * 4
        if np.array_equal(cv2.add(_ALL_VALUES, shift).ravel(), table):
            return cv2.add(img, shift)
        if beta == 0 and alpha > 0 and np.max(_ALL_VALUES * alpha % 1) < 1 - 2 * _MARGIN:
            return cv2.convertScaleAbs(img, alpha=alpha, beta=_MARGIN - 0.5)
        return cv2.LUT(img, table)

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Distort the saturation of a BGR image, uint8, (H, W, 3)."""
        if random.randint(2):
            alpha = random.uniform(self.saturation_lower, self.saturation_upper)
            img = _map_hsv(img, 1, lambda plane: self.convert(plane, alpha))
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Distort the hue of a BGR image, uint8, (H, W, 3)."""
        if random.randint(2):
            shift = random.randint(-self.hue_delta, self.hue_delta)
            img = _map_hsv(img, 0, lambda plane: _turn_hue(plane, shift))
        return img


def _map_hsv(img: np.ndarray, channel: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Change one channel of the HSV form of a BGR image."""
    planes = list(cv2.split(cv2.cvtColor(img, cv2.COLOR_BGR2HSV)))
    planes[channel] = change(planes[channel])
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2BGR)


def _turn_hue(plane: np.ndarray, shift: int) -> np.ndarray:
    """Add ``shift`` to hues modulo 180. The hues are uint8 below 180.

    The result is the smaller of two uint8 values. One is hue + shift, clipped at 255. The other is hue + shift - 180.
    If that is negative, it wraps around to hue + shift + 76 and is the larger one.
    """
    shift %= 180
    less_180 = plane + np.uint8(shift + 76)
    return cv2.min(cv2.add(plane, (shift, 0, 0, 0)), less_180)


class PinnableSample(SegDataSample):
    """mmseg's sample; the loader can pin its label map."""

    def pin_memory(self) -> 'PinnableSample':
        """Pin the label map, so that it is copied to the device in the background. torch's loader calls this."""
        if 'gt_sem_seg' in self:
            self.gt_sem_seg.data = self.gt_sem_seg.data.pin_memory()
        return self


@TRANSFORMS.register_module()
class FastPackSegInputs(PackSegInputs):
    """:class:`PackSegInputs` for uint8 images, with a choice of the labels' dtype.

    Args:
        label_dtype (str): ``int64``, as upstream, or ``uint8``, which sends an eighth of the bytes between processes
            and to the device. ``uint8`` is for heads that only compare labels with class numbers. Defaults to 'int64'.
        **kwargs: Arguments of :class:`PackSegInputs`.

    Raises:
        ValueError: ``label_dtype`` is another one.
    """

    def __init__(self, label_dtype: str = 'int64', **kwargs) -> None:
        super().__init__(**kwargs)
        if label_dtype not in ('int64', 'uint8'):
            raise ValueError(f"label_dtype must be 'int64' or 'uint8', got {label_dtype!r}")
        self.label_dtype = np.dtype(label_dtype)

    def transform(self, results: Dict) -> Dict:
        """Pack the sample; see :class:`PackSegInputs`.

        Raises:
            ValueError: The labels have neither the size of the image nor the size that it had before a test pipeline
                resized it.
        """
        img = results.get('img')
        labels = results.get('gt_seg_map')
        if img is not None and labels is not None:
            shapes = img.shape[:2], tuple(results.get('ori_shape', ()))[:2]
            if labels.shape[:2] not in shapes:
                raise ValueError(
                    f'{results.get("img_path")} is {shapes[0]} pixels, its '
                    f'labels {results.get("seg_map_path")} are '
                    f'{labels.shape[:2]}'
                )
        apart = {key: results[key] for key in self.meta_keys if key in results and _is_constant(results[key])}
        packed = super().transform(
            {key: value for key, value in results.items() if key not in apart and key not in ('img', 'gt_seg_map')}
        )
        sample = PinnableSample()
        # set_metainfo would copy each value.
        for key, value in [*packed['data_samples'].metainfo_items(), *apart.items()]:
            sample.set_field(value, key, field_type='metainfo', dtype=None)
        for key, value in packed['data_samples'].items():
            sample.set_field(value, key)
        packed['data_samples'] = sample
        if img is not None:
            packed['inputs'] = _to_channels_first(img)
        if labels is not None:
            data = np.array(labels[None], dtype=self.label_dtype, order='C')
            sample.gt_sem_seg = PixelData(data=torch.from_numpy(data))
        return packed


def _is_constant(value: Any) -> bool:
    """Whether a value cannot change, so that it need not be copied."""
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (str, bool, int, float)


def _to_channels_first(img: np.ndarray) -> torch.Tensor:
    """Copy (H, W) or (H, W, C) into a tensor (C, H, W)."""
    if img.ndim == 2:
        return torch.from_numpy(img[None].copy())
    planes = np.empty((img.shape[2], *img.shape[:2]), img.dtype)
    cv2.split(img, list(planes))
    return torch.from_numpy(planes)
