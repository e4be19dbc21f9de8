"""Upstream's random flip, photometric distortion and packing, faster."""

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
# OpenCV rounds products where upstream drops what is behind the point. With
# almost one half taken off both agree, unless a product lies less than this,
# which is more than the rounding of float32, below a whole number.
_MARGIN = 1e-4


@TRANSFORMS.register_module()
class FastRandomFlip(RandomFlip):
    """:class:`RandomFlip` by OpenCV, whose result lies in order in memory.

    The result equals upstream's bit by bit. Images and labels only.
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
    """:class:`PhotoMetricDistortion` in whole numbers, for uint8 images.

    Brightness, contrast, saturation and hue map each of the 256 values of a
    channel to another, so upstream's own arithmetic is done on these 256
    values, and the image goes through what gives the same ones fastest. The
    same random numbers are drawn and the result equals upstream's bit by bit.
    """

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """Multiply with ``alpha`` and add ``beta``, with clipping."""
        table = super().convert(_ALL_VALUES, alpha, beta)
        shift = (int(table[128]) - 128,) * 4
        if np.array_equal(cv2.add(_ALL_VALUES, shift).ravel(), table):
            return cv2.add(img, shift)
        if beta == 0 and alpha > 0 and np.max(_ALL_VALUES * alpha % 1) < 1 - 2 * _MARGIN:
            return cv2.convertScaleAbs(img, alpha=alpha, beta=_MARGIN - 0.5)
        return cv2.LUT(img, table)

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Distort the saturation of a BGR image."""
        if random.randint(2):
            alpha = random.uniform(self.saturation_lower, self.saturation_upper)
            img = _map_hsv(img, 1, lambda plane: self.convert(plane, alpha))
        return img

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Distort the hue of a BGR image."""
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
    """Add ``shift`` to hues, uint8 below 180, modulo 180.

    Either the sum is right or the sum less 180. Whichever is wrong is the
    greater in uint8: the sum as it is cut off at 255, the difference as a
    negative one comes out at 76 or more above the sum.
    """
    shift %= 180
    less_180 = plane + np.uint8(shift + 76)
    return cv2.min(cv2.add(plane, (shift, 0, 0, 0)), less_180)


class PinnableSample(SegDataSample):
    """mmseg's sample, with label maps that the loader can pin."""

    def pin_memory(self) -> 'PinnableSample':
        """Pin the labels, so that they are copied to the device in the background; torch's loader calls it."""
        if 'gt_sem_seg' in self:
            self.gt_sem_seg.data = self.gt_sem_seg.data.pin_memory()
        return self


@TRANSFORMS.register_module()
class FastPackSegInputs(PackSegInputs):
    """:class:`PackSegInputs` for uint8 images, with labels of a chosen type.

    Args:
        label_dtype (str): ``int64``, as upstream, or ``uint8``, an eighth of
            the bytes between processes and to the device, for heads that
            compare labels with class numbers. Defaults to 'int64'.
        **kwargs: Of :class:`PackSegInputs`.
    """

    def __init__(self, label_dtype: str = 'int64', **kwargs) -> None:
        super().__init__(**kwargs)
        if label_dtype not in ('int64', 'uint8'):
            raise ValueError(f"label_dtype must be 'int64' or 'uint8', got {label_dtype!r}")
        self.label_dtype = np.dtype(label_dtype)

    def transform(self, results: Dict) -> Dict:
        """Pack the sample; see :class:`PackSegInputs`.

        Raises:
            ValueError: If the labels are neither those of the image nor those
                of the image as it was before a test's pipeline resized it.
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
        # set_metainfo would copy each value
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
    """Whether a copy of a value, which takes time, is no use."""
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return value is None or type(value) in (str, bool, int, float)


def _to_channels_first(img: np.ndarray) -> torch.Tensor:
    """Turn (H, W) or (H, W, C) into a tensor (C, H, W) of its own memory."""
    if img.ndim == 2:
        return torch.from_numpy(img[None].copy())
    planes = np.empty((img.shape[2], *img.shape[:2]), img.dtype)
    cv2.split(img, list(planes))
    return torch.from_numpy(planes)
