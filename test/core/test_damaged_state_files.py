"""Small files that a kill, a full disk or somebody has damaged end in one line, or count as not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Dict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.bench import precision
from recipe.core import console, run_lock, sessions
from recipe.data import demo, facts, layout, verify
from recipe.data.transforms import decoded_cache
from recipe.launch import progress
from recipe.report import run as metrics_run
from recipe.report import scalars
from recipe.setup import cli as setup_cli
from recipe.upstream import pins

DEMO = demo.DemoSet(train=1, val=1, width=64, height=64, seed=0)
HOLDER = dict(token='t', host='h', boot='b', namespace='n', pid=1, born='1', since='s', job='', flock=True)


def decoded(folder: Path) -> None:
    """A decoded picture; its header is the file up to the first page."""
    path = folder / 'file'
    path.write_bytes(path.read_bytes()[: decoded_cache.PAGE].ljust(decoded_cache.PAGE, b'\n') + bytes(6))
    decoded_cache.read_entry(str(path))


def result_of_a_run(folder: Path) -> None:
    run = folder / 'off_seed0'
    run.mkdir(exist_ok=True)
    (run / 'result.json').write_bytes((folder / 'file').read_bytes())
    precision.read(folder, 'off')


def named(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of a folder that holds the file under a certain name."""

    def call(folder: Path) -> object:
        (folder / name).write_bytes((folder / 'file').read_bytes())
        return read(folder)

    return call


# What reads it, and a good content.
READERS: Dict[str, tuple] = {
    'scalars.json': (
        lambda folder: scalars.read_scalars(folder / 'file'),
        {'loss': 1.5, 'iter': 1, 'mIoU': 2.0, 'step': 3},
    ),
    'versions.json': (named('versions.json', metrics_run._launcher), {'batch_size': 2, 'device': 'cpu'}),
    'demo.json of demo': (named('demo.json', lambda folder: demo._claim(folder, DEMO)), DEMO.described()),
    'demo.json of verify': (
        named('demo.json', lambda folder: verify._expected(folder, layout.SPLITS, verify.VerifyReport())),
        DEMO.described(),
    ),
    "verify's cache": (
        lambda folder: facts.Cache(folder / 'file').get('a', (folder / 'file').stat()),
        {'format': 3, 'files': {'a': [1, 2, 3, 4, 5]}, 'expected': {'train': 1}, 'sha256': ''},
    ),
    'decoded picture': (decoded, {'format': 1, 'shape': [1, 2, 3], 'source': [1, 2]}),
    'result.json': (result_of_a_run, {'complete': True, 'miou_last_percent': 1.5}),
    'run lock': (lambda folder: run_lock._parse((folder / 'file').read_bytes()), HOLDER),
    'sessions.jsonl': (named('sessions.jsonl', sessions.read), {'seconds': 1.5, 'starts': ['a']}),
    'progress': (lambda folder: progress._logged(folder / 'file'), {'loss': 1.5, 'step': 2, 'time': 0.5}),
    'set-up record': (lambda folder: setup_cli._load(folder / 'file'), {'steps': {'a': 'b'}, 'venv': True}),
    'pin table': (named('upstream.json', pins.load), {'mmcv': {'url': 'u'}}),
}
VALUES = st.sampled_from(
    [None, True, -1, 0, 1.5, 1 << 62, 'x', '\x1b', '', [], {}, [[1]], {'a': {}}, -(1 << 40), 10**9, 'b' * 99]
)
TEXTS = [b'', b'{', b'null', b'[1]', b'\xff\xfe{}', b'{"a":' * 50_000, b'[' * 50_000, b'{"loss": 1e999, "iter": 1e999}']
TEXTS += [b'{"pid": ' + b'9' * 10_000 + b'}', b'{"format": NaN}', b'{"\\ud800": "\\udfff"}', b'\0' * 5000]


def call(name: str, folder: Path, content: bytes) -> None:
    """Read a content; anything but a result or an error of one line fails the test."""
    (folder / 'file').write_bytes(content)
    try:
        READERS[name][0](folder)
    except (console.UserError, ValueError) as error:
        assert isinstance(error, console.UserError) or name == 'decoded picture'  # its callers take a ValueError
        assert str(error)
        assert str(error).isprintable()


@pytest.mark.parametrize('name', sorted(set(READERS) - {'pin table', 'result.json'}))  # they need more than one file
def test_a_good_content_is_read(name, tmp_path):
    (tmp_path / 'file').write_text(json.dumps(READERS[name][1]) + '\n')
    READERS[name][0](tmp_path)


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('content', TEXTS, ids=range(len(TEXTS)))
def test_a_damaged_content_is_one_line_or_nothing(name, content, tmp_path):
    call(name, tmp_path, content)
    call(name, tmp_path, content + b'\n')


@pytest.mark.parametrize('name', READERS)
def test_a_wrong_value_anywhere_is_one_line_or_nothing(name, tmp_path):
    good = READERS[name][1]

    @settings(max_examples=40)
    @given(key=st.sampled_from(sorted(good)), value=VALUES, deeper=st.booleans())
    def check(key, value, deeper):
        wrong = json.loads(json.dumps(good))
        inner = wrong[key]
        if deeper and isinstance(inner, dict) and inner:
            inner[next(iter(inner))] = value
        elif deeper and isinstance(inner, list) and inner:
            inner[0] = value
        else:
            wrong[key] = value
        if 'sha256' in wrong and key != 'sha256':
            wrong['sha256'] = facts._digest(wrong['files'], wrong['expected'])
        call(name, tmp_path, json.dumps(wrong).encode() + b'\n')

    check()
