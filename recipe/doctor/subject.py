"""The training that the doctor checks, as far as it is known before its start."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from recipe.core import network
from recipe.core.run_options import Options


@dataclass(frozen=True)
class Subject:
    """A training on this machine.

    Attributes:
        asked: The launcher's options.
        device: ``npu``, ``cuda`` or ``cpu``.
        nproc: Ranks on this machine.
        config: Resolved ``mmengine.Config``; None if it could not be read.
        images_per_s: Images that each card is to train on in a second; None if the user has not said.
        root: Root of the file system to look at; tests give another one.
        env: Environment variables of the training.
    """

    asked: Options
    device: str
    nproc: int
    config: Any = None
    images_per_s: Optional[float] = None
    root: Path = Path('/')
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def master(self) -> str:
        """IPv4 address of rank 0's machine."""
        return network.resolve(self.asked.master_addr) if self.asked.master_addr else network.LOCAL

    def loader(self) -> Dict[str, int]:
        """Settings of the training's loader.

        Returns:
            Images per card (``batch_size``), loader processes per card (``num_workers``), and batches that each of
            these
            prepares ahead (``prefetch_factor``).
        """
        given = (self.config or {}).get('train_dataloader') or {}
        workers = int(given.get('num_workers') or 0)
        # 2 is torch's default for None.
        ahead = int(given.get('prefetch_factor') or 2) if workers else 0
        return {'batch_size': int(given.get('batch_size') or 1), 'num_workers': workers, 'prefetch_factor': ahead}
