"""A file that was made to run code, to crash or to corrupt is refused in one line, and nothing has happened."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.apis import MMSegInferencer

import checkpoint_toy
import evil_checkpoints as evil
from recipe.core import console
from recipe.data import random_state
from recipe.engine import weights
from recipe.engine.checkpoint import CheckpointError, find_resumable, load_from_local, misfit, read_in_own_process

pytestmark = pytest.mark.trains


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> Path:
    """A checkpoint of a real training."""
    return checkpoint_toy.checkpoint(tmp_path_factory.mktemp('good'))


@pytest.fixture
def changed(good, tmp_path):
    """Write that checkpoint with something changed in it."""

    def write(change, name='iter_2.pth'):
        content = torch.load(good, weights_only=False)
        change(content)
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def refused(path, match='', ways=(load_from_local, CheckpointLoader.load_checkpoint)):
    """Assert that a file is refused in one line by mmengine's entrance, by ours, and in a process of its own."""
    for way in (*ways, lambda source: read_in_own_process(source, lambda again: bool(load_from_local(again)))):
        with pytest.raises(CheckpointError, match=match) as error:
            way(str(path))
        assert '\n' not in str(error.value)


# a: what mmengine evaluates


def put(content, place, value):
    *path, last = (int(key) if key.isdigit() else key for key in place.split('/'))
    for key in path:
        content = content[key]
    content[last] = value


PROGRAMS = [
    'meta/config',
    'meta/cfg',
    'meta/experiment_name',
    'meta/hook_msgs',
    'meta/dataset_meta',
    'meta/mmengine_version',
    'message_hub/runtime_info/cfg',
    'message_hub/runtime_info/best_ckpt',
    'message_hub/runtime_info/last_ckpt',
]


@pytest.mark.parametrize('place', PROGRAMS)
def test_no_text_of_a_checkpoint_is_run_when_a_training_resumes(changed, tmp_path, place):
    trace = tmp_path / 'ran'
    path = changed(lambda content: put(content, place, f'gpu_ids = [0]\nopen({str(trace)!r}, "w")\n'))
    runner = checkpoint_toy.make(tmp_path / 'run', max_iters=3, load_from=path, resume=True)
    runner.train()
    assert runner.iter == 3
    assert not trace.exists()


def test_the_config_of_an_old_checkpoint_is_kept_as_text(changed):
    path = changed(lambda content: (content['meta'].pop('cfg'), put(content, 'meta/config', 'a = 1')))
    assert load_from_local(str(path))['meta']['cfg'] == 'a = 1'


@pytest.mark.parametrize('place', ['meta/cfg', 'message_hub/runtime_info/cfg'])
def test_no_config_of_a_checkpoint_is_run_to_predict_with_it(changed, tmp_path, monkeypatch, place):
    trace = tmp_path / 'ran'

    def write_program(content):
        content['message_hub']['runtime_info'].pop('cfg')
        put(content, place, f'open({str(trace)!r}, "w")\n')

    path = changed(write_program)
    with pytest.raises(ValueError, match='give the config as well'):
        MMSegInferencer(model=None, weights=str(path), device='cpu')
    assert not trace.exists()
    monkeypatch.setenv('MMSEG_TRUST_CHECKPOINT', '1')
    with pytest.raises(AttributeError):  # a config without a model
        MMSegInferencer(model=None, weights=str(path), device='cpu')
    assert trace.exists()


