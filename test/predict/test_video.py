"""Videos: frames, frame rate and orientation go in and come out, and a damaged file leaves nothing."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from recipe.core import console, exit_status
from recipe.predict import cli, video
from recipe.predict.picture import UnreadableError

FRAMES = 7


def write(path, size=(64, 96), rate=Fraction(30000, 1001), frames=FRAMES, codec='mpeg4', **options):
    """Frames that get brighter from top to bottom and from one to the next."""
    with av.open(str(path), 'w', **options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = (*size, 'yuv420p')
        for number in range(frames):
            rows = np.linspace(0, 200, size[0]).astype(np.uint8) + 5 * number
            pixels = np.broadcast_to(rows[:, None, None], (*size, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='bgr24')))
        container.mux(stream.encode())
    return path


def read(path):
    with video.Reader(path) as reader:
        return reader.rate, list(reader)


def turned(path, quarters):
    """Ask for a turn in the header of a track, as cameras do."""
    matrix = {1: (0, 1, 0, -1, 0, 0, 0, 0), 3: (0, -1, 0, 1, 0, 0, 0, 0)}[quarters]
    a, b, _, c, d, _, _, _ = (matrix[0], matrix[1], 0, matrix[3], matrix[4], 0, 0, 0)
    data = bytearray(path.read_bytes())
    start = data.index(b'tkhd') + 4 + 40
    one = 1 << 16
    data[start : start + 36] = struct.pack('>9i', a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.fixture
def predict(tmp_path, run, trained, monkeypatch):
    monkeypatch.setattr('recipe.predict.trained_model.load_trained_model', lambda *_: trained)

    def call(*argv):
        return cli.main([*map(str, argv), '--checkpoint', str(run), '--out', str(tmp_path / 'out'), '--device=cpu'])

    return call


@pytest.mark.parametrize(
    ('name', 'codec', 'rate', 'size'),
    [
        ('a.mp4', 'mpeg4', Fraction(30000, 1001), (64, 96)),
        ('a.avi', 'mjpeg', Fraction(25), (50, 66)),
        ('a.mkv', 'mpeg4', Fraction(10), (34, 50)),
    ],
)
def test_a_video_comes_out_with_its_frames_and_its_rate(tmp_path, predict, capsys, name, codec, rate, size):
    write(tmp_path / name, size, rate, codec='mpeg4' if codec == 'mjpeg' else codec)
    assert predict(tmp_path / name, '--batch_size=3', '--opacity=0') == 0
    came, frames = read(tmp_path / 'out' / 'a_overlay.mp4')
    assert came == rate and len(frames) == FRAMES
    for before, after in zip(read(tmp_path / name)[1], frames):
        assert before.pixels.shape == after.pixels.shape
        assert np.abs(before.pixels.astype(int) - after.pixels).mean() < 6
    assert f'{FRAMES} frames of videos predicted' in capsys.readouterr().out
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a_overlay.mp4']


def test_a_video_may_have_any_name(tmp_path, predict):
    write(tmp_path / 'clip.data', (32, 32), frames=1, format='mp4')
    assert predict(tmp_path / 'clip.data') == 0
    assert len(read(tmp_path / 'out' / 'clip_overlay.mp4')[1]) == 1


PLAYLISTS = {
    'list.m3u8': '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n',
    'list.mp4': 'ffconcat version 1.0\nfile a.ts\n',
    'notes.txt': 'no video\n',
}


@pytest.mark.parametrize('name', PLAYLISTS)
def test_only_the_file_itself_is_read(tmp_path, name):
    video_file = write(tmp_path / 'a.ts', codec='mpeg2video')
    assert len(read(video_file)[1]) == FRAMES
    (tmp_path / name).write_text(PLAYLISTS[name].format(video_file))
    with pytest.raises(UnreadableError, match='is damaged or no video'):
        read(tmp_path / name)


def test_side_by_side(tmp_path, predict):
    write(tmp_path / 'a.mp4')
    predict(tmp_path / 'a.mp4', '--side_by_side')
    assert read(tmp_path / 'out' / 'a_overlay.mp4')[1][0].pixels.shape == (64, 192, 3)


@pytest.mark.parametrize('quarters', [1, 3])
def test_a_video_is_turned_as_it_asks(tmp_path, quarters):
    _, frames = read(turned(write(tmp_path / 'a.mp4'), quarters))
    assert frames[0].pixels.shape == (96, 64, 3)
    bright = frames[0].pixels.mean(axis=(0, 2))
    # Turned clockwise, what was at the top is at the right.
    assert (bright[0] > bright[-1]) == (quarters == 1)


def test_an_odd_side_is_made_even(tmp_path):
    with video.Writer(tmp_path / 'a.mp4', Fraction(5)) as writer:
        for _ in range(3):
            writer.write(video.Frame(np.full((33, 51, 3), 128, np.uint8), None))
    rate, frames = read(tmp_path / 'a.mp4')
    assert rate == 5 and [frame.pixels.shape for frame in frames] == [(34, 52, 3)] * 3


def test_a_varying_rate_keeps_its_pace(tmp_path):
    shown = [Fraction(3) + Fraction(one, 10) for one in (0, 1, 2, 7, 8, 9)]
    with video.Writer(tmp_path / 'a.mp4', Fraction(10)) as writer:
        for seconds in shown:
            writer.write(video.Frame(np.zeros((32, 32, 3), np.uint8), seconds + Fraction(1, 100)))
    frames = read(tmp_path / 'a.mp4')[1]
    assert [frame.seconds + 3 for frame in frames] == shown


def damaged(tmp_path, kind):
    # With "faststart" the table of the frames comes first, otherwise last.
    options = {'movflags': 'faststart'} if kind == 'cut' else {}
    path = write(tmp_path / 'a.mp4', (32, 32), frames=20, options=options)
    data = path.read_bytes()
    if kind in ('cut', 'without table'):
        path.write_bytes(data[: len(data) * 3 // 4])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_text('no video')
    elif kind == 'sound alone':
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('aac', rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format='fltp', layout='mono')
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize('kind', ['cut', 'without table', 'empty', 'text', 'sound alone'])
def test_a_damaged_video_is_named_and_leaves_nothing(tmp_path, predict, capsys, kind):
    path = damaged(tmp_path, kind)
    write(tmp_path / 'b.mp4', (32, 32), frames=1)
    assert predict(path, tmp_path / 'b.mp4') == exit_status.UNREADABLE
    printed = capsys.readouterr()
    assert f'passed over: {path} ' in printed.err
    assert '1 frames of videos predicted' in printed.out and '1 files passed over' in printed.out
    assert [one.name for one in (tmp_path / 'out').iterdir()] == ['b_overlay.mp4']


def test_without_pyav_one_line_says_how_to_get_it(tmp_path, predict, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    path = write(tmp_path / 'a.mp4')
    with pytest.raises(
        console.UserError, match=r'a\.mp4 is a video, and PyAV.* pip install -r requirements/video\.txt'
    ):
        predict(path)
    assert not (tmp_path / 'out').exists()


def test_no_video(tmp_path):
    with pytest.raises(UnreadableError, match='is damaged or no video'):
        video.Reader(tmp_path / 'gone.mp4')
