"""The plan of one start of the launcher; ``checks`` fills it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.core import inputs, run_folder
from recipe.core.run_options import SCRIPTS, Options
from recipe.doctor.subject import Subject


@dataclass
class Plan:
    """A training or an evaluation, as far as it is known.

    Attributes:
        options: What the user asked for.
        starts: Whether it will start; if not, nothing is downloaded and no progress is shown.
        images_per_s: Images that each card is to train on in a second, of which the doctor was told.
        device: ``npu``, ``cuda`` or ``cpu``.
        nproc: Ranks on this machine.
        pins: Commits of each checkout, for versions.json.
        data_root: Root of the data set.
        data_set: ``recipe.data.sets.file.DataSet`` of --dataset; None without it.
        config: Resolved ``mmengine.Config``.
        folder: Run folder, absolute.
        backbone: File of pretrained weights; None if the training needs none.
        initial_weights: Tensors of --init_from by name, which are written into the run folder; None if the ranks can
            read the file itself.
        starting: What becomes of each tensor of --init_from, a ``recipe.engine.starting_weights.Fit``.
        model: Built from the config for its shapes and size; its weights have no meaning.
        trained: To evaluate: the ``TrainedModel``, without its model, as the ranks load their own.
    """

    options: Options
    starts: bool = True
    images_per_s: Optional[float] = None
    device: str = ''
    nproc: int = 0
    pins: Dict[str, Any] = field(default_factory=dict)
    data_root: Path = inputs.DEFAULT_CITYSCAPES
    data_set: Any = None
    config: Any = None
    folder: Path = Path()
    backbone: Optional[Path] = None
    initial_weights: Optional[Dict[str, Any]] = None
    starting: Any = None
    model: Any = None
    trained: Any = None

    @property
    def world_size(self) -> int:
        """Number of ranks on all machines."""
        return self.nproc * self.options.nnodes

    @property
    def own_folder(self) -> Path:
        """Folder of this machine's own files: config, command, logs of its ranks."""
        return (
            self.folder if self.options.is_first_node else self.folder / run_folder.NODES / str(self.options.node_rank)
        )

    @property
    def case(self) -> str:
        """Name of the script, used in the names of the legacy files."""
        return SCRIPTS[self.options.script]

    @property
    def subject(self) -> Subject:
        """The training in the form that the doctor's checks take."""
        return Subject(self.options, self.device, self.nproc, self.config, self.images_per_s)
