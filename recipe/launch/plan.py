"""What a start of the launcher will run; ``checks`` fills it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.core import inputs
from recipe.core.run_options import SCRIPTS, Options
from recipe.doctor.subject import Subject


@dataclass
class Plan:
    """A training, as far as it is worked out.

    Attributes:
        options: What the user asked for.
        starts: Whether the training will start; otherwise nothing is downloaded, and no progress is shown.
        device: ``npu``, ``cuda`` or ``cpu``.
        nproc: Ranks on this machine.
        pins: Commits of each checkout, for versions.json.
        data_root: Of the data set.
        config: Resolved ``mmengine.Config``.
        folder: Run folder, absolute.
        backbone: File of pretrained weights; None where the training needs none.
        model: Built from the config, with weights of no meaning.
    """

    options: Options
    starts: bool = True
    device: str = ''
    nproc: int = 0
    pins: Dict[str, Any] = field(default_factory=dict)
    data_root: Path = inputs.DEFAULT_CITYSCAPES
    config: Any = None
    folder: Path = Path()
    backbone: Optional[Path] = None
    model: Any = None

    @property
    def world_size(self) -> int:
        """Ranks on all machines."""
        return self.nproc * self.options.nnodes

    @property
    def own_folder(self) -> Path:
        """Where this machine keeps what belongs to it alone: config, command, logs of its ranks."""
        return self.folder if self.options.is_first_node else self.folder / 'nodes' / str(self.options.node_rank)

    @property
    def case(self) -> str:
        """Name of the script, which the legacy files bear."""
        return SCRIPTS[self.options.script]

    @property
    def subject(self) -> Subject:
        """The training as the doctor looks at it."""
        return Subject(self.options, self.device, self.nproc, self.config)
