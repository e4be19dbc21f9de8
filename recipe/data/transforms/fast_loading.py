"""Transforms that load, and one that loads, resizes and crops in one step."""

from types import SimpleNamespace
from typing import Dict, Optional, Tuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile, RandomChoiceResize
from mmseg.datasets.transforms.loading import LoadAnnotations
from mmseg.datasets.transforms.transforms import RandomCrop, Resize, ResizeShortestEdge
from mmseg.registry import TRANSFORMS

from recipe.data.transforms.decoded_cache import DecodedCache
from recipe.data.transforms.picture_file import PictureFile
from recipe.data.transforms.window_resize import bilinear_span, bilinear_window, nearest_positions, nearest_window


def _make_cache(given: Optional[Dict]) -> Optional[DecodedCache]:
    """The cache of a config; None if it has no ``folder`` or an empty one."""
    if not given or not given.get('folder'):
        return None
    return DecodedCache(given['folder'], given['data_root'])


@TRANSFORMS.register_module()
class FastLoadImageFromFile(LoadImageFromFile):
    """:class:`LoadImageFromFile` with a faster PNG decoder and a cache.

    The image equals upstream's bit by bit. It may be read-only.

    Args:
        decoded_cache (dict, optional): Arguments of :class:`DecodedCache`.
            Defaults to None.
        backend_args (dict, optional): See :class:`LoadImageFromFile`.
    """

    def __init__(self, decoded_cache: Optional[Dict] = None, *, backend_args: Optional[Dict] = None) -> None:
        super().__init__(backend_args=backend_args)
        self.cache = _make_cache(decoded_cache)

    def transform(self, results: Dict) -> Dict:
        """Load the whole image; sets img, img_shape and ori_shape."""
        picture = PictureFile(results['img_path'], backend_args=self.backend_args, cache=self.cache)
        results['img'] = picture.window()
        results['img_shape'] = results['ori_shape'] = picture.shape
        return results


