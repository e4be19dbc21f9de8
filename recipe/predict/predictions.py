"""Predicts pictures and videos, and writes what is drawn of them.

Pictures are read and results are written by threads while the model runs. Pictures of one size are predicted together.
"""

from __future__ import annotations

import collections
import contextlib
import io
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Sequence, Tuple, TypeVar

import numpy as np

from recipe.core import console, files
from recipe.data.parallel import LINE_EVERY_S, default_workers
from recipe.data.progress_bar import ProgressBar
from recipe.predict import drawing, picture, video
from recipe.predict.picture import UnreadableError
from recipe.predict.sources import Source
from recipe.predict.trained_model import TrainedModel

_MOST_THREADS = 8
_SIZES_AT_A_TIME = 4  # batches' worth of pictures of different sizes that wait for others of their size
_OUT_OF_MEMORY = ('out of memory', "can't allocate memory", 'not enough memory')

Item = TypeVar('Item')
Read = Tuple[Source, np.ndarray]


@dataclass(frozen=True)
class Outputs:
    """What is written, and where.

    Attributes:
        folder: The output folder.
        scores: Whether to write the scores of pictures too.
    """

    folder: Path
    scores: bool = False

    def of(self, source: Source) -> List[Path]:
        """The files that are made of a source; the overlay comes first."""
        if source.is_video:
            return [self._path(source, f'overlay{video.SUFFIX}')]
        kinds = ['overlay.png', 'labels.png', *(['scores.npy'] if self.scores else [])]
        return [self._path(source, kind) for kind in kinds]

    def _path(self, source: Source, kind: str) -> Path:
        return self.folder / f'{source.name}_{kind}'


