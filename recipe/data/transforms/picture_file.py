"""A picture file that is decoded only as far as needed."""

import logging
from typing import Dict, Optional, Tuple

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from mmengine.logging import print_log
from PIL import UnidentifiedImageError

from recipe.core import console
from recipe.data.transforms import png
from recipe.data.transforms.decoded_cache import DecodedCache


class PictureFile:
    """A picture that is decoded only as far as needed.

    The pixels equal those of upstream's loading transforms bit by bit. They come from the decoded cache, else from a
    fast PNG decoder, else from upstream's decoder: OpenCV for pictures, Pillow for labels.

    Args:
        path (str): The file.
        is_label (bool): Whether it holds one class per pixel instead of three colours.
        backend_args (dict, optional): Arguments of ``mmengine.fileio``. Defaults to None.
        cache (DecodedCache, optional): Cache of decoded pictures. Defaults to None.

    Attributes:
        shape (tuple[int]): Height and width in pixels.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        path: str,
        is_label: bool = False,
        backend_args: Optional[Dict] = None,
        cache: Optional[DecodedCache] = None,
    ) -> None:
        self.path = path
        self.is_label = is_label
        self._pixels = _from_cache(cache, path) if cache is not None else None
        self._data = b''
        if self._pixels is None:
            self._data = fileio.get(path, backend_args=backend_args)
            header = png.read_header(self._data)
            # Also for a grey picture or a coloured label, which are rare.
            if header is None or (header.channels == 1) != is_label:
                self._pixels = self._decode_whole()
            else:
                self.shape: Tuple[int, int] = (header.height, header.width)
        if self._pixels is not None:
            self.shape = self._pixels.shape[:2]

    def window(
        self, top: int = 0, bottom: Optional[int] = None, left: int = 0, right: Optional[int] = None
    ) -> np.ndarray:
        """Pixels of a part of the picture.

        Args:
            top (int): First row. Defaults to 0.
            bottom (int, optional): Last row plus 1. A PNG file need not be decoded further. Defaults to the height.
            left (int): First column. Defaults to 0.
            right (int, optional): Last column plus 1. Defaults to the width.

        Returns:
            np.ndarray: uint8, shape (h, w, 3) in BGR order, or (h, w) for a label. It may be read-only.
        """
        pixels, is_rgb = self._pixels, False
        if pixels is None:
            pixels = self._decode_first(bottom or self.shape[0])
            is_rgb = pixels is not None and not self.is_label
        if pixels is None:
            pixels = self._pixels = self._decode_whole()
        part = pixels[top:bottom, left:right]
        return cv2.cvtColor(part, cv2.COLOR_RGB2BGR) if is_rgb else part

    def _decode_first(self, rows: int) -> Optional[np.ndarray]:
        try:
            return png.decode_rows(self._data, rows)
        except ValueError:
            return None  # upstream's decoder decides whether the file is damaged

    def _decode_whole(self) -> np.ndarray:
        """Decode the whole picture with upstream's decoder."""
        flag, backend = ('unchanged', 'pillow') if self.is_label else ('color', 'cv2')
        try:
            pixels = mmcv.imfrombytes(self._data, flag=flag, backend=backend)
        except UnidentifiedImageError:
            raise ValueError(f'cannot decode {self.path}: it is no picture') from None
        except Exception as e:  # each decoder has its own errors
            raise ValueError(f'cannot decode {self.path}: {console.reason(e)}') from None
        if pixels is None:
            raise ValueError(f'cannot decode {self.path}')
        return pixels.squeeze().astype(np.uint8) if self.is_label else pixels


def _from_cache(cache: DecodedCache, path: str) -> Optional[np.ndarray]:
    """Read a picture from the cache. None if there is none; if it cannot be used, a warning says why."""
    try:
        return cache.get(path)
    except (OSError, ValueError) as e:
        print_log(
            f'the decoded cache {cache.folder} is stale: {e}; the file is decoded instead. Make the cache anew',
            logger='current',
            level=logging.WARNING,
        )
        return None
