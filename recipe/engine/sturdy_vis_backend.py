"""Log files whose failure, such as a full disk, does not end the training."""

import logging
import os.path as osp
from typing import Dict

import numpy as np
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.logging import print_log
from mmengine.visualization import LocalVisBackend
from mmseg.registry import VISBACKENDS

from recipe.engine.appended_lines import AppendedLines


@VISBACKENDS.register_module()
class SturdyVisBackend(LocalVisBackend):
    """Writes the files of :class:`mmengine.visualization.LocalVisBackend`.

    If the disk is full, read-only or gone, the training goes on. Scalars are kept and written later; images are lost.

    Args:
        *args, **kwargs: See :class:`mmengine.visualization.LocalVisBackend`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._files: Dict[str, AppendedLines] = {}

    def add_config(self, config: Config, **kwargs) -> None:
        """Record the config.

        Args:
            config (Config): The config.
            **kwargs: Not used.
        """
        try:
            super().add_config(config, **kwargs)
        except OSError as e:
            self._warn('the config', e)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        """Record an image.

        Args:
            name (str): Its name.
            image (np.ndarray): RGB, uint8, shape (H, W, 3).
            step (int): Global step. Defaults to 0.
            **kwargs: Not used.
        """
        try:
            super().add_image(name, image, step, **kwargs)
        except OSError as e:
            self._warn(f'the picture {name}', e)

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        """Append a value to a file as one line."""
        file = self._files.setdefault(osp.abspath(file_path), AppendedLines(file_path))
        file.write(dump(value_dict, file_format=file_format) + '\n')

    @staticmethod
    def _warn(what: str, error: OSError) -> None:
        print_log(f'{what} could not be written ({error})', logger='current', level=logging.WARNING)
