"""Files that a training appends to, on a disk that is full, read-only or gone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal

import pytest
from mmengine.logging import MMLogger

from recipe.engine.appended_lines import AppendedLines
from recipe.engine.loops import StepTimes
from recipe.engine.sturdy_vis_backend import SturdyVisBackend


@contextlib.contextmanager
def no_file_beyond(size):
    """Let no file grow beyond a size, as on a full disk; only for a moment, since pytest may write into a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def warnings(monkeypatch):
    logger = MMLogger.get_instance('full disk')
    told = []
    monkeypatch.setattr(logger, 'log', lambda level, message: told.append(message))
    MMLogger._instance_dict['full disk'] = logger
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    yield told
    MMLogger._instance_dict.pop('full disk', None)


def test_lines_that_do_not_fit_are_written_whole_later(tmp_path, warnings):
    file = AppendedLines(str(tmp_path / 'log'))
    assert file.write('1234567\n')
    with no_file_beyond(12):
        first, second = file.write('abcdefg\n'), file.write('hijklmn\n')
    assert not first, 'four bytes of it would fit'
    assert not second
    assert (tmp_path / 'log').read_text() == '1234567\n'
    assert file.write('opq\n')
    assert (tmp_path / 'log').read_text() == '1234567\nabcdefg\nhijklmn\nopq\n'
    assert len(warnings) == 1
    assert 'the training goes on' in warnings[0]


def test_lines_wait_for_a_folder_that_has_gone(tmp_path, warnings):
    file = AppendedLines(str(tmp_path / 'gone' / 'log'))
    assert not file.write('a\n')
    (tmp_path / 'gone').mkdir()
    assert file.write('b\n')
    assert (tmp_path / 'gone' / 'log').read_text() == 'a\nb\n'


def test_no_more_lines_wait_than_were_said(tmp_path, warnings):
    file = AppendedLines(str(tmp_path / 'gone' / 'log'), limit=2)
    for line in ('a\n', 'b\n', 'c\n'):
        file.write(line)
    (tmp_path / 'gone').mkdir()
    file.write()
    assert (tmp_path / 'gone' / 'log').read_text() == 'b\nc\n'


def test_times_of_iterations_are_written_once_there_is_room(tmp_path, warnings):
    times = StepTimes(str(tmp_path / 'vis_data' / 'steps.csv'), flush_every=1)
    for iteration, size in ((1, 1000), (2, 30), (3, 1000)):
        with no_file_beyond(size):
            times.start()
            times.stop(iteration)
    lines = (tmp_path / 'vis_data' / 'steps.csv').read_text().splitlines()
    assert [line.split(',')[0] for line in lines] == ['iter', '1', '2', '3']


def test_scalars_are_written_once_there_is_room(tmp_path, warnings):
    backend = SturdyVisBackend(str(tmp_path))
    backend.add_scalars({'loss': 1.5}, step=1)
    with no_file_beyond(30):
        backend.add_scalars({'loss': 1.25}, step=2)
    backend.add_scalars({'loss': 1.0}, step=3, file_path='other.json')
    rows = [json.loads(line) for line in (tmp_path / 'scalars.json').read_text().splitlines()]
    assert rows == [{'loss': 1.5, 'step': 1}, {'loss': 1.25, 'step': 2}, {'loss': 1.0, 'step': 3}]
    assert json.loads((tmp_path / 'other.json').read_text()) == {'loss': 1.0, 'step': 3}


def test_a_picture_that_cannot_be_written_is_left_out(tmp_path, monkeypatch, warnings):
    import numpy as np

    backend = SturdyVisBackend(str(tmp_path))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('os.makedirs', full)
    backend.add_image('scene', np.zeros((4, 4, 3), np.uint8))
    assert 'the picture scene could not be written' in warnings[-1]