@pytest.mark.parametrize(
    ('place', 'value', 'said'),
    [
        ('meta/iter', '2', 'does not say its iteration'),
        ('meta/iter', True, 'does not say its iteration'),
        ('meta/epoch', None, 'does not say its epoch'),
        ('meta/seed', [1], 'has a seed'),
        ('meta/seed', 1 << 40, 'has a seed'),
        ('meta', [], 'does not say its iteration'),
        ('state_dict', [1], 'weights that are no tensors'),
        ('state_dict/a', 1, 'weights that are no tensors'),
        ('message_hub', {}, 'a message_hub that is none'),
        ('message_hub/runtime_info/best_score', 'high', 'a best_score that is no number'),
        ('message_hub/runtime_info/keep_ckpt_ids', 7, 'keep_ckpt_ids that are no list'),
        ('train_loop', {}, 'a train_loop that does not say'),
        ('train_loop/position', -1, 'a train_loop that does not say'),
        ('train_loop/random_states', [{}], 'a random state of rank 0'),
        ('train_loop/unreadable', [1], 'no list of unreadable images'),
        ('param_schedulers', [1], 'is of another schedule'),
        ('param_schedulers/0', {'step': 1}, 'is of another schedule'),
        ('param_schedulers/0/base_values', [0.1], 'is of another schedule'),
        ('param_schedulers/0/param_name', '', 'is of another schedule: PolyLR has no such param_name'),
        ('param_schedulers/0/total_iters', 2, 'is of another schedule: PolyLR has no next value'),
        ('param_schedulers/0/step', 1, 'is of another schedule: PolyLR keeps no step'),
        ('optimizer', [], 'is of another optimizer'),
        ('optimizer/param_groups', [], 'is of another optimizer'),
        ('optimizer/param_groups/0/betas', 0.9, 'is of another optimizer: group 0 has no betas'),
        ('optimizer/param_groups/0/params', [0, 0], 'is of another optimizer'),
        ('optimizer/base_param_settings', [], 'is of another optimizer'),
        ('optimizer/loss_scaler', {'scale': 'x'}, 'is of another optimizer'),
        ('optimizer/state/99', {}, 'is of another optimizer'),
        ('optimizer/state/0/step', 'x', 'step of backbone.weight is no number'),
        ('optimizer/state/0/exp_avg', None, 'exp_avg of backbone.weight is not there'),
        ('optimizer/state/0/exp_avg', torch.zeros(2, 2), r'exp_avg of backbone.weight is \(2, 2\) there'),
    ],
)
def test_what_a_resumed_training_uses_is_what_it_should_be(changed, tmp_path, place, value, said):
    changed(lambda content: put(content, place, value))
    runner = checkpoint_toy.make(tmp_path / 'run')
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = wrapper
    schedulers = runner.build_param_scheduler(runner.param_schedulers)
    with pytest.raises(CheckpointError, match=said):
        find_resumable(str(tmp_path), lambda content: misfit(content, runner.model, wrapper, schedulers))


def test_a_checkpoint_names_no_other_files_to_remove(changed, tmp_path):
    """Names in a checkpoint say which older ones a resumed run still has to remove."""
    run = tmp_path / 'run'
    run.mkdir()
    mine = [tmp_path / 'mine.pth', tmp_path / 'iter_1.pth', run / 'notes.txt', run / 'deep' / 'iter_1.pth']
    for path in (*mine, run / 'iter_1.pth'):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = ['../mine.pth', str(mine[0]), '../iter_1.pth', 'notes.txt', 'deep/iter_1.pth', 'iter_1.pth', 7]

    def name_them(content):
        info = content['message_hub']['runtime_info']
        info['superseded_ckpts'] = names
        info['keep_ckpt_ids'] = ['../../mine', 2]

    path = changed(name_them)
    checkpoint_toy.make(run, max_iters=6, load_from=path, resume=True).train()
    assert all(one.exists() for one in mine)
    assert not (run / 'iter_1.pth').exists()


# b: an archive that is two


