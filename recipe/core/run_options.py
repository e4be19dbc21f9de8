"""What a user asked a launcher for. recipe/launch/options.py reads it from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

BACKBONES = ('r50', 'swin-t', 'swin-s', 'swin-b', 'swin-l')
SCRIPTS = {'full': 'train_full_8p', 'performance': 'train_performance_8p', 'evaluate': 'evaluate_8p'}


@dataclass(frozen=True)
class Options:
    """What the user asked for. None means not given: the config or the device decides.

    Attributes:
        script: ``full``, ``performance`` or ``evaluate``.
        batch_size: Images per card, in one forward pass.
        accumulate: Batches of each card for one optimizer step.
        checkpoint_activations: Whether the backbone's activations are computed twice; None: as the config says.
        freeze: ``backbone``, or ``stages:N`` for the stem and the first N stages of the backbone.
        memory: ``report`` measures the memory of a step instead of training.
        log_to: Names of trackers, each perhaps with ``:online``.
        ema: Decay of the moving average of the weights.
        early_stop: Validations in a row without a better mIoU after which the training ends.
        num_workers: Loader processes per card, of each data loader.
        dataset: The file of a data set, see ``recipe.data.sets.file``; None means Cityscapes.
        data_path: Root of the data set; None with ``demo`` and without ``dataset`` means the built-in data set.
        nproc: Cards, one process each, on this machine.
        or_begin: Whether to begin if there is no checkpoint to resume; ``settle`` then sets ``resume``.
        backbone: One of ``BACKBONES``.
        pretrained: Weights file, or ``none``.
        init_from: A whole model to begin from: a checkpoint, or a file or folder of another trainer.
        class_map: File that maps the classes of ``init_from`` to those of the training, or ``names``.
        engine: ``recipe`` (``recipe.engine.equip``) or ``upstream`` (mmengine's own loop and mmseg's transforms).
        num_points: Points of each mask that the losses compare.
        keep_checkpoints: Newest checkpoints to keep; -1: all.
        max_restarts: How often the ranks are started again after one fails or hangs.
        hang_timeout: Seconds without progress after which a rank counts as hung; 0: never.
        on_nan: Steps that are not finite to skip before the training ends.
        on_bad_image: Unreadable images to replace before the training ends.
        compile: Whether to train in graphs of torch.compile.
        graph: Whether forward and backward pass run as one CUDA graph.
        fast: Whether the fast modules of ``recipe.models`` replace upstream's.
        overrides: ``key=value`` texts after ``--``.
        checkpoint: To evaluate: a checkpoint or a run folder.
        split: ``val``, or ``test``, which has no labels.
        mode: ``whole`` or ``slide``.
        tta: Whether to average over scales and flips.
        official: Whether to run the official evaluation, too.
        submission: Archive to write for the test server.
    """

    script: str
    resume: bool = False
    or_begin: bool = False
    batch_size: Optional[int] = None
    accumulate: int = 1
    checkpoint_activations: Optional[bool] = None
    freeze: Optional[str] = None
    memory: Optional[str] = None
    log_to: Tuple[str, ...] = ()
    ema: Optional[float] = None
    early_stop: Optional[int] = None
    num_workers: Optional[int] = None
    data_path: Optional[str] = None
    dataset: Optional[str] = None
    work_dir: Optional[str] = None
    nproc: Optional[int] = None
    device: str = 'auto'
    decoded_cache: Optional[str] = None
    max_iters: Optional[int] = None
    val_interval: Optional[int] = None
    config: Optional[str] = None
    backbone: Optional[str] = None
    pretrained: Optional[str] = None
    init_from: Optional[str] = None
    class_map: Optional[str] = None
    seed: Optional[int] = None
    amp: Optional[str] = None
    num_points: Optional[int] = None
    keep_checkpoints: Optional[int] = None
    tf32: Optional[bool] = None
    compile: bool = False
    graph: bool = False
    engine: str = 'recipe'
    fast: bool = True
    nnodes: int = 1
    node_rank: Optional[int] = None
    master_addr: Optional[str] = None
    master_port: Optional[int] = None
    demo: bool = False
    doctor: bool = True
    max_restarts: int = 0
    hang_timeout: Optional[int] = None
    on_nan: Optional[int] = None
    on_bad_image: Optional[int] = None
    trust_checkpoint: bool = False
    overrides: List[str] = field(default_factory=list)
    checkpoint: Optional[str] = None
    split: str = 'val'
    mode: str = 'whole'
    tta: bool = False
    official: bool = False
    submission: Optional[str] = None

    @property
    def writes_checkpoints(self) -> bool:
        """Whether the run writes checkpoints; a performance run must leave none that a full run could resume."""
        return self.script == 'full'

    @property
    def needs_labels(self) -> bool:
        """Whether the data set's labels are needed."""
        return self.split != 'test' or self.dataset is not None

    @property
    def uses_demo_data(self) -> bool:
        """Whether it trains on the built-in data set; a demo may be given another one."""
        return self.demo and self.data_path is None and self.dataset is None

    @property
    def is_first_node(self) -> bool:
        """Whether this machine runs rank 0, which writes the run's files."""
        return not self.node_rank
