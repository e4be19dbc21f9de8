"""Hundreds of bad inputs that nobody thought of: each is refused in one clear line, and no file changes.

They go to the checks that the launcher makes before it starts anything, in this process. What users are known to get
wrong goes through the launcher itself, in test/e2e/test_bad_inputs.py. What hypothesis draws is the same each time.
"""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import string
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cityscapes_sets
from recipe.core import console, inputs
from recipe.data import diagnosis, verify
from recipe.engine import config as run_config
from recipe.engine import weights
from recipe.engine.checkpoint import CheckpointError, find_resumable
from recipe.launch import options

REFUSED: Dict[str, set] = {}  # inputs by kind
LONGEST = 2000  # characters of a message: paths and what the user gave are part of it


def examples(count: int) -> Callable:
    """Have a test draw so many examples, the same ones each time."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    quiet += [HealthCheck.filter_too_much, HealthCheck.large_base_example]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


def answer(act: Callable[[], Any], folder: Path) -> Optional[str]:
    """The line with which something is refused, None where it is not; nothing else may come, and no file change."""
    before = cityscapes_sets.digests(folder)
    try:
        act()
        line = None
    except console.UserError as error:
        line = str(error)
        assert error.status not in (0, -1)
    assert cityscapes_sets.digests(folder) == before
    if line is not None:
        assert line.strip()
        assert '\n' not in line
        assert len(line) < LONGEST, line
        assert 'Traceback' not in line
    return line


def refused(kind: str, given_: Any, act: Callable[[], Any], folder: Path) -> None:
    """Assert that an input is refused."""
    line = answer(act, folder)
    assert line is not None, f'{given_!r} passes'
    REFUSED.setdefault(kind, set()).add(repr(given_))


NUMBERS = {
    'batch_size': (1, 4096),
    'num_workers': (0, 256),
    'nproc': (1, 1024),
    'max_iters': (1, 10**9),
    'val_interval': (1, 10**9),
    'seed': (0, 2**31 - 1),
    'nnodes': (1, 4096),
    'node_rank': (0, 4095),
    'master_port': (1, 65535),
    'max_restarts': (0, 1000),
    'hang_timeout': (0, 10**6),
}
CHOICES = {
    'resume': {'0', '1', 'auto'},
    'device': set(options.DEVICES),
    'amp': set(options.PRECISIONS),
    'doctor': {'0', '1'},
}
PATHS = ('data_path', 'decoded_cache', 'work_dir', 'config', 'pretrained', 'master_addr')
WORDS = st.text(st.characters(exclude_categories=['Cs', 'Cc']), max_size=12)


def is_number(text: str) -> bool:
    return text.lstrip('+-').isascii() and text.lstrip('+-').isdigit()


def out_of_range(name: str) -> st.SearchStrategy:
    least, most = NUMBERS[name]
    wild = st.integers(most + 1, 10**30) | st.integers(-(10**30), least - 1)
    return st.tuples(st.just(name), wild.map(str) | WORDS.filter(lambda text: not is_number(text)))


def option(name: str, value: str) -> List[str]:
    return ['--demo', f'--{name}={value}']


OPTION_LISTS = st.one_of(
    st.sampled_from(sorted(NUMBERS)).flatmap(out_of_range).map(lambda pair: option(*pair)),
    st.sampled_from(sorted(CHOICES))
    .flatmap(lambda name: st.tuples(st.just(name), WORDS.filter(lambda text: text not in CHOICES[name])))
    .map(lambda pair: option(*pair)),
    st.tuples(st.sampled_from(PATHS), st.sampled_from(['', ' ', '-x', '--demo', '{{a}}', '\udcff'])).map(
        lambda pair: option(*pair)
    ),
    st.text(string.ascii_lowercase + '_-', min_size=1, max_size=10).map(lambda name: ['--demo', f'--x{name}=1']),
    st.sampled_from(['config', 'pretrained', 'data_path']).flatmap(
        lambda name: st.text(string.ascii_letters, min_size=9, max_size=12).map(
            lambda text: option(name, f'/no/{text}')
        )
    ),
    WORDS.filter(lambda text: text and not text.startswith('-')).map(lambda text: ['--demo', text]),
    st.text(string.ascii_letters + ' .-', max_size=10).map(lambda text: ['--demo', '--', text]),
    st.tuples(WORDS, st.sampled_from(['(1', '[2,', '1]', '((']))
    .filter(lambda pair: '(' not in pair[0] + pair[1][:0])
    .map(lambda pair: ['--demo', '--', f'a.b={pair[1]}']),
    st.sampled_from(['demo', 'trust_checkpoint']).flatmap(
        lambda name: WORDS.map(lambda text: ['--demo', f'--{name}={text}'])
    ),
)


@examples(150)
@given(OPTION_LISTS)
def test_options(tmp_path, argv):
    refused('options', argv, lambda: options.read('full', argv), tmp_path)


@examples(150)
@given(st.lists(st.sampled_from(['--demo', '--', '--resume=1', '--seed', '=', '--batch_size=2']) | WORDS, max_size=5))
def test_any_words_are_taken_or_refused(tmp_path, argv):
    if {'-h', '--help'} & set(argv):
        return
    if answer(lambda: options.read('full', argv), tmp_path) is not None:
        REFUSED.setdefault('words', set()).add(repr(argv))


@pytest.fixture(scope='module')
def config():
    return run_config.load(run_config.DEMO)


KEYS = st.lists(
    st.sampled_from(['model', 'backbone', 'train_cfg', 'max_iters', 'optim_wrapper', 'lr', '0', 'type', 'hooks'])
    | st.text(string.ascii_lowercase + '_', min_size=1, max_size=8),
    min_size=1,
    max_size=4,
).map('.'.join)
VALUES = st.sampled_from(['1', 'abc', 'None', '[1,2]', '(1,[2,3])', 'True', '1e-3', '{', '"', "'a", ',', '[]', 'a,b'])


@examples(120)
@given(KEYS, VALUES)
def test_overrides(tmp_path, config, key, value):
    mine = copy.deepcopy(config)
    if answer(lambda: run_config.override(mine, [f'{key}={value}']), tmp_path) is not None:
        REFUSED.setdefault('overrides', set()).add((key, value))


BAD_LINES = """model = dict(
)
x = 1
_base_ = ['gone.py']
_base_ = 3
import nothing_such
1 / 0
raise SystemExit(3)
{{
def f(:
model = None
model = 5
train_cfg = dict(max_iters=0)
lambda: x"""
CONFIG_WORDS = st.sampled_from([*BAD_LINES.splitlines(), '\t', '\x00'])


@examples(60)
@given(st.lists(CONFIG_WORDS | WORDS, max_size=6).map('\n'.join))
def test_configs(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    refused('configs', text, lambda: run_config.load(path), tmp_path)


BAD_MODELS = st.tuples(
    st.sampled_from(['embed_dims', 'depths', 'num_heads', 'window_size', 'type', 'patch_norm_nothing', 'strides']),
    st.sampled_from([-1, 'x', [0], [1, 2], {}, [[1]]]),
)


@examples(20)
@given(BAD_MODELS)
def test_models(tmp_path, config, change):
    mine = copy.deepcopy(config)
    mine.model['backbone'][change[0]] = change[1]
    if answer(lambda: run_config.build_model(mine), tmp_path) is not None:
        REFUSED.setdefault('models', set()).add(repr(change))


@pytest.fixture(scope='module')
def good_data(tmp_path_factory):
    return cityscapes_sets.make_prepared(tmp_path_factory.mktemp('good') / 'data')


def mangle(content: bytes, draw: Callable) -> bytes:
    """Bytes that are not what they were."""
    how = draw(st.sampled_from(['cut', 'empty', 'other', 'zeros', 'swap']))
    if how == 'cut':
        return content[: draw(st.integers(0, max(0, len(content) * 3 // 4)))]
    if how == 'other':
        return draw(st.binary(min_size=1, max_size=64))
    if how == 'zeros':
        return bytes(draw(st.integers(1, 1000)))
    if how == 'swap':
        half = len(content) // 2
        return content[half:] + content[:half]
    return b''


@examples(60)
@given(st.data())
def test_data_sets(tmp_path, good_data, data):
    root = tmp_path / 'data'
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(good_data, root)
    files = sorted(
        path for path in root.rglob('*.png') if path.name.endswith(('_leftImg8bit.png', '_labelTrainIds.png'))
    )
    path = data.draw(st.sampled_from(files))
    how = data.draw(st.sampled_from(['mangle', 'remove', 'rename', 'move up', 'folder', 'no split', 'description']))
    what = (str(path.relative_to(root)), how)
    if how == 'mangle':
        content = mangle(path.read_bytes(), data.draw)
        path.write_bytes(content)
        what += (content,)
    elif how == 'remove':
        path.unlink()
    elif how == 'rename':
        name = data.draw(st.text(string.ascii_letters, min_size=1, max_size=8))
        path.rename(path.with_name(f'{name}.png'))
        what += (name,)
    elif how == 'move up':
        path.rename(path.parent.parent / path.name)
    elif how == 'folder':
        path.unlink()
        path.mkdir()
    elif how == 'no split':
        shutil.rmtree(path.parent.parent)
    else:
        text = data.draw(st.sampled_from(['', '[]', '{}', '{"train": "x"}', '{"train": null}', 'null', '3', '{"a"']))
        (root / 'demo.json').write_text(text)
        what = (how, text)

    def check() -> None:
        diagnosis.require_root(str(root))
        found = verify.verify(root, workers=1, progress=False, cache=tmp_path / 'note')
        for note in tmp_path.glob('note*'):
            note.unlink()
        if not found.ok:
            raise console.UserError(str(found.faults[0]))

    refused('data sets', what, check, root)


class Evil:
    """Pickles as a call."""

    def __reduce__(self):
        return print, ('this ran',)


@pytest.fixture(scope='module')
def parameters():
    return {f'layer{number}.weight': torch.zeros(4, number + 1) for number in range(8)}


def saved(content: Any, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **kwargs)
    return stream.getvalue()


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(torch.zeros(2)), st.builds(Evil)
)
CONTENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@examples(40)
@given(st.data())
def test_weights(tmp_path, parameters, data):
    good = saved({'state_dict': parameters})
    kind = data.draw(st.sampled_from(['mangled', 'foreign', 'pickle', 'zip', 'other shapes']))
    if kind == 'mangled':
        content = mangle(good, data.draw)
    elif kind == 'foreign':
        content = saved(data.draw(CONTENTS), _use_new_zipfile_serialization=data.draw(st.booleans()))
    elif kind == 'pickle':
        content = pickle.dumps(data.draw(CONTENTS))
    elif kind == 'zip':
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, 'w') as archive:
            for name in data.draw(st.lists(st.sampled_from(['a', '../x', 'archive/data.pkl', 'version']), unique=True)):
                archive.writestr(name, data.draw(st.binary(max_size=20)))
        content = stream.getvalue()
    else:
        other = {name: torch.zeros(data.draw(st.integers(5, 9)), 2) for name in parameters}
        content = saved({'state_dict': other})
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)

    def check() -> None:
        inputs.require_file('--pretrained', str(path))
        weights.compare(weights.locate(str(path), None), parameters, {})

    refused('weights', content, check, tmp_path)


@examples(40)
@given(st.data())
def test_checkpoints(tmp_path, data):
    shutil.rmtree(tmp_path / 'run', ignore_errors=True)
    (tmp_path / 'run').mkdir()
    whole = {name: {} for name in ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')}
    kind = data.draw(st.sampled_from(['mangled', 'foreign', 'pickle', 'lacks', 'evil']))
    if kind == 'mangled':
        content = mangle(saved({**whole, 'meta': {'iter': 5}}), data.draw)
    elif kind == 'foreign':
        content = saved(data.draw(CONTENTS), _use_new_zipfile_serialization=data.draw(st.booleans()))
    elif kind == 'pickle':
        content = pickle.dumps(data.draw(CONTENTS))
    elif kind == 'lacks':
        whole['meta'] = data.draw(st.sampled_from([{}, None, 3, 'x', [], {'epoch': 1}, torch.zeros(1)]))
        for name in data.draw(st.lists(st.sampled_from(sorted(whole)), max_size=2)):
            whole.pop(name, None)
        content = saved(whole)
    else:
        content = saved(
            {**whole, 'meta': {'iter': 5, 'x': data.draw(st.lists(st.builds(Evil), min_size=1, max_size=3))}}
        )
    path = tmp_path / 'run' / 'iter_5.pth'
    path.write_bytes(content)

    def check() -> None:
        try:
            find_resumable(str(tmp_path / 'run'))
        except CheckpointError as error:
            raise console.UserError(str(error)) from None

    refused('checkpoints', content, check, tmp_path)


def test_hundreds_of_different_inputs_were_refused():
    counts = {kind: len(found) for kind, found in REFUSED.items()}
    assert sum(counts.values()) >= 300, counts
    assert min(counts.get(kind, 0) for kind in ('options', 'configs', 'data sets', 'weights', 'checkpoints')) >= 20, (
        counts
    )