@TRANSFORMS.register_module()
class FastLoadAnnotations(LoadAnnotations):
    """:class:`LoadAnnotations` with a faster PNG decoder and a cache.

    The labels equal upstream's bit by bit. They may be read-only.

    Args:
        decoded_cache (dict, optional): Arguments of :class:`DecodedCache`.
            Defaults to None.
        **kwargs: Arguments of :class:`LoadAnnotations`.
    """

    def __init__(self, decoded_cache: Optional[Dict] = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cache = _make_cache(decoded_cache)

    def _load_seg_map(self, results: Dict) -> None:
        """Set gt_seg_map, and add it to seg_fields."""
        if self.reduce_zero_label or results.get('reduce_zero_label') or results.get('label_map') is not None:
            # Upstream's method changes the labels while it loads them.
            super()._load_seg_map(results)
            return
        results['gt_seg_map'] = PictureFile(
            results['seg_map_path'], is_label=True, backend_args=self.backend_args, cache=self.cache
        ).window()
        results['seg_fields'].append('gt_seg_map')


@TRANSFORMS.register_module()
class LoadResizedCrop(BaseTransform):
    """Loads, resizes and crops in one step; the crop is chosen before the image is decoded.

    It replaces ``LoadImageFromFile``, ``LoadAnnotations``, ``RandomChoiceResize`` and ``RandomCrop`` in this order. It
    draws the same random numbers, and image and labels equal theirs bit by bit.

    The labels are loaded first, because the choice of the crop depends on them. Only the crop of the labels is resized.
    Then the image is decoded down to the last row of the crop and resized up to the last row and column of the crop.

    Required Keys:

    - img_path
    - seg_map_path
    - seg_fields

    Added Keys: those of the transforms that it replaces.

    Args:
        resize (dict): Config of a ``RandomChoiceResize`` that is bilinear and keeps the ratio.
        crop (dict): Config of a ``RandomCrop``.
        decoded_cache (dict, optional): Arguments of :class:`DecodedCache`. Defaults to None.
        backend_args (dict, optional): Arguments of ``mmengine.fileio``. Defaults to None.
        labels (dict, optional): Config of the transform that loads labels, if special. Defaults to None.

    Raises:
        TypeError: It cannot replace the given transforms.
    """

    def __init__(
        self,
        resize: Dict,
        crop: Dict,
        decoded_cache: Optional[Dict] = None,
        backend_args: Optional[Dict] = None,
        labels: Optional[Dict] = None,
    ) -> None:
        self.resize = TRANSFORMS.build(resize)
        self.crop = TRANSFORMS.build(crop)
        if type(self.resize) is not RandomChoiceResize:
            raise TypeError(f'resize must be a RandomChoiceResize, got {resize["type"]}')
        if type(self.crop) is not RandomCrop:
            raise TypeError(f'crop must be a RandomCrop, got {crop["type"]}')
        inner = getattr(self.resize.resize, 'resize', self.resize.resize)
        if (
            type(self.resize.resize) not in (Resize, ResizeShortestEdge)
            or not inner.keep_ratio
            or inner.interpolation != 'bilinear'
            or inner.backend != 'cv2'
        ):
            raise TypeError(
                f'resize must keep the ratio and resize bilinearly with OpenCV, got {self.resize.resize_cfg}'
            )
        self.backend_args = backend_args
        self.cache = _make_cache(decoded_cache)
        self.load_labels = (
            TRANSFORMS.build(labels)
            if labels
            else FastLoadAnnotations(decoded_cache=decoded_cache, backend_args=backend_args)
        )

    def transform(self, results: Dict) -> Dict:
        """Load one sample; see the class.

        Raises:
            ValueError: Image and labels differ in size.
        """
        picture = PictureFile(results['img_path'], backend_args=self.backend_args, cache=self.cache)
        results = self.load_labels(results)
        labels = results['gt_seg_map']
        if labels.shape != picture.shape:
            raise ValueError(
                f'{results["img_path"]} is {picture.shape} pixels, its labels '
                f'{results["seg_map_path"]} are {labels.shape}'
            )
        height, width = picture.shape
        new_height, new_width = self._choose_size(results, picture.shape)
        row_of = nearest_positions(height, new_height)
        column_of = nearest_positions(width, new_width)
        top, left, labels = self._choose_crop(labels, row_of, column_of)
        size = labels.shape
        rows = bilinear_span(height, new_height, top, top + size[0])
        columns = bilinear_span(width, new_width, left, left + size[1])
        results['img'] = bilinear_window(
            picture.window(rows.start, rows.stop, columns.start, columns.stop), rows, columns, size
        )
        results['gt_seg_map'] = labels
        results['img_shape'] = size
        results['ori_shape'] = picture.shape
        results['scale_factor'] = (new_width / width, new_height / height)
        results['keep_ratio'] = True
        return results

    def _choose_size(self, results: Dict, shape: Tuple[int, int]) -> Tuple[int, int]:
        """Draw the size of the whole resized image, (height, width) in pixels."""
        scale, results['scale_idx'] = self.resize._random_select()
        if isinstance(self.resize.resize, ResizeShortestEdge):
            scale = self.resize.resize._get_output_shape(SimpleNamespace(shape=shape), scale)
        elif isinstance(scale, int):
            scale = (scale, scale)
        results['scale'] = scale
        width, height = mmcv.image.geometric.rescale_size(shape[::-1], scale)
        return height, width

    def _choose_crop(
        self, labels: np.ndarray, row_of: np.ndarray, column_of: np.ndarray
    ) -> Tuple[int, int, np.ndarray]:
        """Draw crops as ``RandomCrop`` does, until no class fills too much of the crop.

        Returns:
            tuple: Top row and left column in the resized image, and the labels of the crop.
        """
        crop_height, crop_width = self.crop.crop_size

        def draw() -> Tuple[int, int, np.ndarray]:
            top = np.random.randint(0, max(len(row_of) - crop_height, 0) + 1)
            left = np.random.randint(0, max(len(column_of) - crop_width, 0) + 1)
            return (
                top,
                left,
                nearest_window(labels, row_of[top : top + crop_height], column_of[left : left + crop_width]),
            )

        drawn = draw()
        if self.crop.cat_max_ratio < 1.0:
            for _ in range(10):
                if self._is_mixed(drawn[2]):
                    break
                drawn = draw()
        return drawn

    def _is_mixed(self, labels: np.ndarray) -> bool:
        """Whether no class fills more than ``cat_max_ratio`` of the crop."""
        ratio = self.crop.cat_max_ratio
        counts = self._count(labels[::2])
        # Half of the rows may be enough: if they hold so many labels outside the largest class, the other half cannot
        # change the answer.
        if counts.sum() - counts.max() > (1 - ratio) * labels.size + 1:
            return True
        if len(labels) > 1:
            counts = counts + self._count(labels[1::2])
        return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < ratio)

    def _count(self, labels: np.ndarray) -> np.ndarray:
        """Number of pixels with each of the 256 labels, int64, shape (256, ); 0 for ``ignore_index``."""
        # calcHist returns float32, which is exact for whole numbers up to 2^24.
        counts = cv2.calcHist([labels], [0], None, [256], [0, 256])
        counts = counts.ravel().astype(np.int64)
        if 0 <= self.crop.ignore_index < len(counts):
            counts[self.crop.ignore_index] = 0
        return counts

    def __repr__(self) -> str:
        return f'{type(self).__name__}(resize={self.resize}, crop={self.crop}, cache={self.cache})'
