"""A trained model as a Python function: ``from recipe import load``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Tuple, Union

import numpy as np

from recipe.predict.picture import Picture, as_bgr
from recipe.predict.trained_model import TrainedModel, load_trained_model


def load(
    source: Union[str, Path], device: str = 'auto', config: Union[str, Path, None] = None, fast: bool = True
) -> Segmenter:
    """Load a trained model.

        from recipe import load
        segment = load('best.pth')
        labels = segment('street.png')

    Args:
        source: A checkpoint, or the folder of a run (its best checkpoint, or its last one if none is best).
        device: ``auto``, ``cpu``, ``cuda`` or ``npu``, with a number if it is not to be the current one: ``cuda:1``.
        config: Config file of the training, if the checkpoint does not hold it. It runs as Python.
        fast: Use the fast modules, see ``recipe.models.accelerate``.

    Returns:
        A function from a picture to its label map. Several threads may call it.

    Raises:
        recipe.core.console.UserError: The model cannot be loaded; one line says why.
    """
    return Segmenter(load_trained_model(source, device, config, fast))


class Segmenter:
    """Predicts the class of each pixel of a picture.

    Each call is independent. Several threads may call it: they read pictures in parallel, and the model runs for one of
    them at a time.

    Args:
        trained: From ``load_trained_model``.

    Attributes:
        trained: The model with all that is known of it.
        classes: Names of the classes; a label is an index into it.
        palette: Colours of the classes, uint8, shape (C, 3), RGB.
        path: The checkpoint.
    """

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        self.classes, self.palette, self.path = trained.classes, trained.palette, trained.path

    def __call__(self, image: Picture) -> np.ndarray:
        """Predict one picture.

        Args:
            image: Path of a file, a Pillow image, or an array: uint8, shape (H, W, 3), **RGB** (OpenCV's arrays are
                BGR; give ``array[..., ::-1]``). Files and Pillow images are turned as their EXIF data asks.

        Returns:
            Class of each pixel, uint8, shape (H, W).

        Raises:
            recipe.predict.picture.UnreadableError: The file cannot be read.
            TypeError: The image has another type, dtype or shape.
        """
        return np.asarray(self.trained.labels(*self._prepared(image))[0].cpu())

    def scores(self, image: Picture) -> np.ndarray:
        """Predict the scores from which the classes are chosen; see ``TrainedModel.scores``.

        Args:
            image: As for a call.

        Returns:
            float32, shape (C, H, W).
        """
        return np.asarray(self.trained.scores(*self._prepared(image))[0].cpu())

    def _prepared(self, image: Picture) -> Tuple[Any, Tuple[int, int]]:
        pixels = as_bgr(image)
        height, width = pixels.shape[:2]
        return self.trained.as_batch([pixels]), (height, width)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path}, {len(self.classes)} classes, on {self.trained.device})'
