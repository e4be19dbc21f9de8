"""From pictures to class scores: whole or in windows, at one scale or averaged over scales and flips."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, Optional, Tuple

import numpy as np

MODES = ('whole', 'slide')
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test-time augmentation
_OVERLAP = 3  # windows overlap by a third of their side, as in mmseg's configs for windows of 512 x 512

Size = Tuple[int, int]
# Scores (N, C, H, W) of pictures (N, 3, h, w), resized bilinearly to (H, W).
Scorer = Callable[[Any, Size], Any]


def windows(size: Size, crop: Size, stride: Size) -> Iterator[Tuple[slice, slice]]:
    """Windows that cover a picture, as mmseg's ``slide_inference`` lays them.

    Args:
        size: (H, W) of the picture.
        crop: (h, w) of a window; a smaller picture is one window.
        stride: Rows and columns from one window to the next. The last ones are moved back into the picture.

    Yields:
        Rows and columns.
    """
    for bottom in _ends(size[0], crop[0], stride[0]):
        for right in _ends(size[1], crop[1], stride[1]):
            yield slice(max(bottom - crop[0], 0), bottom), slice(max(right - crop[1], 0), right)


def _ends(side: int, crop: int, stride: int) -> List[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [min(number * stride + crop, side) for number in range(count)]


def in_windows(score: Scorer, crop: Size, stride: Optional[Size] = None) -> Scorer:
    """Score pictures window by window, and average where windows overlap.

    Args:
        score: Scores a window.
        crop: (h, w) of a window.
        stride: See ``windows``; None: two thirds of ``crop``.
    """
    steps = stride or (max(1, crop[0] * (_OVERLAP - 1) // _OVERLAP), max(1, crop[1] * (_OVERLAP - 1) // _OVERLAP))

    def slide(pictures: Any, size: Size) -> Any:
        from torch.nn import functional

        whole: Size = tuple(pictures.shape[-2:])
        total: Any = None
        count: Any = None
        for rows, columns in windows(whole, crop, steps):
            part = pictures[..., rows, columns]
            scores = score(part, tuple(part.shape[-2:]))
            if total is None:
                total = scores.new_zeros((*scores.shape[:2], *whole))
                count = scores.new_zeros(whole)
            total[..., rows, columns] += scores
            count[rows, columns] += 1
        total /= count
        if whole == size:
            return total
        return functional.interpolate(total, size, mode='bilinear', align_corners=False)

    return slide


def augmented(score: Scorer, pictures: List[np.ndarray], base: Size, size: Size) -> Any:
    """Average the raw scores over all scales, each as it is and flipped.

    A softmax of Mask2Former's scores, which are sums of probabilities, would change their weights; see mmseg's
    ``SegTTAModel``. At any time there is one batch of one view and the sum, both at most as large as the largest scale.

    Args:
        score: Scores pictures.
        pictures: uint8 (h, w, 3), BGR, all of one size.
        base: (H, W) of scale 1.
        size: (H, W) of the result.

    Returns:
        (N, C, H, W).
    """
    total = None
    for scale in SCALES:
        view = to_batch([resize(picture, _scaled(base, scale)) for picture in pictures])
        for flip in (False, True):
            scores = score(view.flip(-1) if flip else view, size)
            scores = scores.flip(-1) if flip else scores
            total = scores if total is None else total.add_(scores)
            del scores  # before the next view's
    assert total is not None, 'there are scales'
    return total.div_(2 * len(SCALES))


def _scaled(base: Size, scale: float) -> Size:
    return int(base[0] * scale + 0.5), int(base[1] * scale + 0.5)  # as mmcv rounds


def resize(picture: np.ndarray, size: Size) -> np.ndarray:
    """Resize a picture bilinearly to (H, W), as mmcv's ``Resize`` does."""
    import mmcv

    if picture.shape[:2] == size:
        return picture
    resized: np.ndarray = mmcv.imresize(picture, (size[1], size[0]), interpolation='bilinear', backend='cv2')
    return resized


def to_batch(pictures: List[np.ndarray]) -> Any:
    """Stack pictures (h, w, 3) to a tensor (N, 3, h, w)."""
    import torch

    return torch.from_numpy(np.stack([picture.transpose(2, 0, 1) for picture in pictures]))


class Inference:
    """Chooses the class of each pixel.

    Args:
        model: ``TrainedModel``.
        mode: ``whole`` or ``slide``.
        tta: Whether to average over scales and flips.
        amp: ``off``, ``bf16`` or ``fp16``.
    """

    def __init__(self, model: Any, mode: str = 'whole', tta: bool = False, amp: str = 'off') -> None:
        self._model = model
        self._tta = tta
        self._amp = amp
        self._score: Scorer = self._scores
        if mode == 'slide':
            self._score = in_windows(self._scores, *slide_sizes(model.config))

    def _scores(self, pictures: Any, size: Size) -> Any:
        import torch

        dtype = torch.float16 if self._amp == 'fp16' else torch.bfloat16
        with torch.autocast(self._model.device.partition(':')[0], dtype, enabled=self._amp != 'off'):
            return self._model.scores(pictures, size)

    def scores(self, pictures: List[np.ndarray]) -> Any:
        """Class scores of pictures.

        Args:
            pictures: uint8 (H, W, 3), BGR, all of one size.

        Returns:
            (N, C, H, W), on the model's device.
        """
        import torch

        size: Size = pictures[0].shape[:2]
        with torch.no_grad():
            resized = [self._model.resized(picture) for picture in pictures]
            if self._tta:
                return augmented(self._score, pictures, resized[0].shape[:2], size)
            return self._score(to_batch(resized), size)

    def labels(self, pictures: List[np.ndarray]) -> np.ndarray:
        """Class of each pixel, the first one if several have the same score.

        Args:
            pictures: As for ``scores``.

        Returns:
            Train ids, uint8 (N, H, W).

        Raises:
            FloatingPointError: A score is not finite.
        """
        import torch

        best, chosen = self.scores(pictures).max(dim=1)
        labels: np.ndarray = chosen.to(torch.uint8).cpu().numpy()
        if not bool(torch.isfinite(best).all()):
            raise FloatingPointError('a score is not finite')
        return labels


def slide_sizes(config: Any) -> Tuple[Size, Optional[Size]]:
    """Window and stride of ``--mode=slide``: those of the config's ``test_cfg``, or its crop of the training."""
    test = config.model.get('test_cfg') or {}
    crop = test.get('crop_size') or (config.model.get('data_preprocessor') or {}).get('size') or (512, 1024)
    stride = test.get('stride') if test.get('crop_size') else None
    return tuple(crop), tuple(stride) if stride else None
