"""Predicts the pictures of one rank and writes each prediction as a PNG of label ids, or of another set, of train ids.

Ranks do not talk to each other. Pictures are grouped into batches in a fixed way, and each batch belongs to one rank.
A batch whose predictions are all there is passed over: what is predicted does not depend on the number of ranks, or on
what was interrupted.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from recipe.core import console, files, json_files
from recipe.core.exit_status import NONFINITE, UNREADABLE
from recipe.evaluate import classes
from recipe.evaluate.pictures import Picture

SPEED = 'speed_rank{}.json'
_END_OF_PNG = b'IEND\xaeB`\x82'
_COMPRESSION = 3  # of zlib; label maps shrink well, and higher levels cost more time than they save


@dataclass(frozen=True)
class Task:
    """What all ranks of a machine do; a JSON file.

    Attributes:
        checkpoint: The checkpoint.
        config: Config file that replaces the one in the checkpoint.
        folder: The evaluation folder; predictions are in ``predictions/``.
        pictures: Name and path of each picture.
        batch_size: Pictures in a batch.
        num_workers: Threads that load and write; 0: the one that predicts does so.
        device: ``npu``, ``cuda`` or ``cpu``.
        tf32: As ``--tf32``.
        as_label_ids: Whether predictions are written as Cityscapes' label ids; otherwise as train ids.
    """

    checkpoint: str
    config: Optional[str]
    folder: str
    pictures: List[Tuple[str, str]]
    batch_size: int
    num_workers: int
    device: str
    mode: str
    tta: bool
    amp: str
    fast: bool
    tf32: Optional[bool]
    as_label_ids: bool = True

    def write(self, path: Path) -> Path:
        """Write the file."""
        return files.write_text(path, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Task:
        """Read the file."""
        return cls(**json.loads(path.read_text(encoding='utf-8')))

    @property
    def predictions(self) -> Path:
        """Folder of the predictions."""
        return predictions_of(Path(self.folder))

    def share(self, rank: int, world_size: int) -> List[List[Tuple[str, str]]]:
        """Batches of one rank that are not done."""
        batches = [
            self.pictures[first : first + self.batch_size] for first in range(0, len(self.pictures), self.batch_size)
        ]
        return [
            batch
            for batch in batches[rank::world_size]
            if not all(is_whole(self.predictions / name) for name, _ in batch)
        ]


def predictions_of(folder: Path) -> Path:
    """Folder of the predictions in an evaluation folder."""
    return folder / 'predictions'


def is_whole(prediction: Path) -> bool:
    """Whether a prediction is there, up to the end mark of its file."""
    try:
        with prediction.open('rb') as file:
            file.seek(-len(_END_OF_PNG), 2)
            return file.read() == _END_OF_PNG
    except OSError:
        return False


def to_predict(pictures: Sequence[Picture], folder: Path) -> List[str]:
    """Names of the pictures whose predictions are not there."""
    predictions = predictions_of(folder)
    return [picture.name for picture in pictures if not is_whole(predictions / picture.name)]


def run(task: Task, rank: int, local_rank: int, world_size: int, mark: Callable[[bool], None]) -> None:
    """Predict the share of one rank.

    Args:
        task: What to do.
        rank: Number of this rank.
        local_rank: Number of this rank on its machine, which is that of its card.
        world_size: Ranks of all machines.
        mark: Called with False before slow work and with True after each batch.

    Raises:
        console.UserError: A picture cannot be read, or a score is not finite.
    """
    mark(False)
    label = _labeller(task, local_rank)
    mark(False)
    save = write if task.as_label_ids else write_train_ids
    share, begin = task.share(rank, world_size), time.monotonic()
    with contextlib.ExitStack() as stack:
        pool = None
        if task.num_workers:
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(task.num_workers))
        writes: Deque[concurrent.futures.Future[None]] = collections.deque()
        for batch, pictures in _loaded(share, pool, ahead=2 * (task.num_workers or 1)):
            for (name, _), labels in zip(batch, label([path for _, path in batch], pictures)):
                if pool is None:
                    save(task.predictions / name, labels)
                    continue
                writes.append(pool.submit(save, task.predictions / name, labels))
            while len(writes) > 4 * task.num_workers or (writes and writes[0].done()):
                writes.popleft().result()
            mark(True)
        for waiting in writes:
            waiting.result()
    speed = {'pictures': sum(map(len, share)), 'seconds': time.monotonic() - begin}
    files.write_text(Path(task.folder, SPEED.format(rank)), json.dumps(speed) + '\n')


def _labeller(task: Task, local_rank: int) -> Callable[[List[str], List[np.ndarray]], Iterator[np.ndarray]]:
    """A function from paths and pictures to their train ids."""
    import cv2
    from mmengine.config import Config
    from mmseg.engine.device import prepare_device

    from recipe.engine.precision import set_tf32
    from recipe.evaluate.inference import Inference
    from recipe.predict.trained_model import load_trained_model

    cv2.setNumThreads(1)  # the threads of the pool load in parallel
    prepare_device(Config({'env_cfg': {'dist_cfg': {}}}), task.device)
    if task.tf32 is not None:
        set_tf32(task.device, task.tf32)
    place = task.device if task.device == 'cpu' else f'{task.device}:{local_rank}'
    model = load_trained_model(task.checkpoint, place, task.config, task.fast)
    inference = Inference(model, task.mode, task.tta, task.amp)

    def label(paths: List[str], pictures: List[np.ndarray]) -> Iterator[np.ndarray]:
        first = 0
        while first < len(pictures):  # pictures of one size at a time
            last = first + 1
            while last < len(pictures) and pictures[last].shape == pictures[first].shape:
                last += 1
            try:
                yield from inference.labels(pictures[first:last])
            except FloatingPointError:
                fix = 'evaluate without --amp' if task.amp != 'off' else 'are the weights of the checkpoint finite?'
                found = f'a score is not finite: {" or ".join(paths[first:last])}'
                raise console.UserError(found, fix, NONFINITE) from None
            first = last

    return label


_Batch = List[Tuple[str, str]]


def _loaded(
    batches: List[_Batch], pool: Optional[concurrent.futures.Executor], ahead: int
) -> Iterator[Tuple[_Batch, List[np.ndarray]]]:
    """Yield batches with their pictures, some of which are loaded ahead."""
    if pool is None:
        for batch in batches:
            yield batch, [read(path) for _, path in batch]
        return
    coming: Deque[Tuple[_Batch, List[concurrent.futures.Future[np.ndarray]]]] = collections.deque()
    for batch in batches:
        coming.append((batch, [pool.submit(read, path) for _, path in batch]))
        if sum(len(one) for one, _ in coming) > max(ahead, len(batch)):
            yield _loaded_batch(*coming.popleft())
    while coming:
        yield _loaded_batch(*coming.popleft())


def _loaded_batch(
    batch: _Batch, futures: List[concurrent.futures.Future[np.ndarray]]
) -> Tuple[_Batch, List[np.ndarray]]:
    return batch, [future.result() for future in futures]


def read(path: str) -> np.ndarray:
    """Load a picture as the validation of a training does; uint8 (H, W, 3), BGR.

    Raises:
        console.UserError: It cannot be read.
    """
    from recipe.data.transforms.picture_file import PictureFile

    try:
        return PictureFile(path).window()
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise console.UserError(f'cannot read {path}: {reason}', status=UNREADABLE) from None


def write(path: Path, labels: np.ndarray) -> None:
    """Write a prediction as Cityscapes' label ids.

    Args:
        path: PNG to write.
        labels: Train ids, uint8 (H, W).
    """
    write_train_ids(path, classes.TO_LABEL_ID[labels])


def write_train_ids(path: Path, labels: np.ndarray) -> None:
    """Write a prediction of another set, as it is; the arguments are those of ``write``."""
    import cv2

    encoded = cv2.imencode('.png', labels, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1]
    with files.whole(path) as partial:
        partial.write_bytes(encoded.tobytes())


def forget_speed(folder: Path) -> None:
    """Remove what earlier ranks wrote about their speed."""
    for path in folder.glob(SPEED.format('*')):
        path.unlink()


def speed(folder: Path) -> Optional[Dict[str, Any]]:
    """How fast the ranks were when they last ran to their end; None if nothing is known.

    Args:
        folder: The evaluation folder.
    """
    try:
        shares = [json_files.read(path, dict) for path in sorted(folder.glob(SPEED.format('*')))]
        pictures = sum(json_files.whole_number(one.get('pictures')) for one in shares)
        seconds = max((json_files.number(one.get('seconds')) for one in shares), default=0.0)
    except json_files.JsonError:
        return None
    if not pictures or not seconds:
        return None
    return {'images_per_s': pictures / seconds, 'pictures': pictures, 'seconds': seconds, 'ranks': len(shares)}
