"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and SwanLab, each by its own library.

Without ``online`` each writes files below the log folder of the start and sends nothing. With ``online`` its library
takes the account or the server from the user's own settings (``wandb login``, ``MLFLOW_TRACKING_URI``, ``swanlab
login``). None of the libraries is needed unless its tracker is asked for.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any, Dict, Optional, Protocol, Type

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.visualization.vis_backend import BaseVisBackend
from mmseg.registry import VISBACKENDS

from recipe.engine.training_options import run_name

PROJECT = 'mask2former-swin-recipe'


class Tracker(Protocol):
    """What a tracker does; any method may raise any error."""

    def __init__(self, folder: Path, name: str, online: bool) -> None: ...

    def add_config(self, config: Config) -> None:
        """Record the config of the run."""

    def add_scalars(self, scalars: Dict[str, float], step: int) -> None:
        """Record numbers after an iteration."""

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Record an image: RGB, uint8, shape (H, W, 3)."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in ``vis_data/tensorboard``."""

    def __init__(self, folder: Path, name: str, online: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=30)

    def add_config(self, config: Config) -> None:
        self._writer.add_text('config', f'```\n{config.pretty_text}\n```')

    def add_scalars(self, scalars: Dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._writer.add_image(name, image, step, dataformats='HWC')

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """An offline run of Weights & Biases in ``vis_data/wandb``; ``wandb sync`` uploads it."""

    def __init__(self, folder: Path, name: str, online: bool) -> None:
        if not online:
            os.environ['WANDB_ERROR_REPORTING'] = 'false'
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(project=PROJECT, name=name, dir=str(folder), mode='online' if online else 'offline')
        self._run.define_metric('*', step_metric='iteration')

    def add_config(self, config: Config) -> None:
        self._run.config.update(config.to_dict(), allow_val_change=True)

    def add_scalars(self, scalars: Dict[str, float], step: int) -> None:
        self._run.log({**scalars, 'iteration': step})

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(image), 'iteration': step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run in the files of ``vis_data/mlflow``, or on the server that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, folder: Path, name: str, online: bool) -> None:
        if not online:
            os.environ.update(MLFLOW_DISABLE_TELEMETRY='true', MLFLOW_ALLOW_FILE_STORE='true')
        import mlflow

        self._client = mlflow.MlflowClient(None if online else folder.absolute().as_uri())
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._run = self._client.create_run(experiment, run_name=name).info.run_id

    def add_config(self, config: Config) -> None:
        self._client.log_text(self._run, config.pretty_text, 'config.py')

    def add_scalars(self, scalars: Dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in scalars.items()])

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, image, f'{name}_{step}.png')

    def close(self) -> None:
        self._client.set_terminated(self._run)


class SwanLab:
    """An offline run of SwanLab in ``vis_data/swanlab``; ``swanlab sync`` uploads it."""

    def __init__(self, folder: Path, name: str, online: bool) -> None:
        import swanlab

        folder.mkdir(parents=True, exist_ok=True)
        self._swanlab = swanlab
        mode = 'online' if online else 'offline'
        self._run = swanlab.init(project=PROJECT, name=name, log_dir=str(folder), mode=mode)

    def add_config(self, config: Config) -> None:
        self._run.config.update(config.to_dict())

    def add_scalars(self, scalars: Dict[str, float], step: int) -> None:
        self._swanlab.log(scalars, step=step)

    def add_image(self, name: str, image: np.ndarray, step: int) -> None:
        self._swanlab.log({name: self._swanlab.Image(image)}, step=step)

    def close(self) -> None:
        self._swanlab.finish()


KINDS: Dict[str, Type[Any]] = {'tensorboard': TensorBoard, 'wandb': Wandb, 'mlflow': MLflow, 'swanlab': SwanLab}


@VISBACKENDS.register_module()
class TrackerVisBackend(BaseVisBackend):
    """Passes scalars, the config and images to a tracker, which never ends the training.

    If the tracker raises an error, at its start or later, a warning is logged and it gets nothing more.

    Args:
        save_dir (str): ``vis_data`` of the log folder.
        tracker (str): Name of the tracker, from ``KINDS``.
        online (bool): Whether it may send data.
    """

    def __init__(self, save_dir: str, tracker: str, online: bool = False) -> None:
        super().__init__(save_dir)
        self._name, self._online = tracker, online
        self._tracker: Optional[Tracker] = None
        self._works = True

    @property
    def experiment(self) -> Any:
        """The tracker; None if it does not work."""
        self._call()
        return self._tracker

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Record the config."""
        self._call('add_config', config)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Record an RGB image, uint8, shape (H, W, 3)."""
        self._call('add_image', name, image, step)

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Record a number."""
        self.add_scalars({name: value}, step)

    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: Optional[str] = None, **kwargs: Any) -> None:
        """Record the numbers of a dict; values of other kinds are left out."""
        numbers = {name: float(value) for name, value in scalar_dict.items() if _is_number(value)}
        self._call('add_scalars', numbers, step)

    def add_graph(self, *args: Any, **kwargs: Any) -> None:
        """Record nothing."""

    def _init_env(self) -> None:
        """Start the tracker."""
        self._call()

    def close(self) -> None:
        """End the tracker's run."""
        if self._tracker is not None:
            self._call('close')
            self._tracker, self._works = None, False

    def _call(self, method: str = '', *args: Any) -> None:
        """Start the tracker if it has not been started, and call a method."""
        if not self._works:
            return
        try:
            if self._tracker is None:
                folder = Path(self._save_dir, self._name)
                self._tracker = KINDS[self._name](folder, run_name(self._save_dir), self._online)
            if method:
                getattr(self._tracker, method)(*args)
        except (Exception, SystemExit) as error:  # a library of others may raise anything
            self._works = False
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
            print_log(
                f'{self._name} fails ({reason}); the training goes on without it',
                logger='current',
                level=logging.WARNING,
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
