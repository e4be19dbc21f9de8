"""Reads and writes videos with PyAV, which is installed on demand."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional

import numpy as np

from recipe.core import console
from recipe.predict.picture import UnreadableError

SUFFIX = '.mp4'
_CODECS = ('libx264', 'mpeg4')  # the first one that this build of FFmpeg has
_QUALITY = {'libx264': {'crf': '18'}, 'mpeg4': {'qscale': '2'}}
# Formats that name other files and addresses, and one that shows any text as a picture of a terminal.
_REFUSED = {'concat', 'dash', 'hls', 'image2', 'imf', 'rtsp', 'sdp', 'tty', 'webm_dash_manifest'}
_USUAL_RATE = Fraction(25)  # if neither the file nor its frames say one


def require(path: Path) -> None:
    """Check that PyAV can be imported.

    Args:
        path: A video, for the message.

    Raises:
        console.UserError: It cannot; says how to install it.
    """
    try:
        import av  # noqa: F401  only to see whether it is there
    except ImportError as error:
        raise console.UserError(
            f'{path} is a video, and PyAV, which reads videos, cannot be imported ({error})',
            'install it: pip install -r requirements/video.txt',
        ) from None


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        pixels: uint8, shape (H, W, 3), BGR, turned as the file asks.
        seconds: When it is shown; None if the file does not say.
    """

    pixels: np.ndarray
    seconds: Optional[Fraction]


class Reader:
    """Reads the frames of a video; a context manager.

    Args:
        path: The file.

    Attributes:
        rate: Frames per second, on average.
        frames: Number of frames as far as the file says it, else 0.

    Raises:
        UnreadableError: It is no video or is damaged.
    """

    def __init__(self, path: Path) -> None:
        import av

        with _naming_the_damage():
            allowed = ','.join(sorted(av.formats_available - _REFUSED))
            self._container: Any = av.open(str(path), options={'format_whitelist': allowed})
        if not self._container.streams.video:
            self._container.close()
            raise UnreadableError('holds no video')
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = 'AUTO'
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE)
        self.frames = int(self._stream.frames)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        packets = 0
        with _naming_the_damage():
            for packet in self._container.demux(self._stream):
                packets += packet.dts is not None or packet.size > 0  # the last, empty one only drains the decoder
                for frame in packet.decode():
                    quarters = round(getattr(frame, 'rotation', 0) / 90)
                    yield Frame(
                        np.ascontiguousarray(np.rot90(frame.to_ndarray(format='bgr24'), quarters)),
                        None if frame.pts is None else Fraction(frame.pts) * frame.time_base,
                    )
        if not packets or packets < self.frames:
            raise UnreadableError(f'is damaged (it ends after {packets} of {self.frames} frames)')


@contextlib.contextmanager
def _naming_the_damage() -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f'is damaged or no video ({getattr(error, "strerror", None) or error})') from None


class Writer:
    """Writes frames as a video in MP4; a context manager.

    H.264 stores colours for blocks of 2 x 2 pixels, so an odd last row or column is doubled.

    Args:
        path: The file.
        rate: Frames per second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        import av

        self._container: Any = av.open(str(path), 'w', format='mp4')
        self._rate = rate
        self._stream: Any = None
        self._first: Optional[Fraction] = None
        self._number = -1  # of the last frame, counted in frames of the average rate

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._container.close)
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())

    def write(self, frame: Frame) -> None:
        """Add a frame.

        Args:
            frame: Of the same shape as all others. It is shown at its time, rounded to the grid of the average rate,
                so a video of a varying rate keeps its pace.
        """
        import av

        pixels = frame.pixels
        self._number += 1
        if frame.seconds is not None:
            self._first = frame.seconds if self._first is None else self._first
            self._number = max(self._number, round((frame.seconds - self._first) * self._rate))

        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
        if self._stream is None:
            self._stream = self._add_stream(*even.shape[:2])
        drawn = av.VideoFrame.from_ndarray(even, format='bgr24')
        drawn.pts, drawn.time_base = self._number, 1 / self._rate
        self._container.mux(self._stream.encode(drawn))

    def _add_stream(self, height: int, width: int) -> Any:
        import av

        codec = next(one for one in _CODECS if one in av.codecs_available)
        stream = self._container.add_stream(codec, rate=self._rate, options=_QUALITY[codec])
        stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
        return stream