@dataclass
class Predictor:
    """Predicts sources one after the other and counts what it does.

    Attributes:
        trained: The model.
        outputs: What is written.
        overlay: Draws.
        batch_size: Pictures, or frames of a video, that the model predicts together.
        pictures: Pictures written.
        frames: Frames of videos written.
        unreadable: Sources passed over.
        seconds: Time that it took, reading and writing included.
    """

    trained: TrainedModel
    outputs: Outputs
    overlay: drawing.Overlay
    batch_size: int
    pictures: int = 0
    frames: int = 0
    unreadable: int = 0
    seconds: float = field(default=0.0, repr=False)

    def run(self, sources: Sequence[Source]) -> None:
        """Predict all sources.

        Raises:
            console.UserError: A batch needs more memory than there is.
            OSError: A result cannot be written.
        """
        began = time.monotonic()
        pictures = [source for source in sources if not source.is_video]
        with ThreadPoolExecutor(min(_MOST_THREADS, default_workers())) as pool:
            try:
                self._predict_pictures(pool, pictures)
            except BaseException:
                _cancel(pool)
                raise
        for source in sources:
            if source.is_video:
                self._predict_video(source)
        self.seconds = time.monotonic() - began

    @property
    def rate(self) -> float:
        """Pictures and frames per second, reading and writing included."""
        return (self.pictures + self.frames) / max(self.seconds, 1e-9)

    def _pass_over(self, source: Source, error: Exception) -> None:
        self.unreadable += 1
        console.warn(f'passed over: {source.path} {error}')

    def _predict_pictures(self, pool: ThreadPoolExecutor, sources: Sequence[Source]) -> None:
        if not sources:
            return
        writing: Deque[Future[None]] = collections.deque()
        most = self.batch_size + _MOST_THREADS
        with ProgressBar('predicting', len(sources), LINE_EVERY_S) as bar:
            began = time.monotonic()
            for batch in _of_one_size(self._readable(pool, sources), lambda read: read[1], self.batch_size):
                pixels = [one for _, one in batch]
                for (source, one), predicted in zip(batch, self._predict(pixels, batch[0][0])):
                    writing.append(pool.submit(self._write, source, one, *predicted))
                    self.pictures += 1
                while len(writing) > most:
                    writing.popleft().result()
                rate = self.pictures / (time.monotonic() - began)
                bar.update(self.pictures + self.unreadable, f'{rate:.2f} images/s')
            for future in writing:
                future.result()

    def _readable(self, pool: ThreadPoolExecutor, sources: Sequence[Source]) -> Iterator[Read]:
        """The pictures that can be read; the others are named."""
        for source, future in _ahead(pool, lambda source: picture.read(source.path), sources, self.batch_size):
            try:
                yield source, future.result()
            except UnreadableError as error:
                self._pass_over(source, error)

    def _predict(self, pixels: Sequence[np.ndarray], first: Source) -> Iterator[Tuple[np.ndarray, Any]]:
        """Labels and scores of pictures of one size; scores are None unless they are written."""
        size = pixels[0].shape[:2]
        try:
            batch = self.trained.as_batch(pixels)
            if self.outputs.scores and not first.is_video:
                scores, labels = self.trained.scores_and_labels(batch, size)
                return zip(labels.cpu().numpy(), scores.cpu().numpy())
            return zip(self.trained.labels(batch, size).cpu().numpy(), [None] * len(pixels))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            raise console.UserError(
                f'{first.path}: {len(pixels)} pictures of {size[1]} x {size[0]} pixels need more memory than there is '
                f'on {self.trained.device}',
                'give --batch_size=1' if len(pixels) > 1 else 'give --device=cpu, or make the picture smaller',
            ) from None

    def _write(self, source: Source, pixels: np.ndarray, labels: np.ndarray, scores: Any) -> None:
        overlay, label_map, *rest = self.outputs.of(source)
        overlay.parent.mkdir(parents=True, exist_ok=True)
        _write_bytes(overlay, drawing.png(self.overlay(pixels, labels)))
        _write_bytes(label_map, drawing.palette_png(labels, self.trained.palette))
        for path in rest:
            data = io.BytesIO()
            np.save(data, scores)
            _write_bytes(path, data.getvalue())

    def _predict_video(self, source: Source) -> None:
        (path,) = self.outputs.of(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.frames
        try:
            with video.Reader(source.path) as reader, files.whole(path) as partial, video.Writer(
                partial, reader.rate
            ) as writer:
                self._predict_frames(source, reader, writer)
        except UnreadableError as error:
            self.frames = before
            self._pass_over(source, error)

    def _predict_frames(self, source: Source, reader: video.Reader, writer: video.Writer) -> None:
        done = 0
        with ProgressBar(source.path.name, reader.frames, LINE_EVERY_S) as bar:
            began = time.monotonic()
            for batch in _of_one_size(reader, lambda frame: frame.pixels, self.batch_size, in_order=True):
                pixels = [frame.pixels for frame in batch]
                for frame, (labels, _) in zip(batch, self._predict(pixels, source)):
                    writer.write(frame._replace(pixels=self.overlay(frame.pixels, labels)))
                done += len(batch)
                self.frames += len(batch)
                bar.update(done, f'{done / (time.monotonic() - began):.2f} images/s')


def _of_one_size(
    items: Iterable[Item], pixels_of: Callable[[Item], np.ndarray], count: int, in_order: bool = False
) -> Iterator[List[Item]]:
    """Group pictures of one size.

    Args:
        items: Hold a picture each.
        pixels_of: Gives the picture of an item.
        count: Most pictures of a group.
        in_order: Keep the order of the items; otherwise some wait for others of their size.
    """
    waiting: Dict[Tuple[int, ...], List[Item]] = {}
    for item in items:
        size = pixels_of(item).shape
        if in_order and waiting and size not in waiting:
            yield from waiting.values()
            waiting.clear()
        waiting.setdefault(size, []).append(item)
        if len(waiting[size]) == count:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= _SIZES_AT_A_TIME * count:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Any], items: Iterable[Item], count: int
) -> Iterator[Tuple[Item, Future[Any]]]:
    """Start work on items, a batch and a thread's share ahead of their use, and give them back in order."""
    waiting: Deque[Tuple[Item, Future[Any]]] = collections.deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > count + _MOST_THREADS:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _cancel(pool: ThreadPoolExecutor) -> None:
    """Drop what no thread has begun; files that are being written are finished."""
    with contextlib.suppress(TypeError):  # Python 3.8 cannot
        pool.shutdown(wait=False, cancel_futures=True)


def _write_bytes(path: Path, data: bytes) -> None:
    with files.whole(path) as partial:
        partial.write_bytes(data)