def test_an_archive_that_readers_see_differently_is_refused(good, tmp_path):
    trace, path = tmp_path / 'ran', tmp_path / 'iter_9.pth'
    path.write_bytes(evil.with_two_ends(good.read_bytes(), evil.program(trace)))
    with zipfile.ZipFile(path) as archive:  # what Python sees
        assert any(name.endswith('/data.pkl') for name in archive.namelist())
        assert not any(name.endswith('constants.pkl') for name in archive.namelist())
    refused(path, 'two ends')
    with pytest.raises(console.UserError, match='two ends'):
        weights.compare(path, {}, {})
    with pytest.raises(CheckpointError, match='two ends'):
        find_resumable(str(tmp_path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # what torch sees: it is what it should be
    assert trace.exists()


def repack(content, **changes):
    """A zip with changed records; a record that is None is left out."""
    records = evil.records_of(content)
    folder = next(iter(records)).partition('/')[0]
    records.update({f'{folder}/{name}': record for name, record in changes.items()})
    return evil.zip_of({name: record for name, record in records.items() if record is not None})


def doubled(content):
    file = io.BytesIO(content)
    with pytest.warns(UserWarning, match='Duplicate'), zipfile.ZipFile(file, 'a') as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        archive.writestr(name, b'\x80\x02N.')
    return file.getvalue()


def in_other_case(content):
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, 'a') as archive:
        name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
        archive.writestr(name.upper(), b'\x80\x02N.')
    return file.getvalue()


def overlapping(content):
    """Two records of the directory are the same bytes of the file."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, 'a') as archive:
        large = max(archive.infolist(), key=lambda info: info.file_size)
        for number in range(100):
            info = zipfile.ZipInfo(large.filename + str(number))
            for name in ('header_offset', 'file_size', 'compress_size', 'CRC'):
                setattr(info, name, getattr(large, name))
            archive.filelist.append(info)
        archive._didModify = True
    return file.getvalue()


ARCHIVES = {
    'a program beside': lambda content: repack(content, **{'constants.pkl': b''}),
    'no pickle': lambda content: repack(content, **{'data.pkl': None}),
    'a record twice': doubled,
    'a record twice but for its case': in_other_case,
    'overlapping records': overlapping,
    'two folders': lambda content: evil.zip_of({**evil.records_of(content), 'other/data.pkl': b'\x80\x02N.'}),
    'compressed': lambda content: evil.zip_of(evil.records_of(content), zipfile.ZIP_DEFLATED),
    'something in front': lambda content: b'PK\3\4' + content,
    'something behind': lambda content: content + b'PK',
    'a storage of another size': lambda content: repack(content, **{'data/0': b'\0' * 3}),
    'no storage': lambda content: repack(content, **{'data/0': None}),
}


@pytest.mark.parametrize('make', ARCHIVES.values(), ids=list(ARCHIVES))
def test_archives_that_torch_does_not_write(good, tmp_path, make):
    path = tmp_path / 'iter_9.pth'
    path.write_bytes(make(good.read_bytes()))
    refused(path, r'is (damaged|cut short|not|a TorchScript program)')


# d: values that crash or fill the memory


@pytest.mark.parametrize('name', list(evil.numpy_faults()))
def test_numpy_gets_no_pointers_from_a_file(tmp_path, name):
    torch.save({'state_dict': {}, 'meta': evil.numpy_faults()[name]}, tmp_path / 'iter_9.pth')
    refused(tmp_path / 'iter_9.pth', 'refused, it holds an array')


def storage(pickled, count):
    """The pickle of one tensor of four numbers, whose storage says that it has others."""
    (before, four, after) = pickled.partition(b'cpu')
    assert b'K\x04' in after[:8]
    return before + four + after.replace(b'K\x04', b'J' + struct.pack('<i', count), 1)


class View(torch.Tensor):
    """Pickles as a view of a storage of four numbers."""

    def __reduce_ex__(self, protocol):
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.view, False, OrderedDict())


def view(*place):
    made = View()
    made.view, made.storage = place, torch.ones(4).storage()
    return made


def nested(kind, depth):
    value = kind()
    for _ in range(depth):
        value = kind([value])
    return value


def laughs(kind):
    """Few values, whose copies are a billion."""
    value = kind(range(10))
    for _ in range(30):
        value = kind([value] * 10)
    return value


def loop():
    value = []
    value.append(value)
    return value


VALUES = {
    'view behind the storage': view(3, (2,), (1,)),
    'view far behind it': view(1 << 50, (1,), (1,)),
    'view that is too long': view(0, (1 << 40,), (1,)),
    'view that repeats a number': view(0, (1 << 40,), (0,)),
    'view with negative steps': view(0, (2,), (-1,)),
    'view of no size': view(0, (-1,), (1,)),
    'view of fractions': view(0, (1.5,), (1,)),
    'view with too few steps': view(0, (2, 2), (1,)),
    'list in lists': nested(list, 150),
    'tuple in tuples': nested(tuple, 150),
    'list of itself': loop(),
    'lists that grow': laughs(list),
    'tuples that grow': laughs(tuple),
    'a tuple of tuples as a key': {((1,), (2,)): 1},
    'bytes by number': evil.Reduced(bytearray, (1 << 40,)),
    'a list by number': evil.Reduced(list, (range(1 << 40),)),
    'a tensor by number': evil.Reduced(torch.Tensor, (1 << 40,)),
    'an array by number': evil.Reduced(np.ndarray, ((1 << 40,),)),
    'a state for a tensor': evil.Reduced(torch.nn.Parameter, (torch.zeros(1),), {'data': 1}),
    'a state for a list': evil.Reduced(OrderedDict, (), {'copy': 1}),
    'a huge number': 1 << 100000,
}


@pytest.mark.parametrize('name', list(VALUES))
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_values_that_no_checkpoint_has(tmp_path, name, zipped):
    path = tmp_path / 'iter_9.pth'
    torch.save({'state_dict': {}, 'meta': VALUES[name]}, path, _use_new_zipfile_serialization=zipped)
    refused(path, 'refused|cannot be read')


@pytest.mark.parametrize('count', [5, 1 << 30, -1])
def test_a_storage_is_as_long_as_it_says(tmp_path, count):
    """torch reads beyond the record, and hands over what is there."""
    path = tmp_path / 'iter_9.pth'
    path.write_bytes(evil.with_pickle(evil.zipped(torch.ones(4)), lambda pickled: storage(pickled, count)))
    refused(path, 'is damaged')
    torch.save(torch.ones(4), path, _use_new_zipfile_serialization=False)
    path.write_bytes(storage(path.read_bytes(), count))
    refused(path, 'is damaged')


@pytest.mark.parametrize(
    'state',
    [
        {'statistics_methods': {'mean': HistoryBuffer.min}},
        {'statistics_methods': {'other': HistoryBuffer.min}},
        {'_log_history': np.zeros((2, 2))},
        {'_count_history': np.zeros(3)},
        {'max_length': -1},
        {'min': 1},
    ],
    ids=lambda state: next(iter(state)),
)
def test_a_history_changes_no_other(tmp_path, monkeypatch, state):
    """The state of one HistoryBuffer is written into its class."""
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    state = {**buffer.__getstate__(), **state}
    path = tmp_path / 'iter_9.pth'
    with monkeypatch.context() as patched:
        patched.setattr(HistoryBuffer, '__getstate__', lambda _: state)
        torch.save(buffer, path)
    before = dict(HistoryBuffer._statistics_methods)
    try:
        refused(path, 'refused, it holds a history')
        assert HistoryBuffer._statistics_methods == before
    finally:
        HistoryBuffer._statistics_methods.clear()
        HistoryBuffer._statistics_methods.update(before)


@pytest.mark.parametrize('place', [-(10**7), 625, 10**9, 1.5, None])
def test_a_random_state_from_a_file_points_into_its_table(place):
    """numpy reads wherever it is told to."""
    state = random_state.capture()
    assert random_state.fault(state) is None
    kind, table, _, *rest = state['numpy']
    assert random_state.fault({**state, 'numpy': (kind, table, place, *rest)})
    assert random_state.fault({**state, 'python': (3, (1, 2), None)})
    assert random_state.fault({**state, 'torch': torch.zeros(3, dtype=torch.uint8)})
    assert random_state.fault({**state, 'torch': torch.zeros_like(state['torch'])})
    assert random.getstate() == state['python']


# A process of its own


def crash(path):
    os.kill(os.getpid(), 11)


def exhaust(path):
    held = []
    while True:
        held.append(bytearray(1 << 24))


@pytest.mark.parametrize(
    ('read', 'said'),
    [
        (crash, 'is damaged: the process that read it ended with signal 11'),
        (exhaust, 'takes more memory to read than there is'),
        (lambda path: 1 / 0, r'cannot be read \(ZeroDivisionError'),
        (lambda path: os._exit(3), 'is damaged'),
    ],
    ids=['crash', 'memory', 'error', 'exit'],
)
def test_a_file_that_ends_its_reader_is_one_line(good, read, said):
    with pytest.raises(CheckpointError, match=said):
        read_in_own_process(str(good), read)


def test_an_older_checkpoint_is_fallen_back_to(good, tmp_path):
    for number in (1, 2):
        (tmp_path / f'iter_{number}.pth').write_bytes(good.read_bytes())
    crashed = []

    def crash_once(content):
        # The first one that is read ends its process.
        if not (tmp_path / 'seen').exists():
            (tmp_path / 'seen').touch()
            crash(content)

    path, crashed = find_resumable(str(tmp_path), crash_once)
    assert Path(path).name == 'iter_1.pth'
    assert [(Path(one).name, 'signal 11' in why) for one, why in crashed] == [('iter_2.pth', True)]


def test_names_in_a_file_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / 'iter_9.pth'
    torch.save(0, path)
    name = '\x1b]0;owned\x07'
    pickled = b'\x80\x02c' + name.encode() + b'\nx\n.'
    path.write_bytes(evil.with_pickle(path.read_bytes(), lambda _: pickled))
    with pytest.raises(CheckpointError) as error:
        load_from_local(str(path))
    assert str(error.value).isprintable()
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(pickled)


# e: another model


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (dict(classes=3), r'is of another model: decode_head.weight is \(2, 8\) there and \(3, 8\) here \(2 tensors'),
    ],
)
def test_a_model_of_other_shapes_is_refused_before_its_first_step(good, tmp_path, change, said):
    runner = checkpoint_toy.make(tmp_path, max_iters=3, load_from=good, resume=True, **change)
    with pytest.raises(CheckpointError, match=said):
        runner.train()


def test_another_optimizer_is_refused(good, tmp_path):
    runner = checkpoint_toy.make(tmp_path, max_iters=3, load_from=good, resume=True)
    runner.optim_wrapper['optimizer'] = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.05)
    with pytest.raises(CheckpointError, match='is of another optimizer'):
        runner.train()


def test_other_parameter_groups_are_refused(good, tmp_path):
    runner = checkpoint_toy.make(tmp_path, max_iters=3, load_from=good, resume=True)
    runner.optim_wrapper['paramwise_cfg'] = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
    with pytest.raises(CheckpointError, match=r'is of another optimizer: group 0 has 4 parameters there and 2 here'):
        runner.train()
