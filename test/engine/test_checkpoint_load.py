"""Checkpoints are data: whole ones of every torch and mmengine load, anything else is refused in one line."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import tarfile
import threading
import zipfile
from collections import Counter, OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner import save_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from recipe.engine.checkpoint import CheckpointError, UntrustedCheckpointError, check_file, load_from_local
from recipe.engine.checkpoint.load import LEGACY_MAGIC


def contents() -> dict:
    """Return what mmengine puts into a checkpoint, with numbers from numpy as metrics give them."""
    hub = MessageHub.get_instance('test_checkpoint_load')
    hub.update_scalar('train/loss', 1.5)
    hub.update_scalar('val/mIoU', np.float64(70.25))
    hub.update_info('best_score', np.float32(70.25))
    hub.update_info('dataset_meta', dict(classes=('road', 'car'), palette=np.eye(3, dtype=np.uint8)))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(iter=5, seed=3, dtype=torch.bfloat16, shape=torch.Size([1, 2]), window=deque([1], maxlen=2)),
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        half=torch.ones(3, dtype=torch.float16),
        parameter=torch.nn.Parameter(torch.ones(2)),
        message_hub=hub.state_dict(),
    )


def assert_same_contents(loaded: dict, saved: dict) -> None:
    assert loaded.keys() == saved.keys()
    assert loaded['meta'] == saved['meta']
    assert isinstance(loaded['state_dict'], OrderedDict)
    for name, value in saved['state_dict'].items():
        assert torch.equal(loaded['state_dict'][name], value)
    assert torch.equal(loaded['optimizer']['state'][0]['exp_avg'], saved['optimizer']['state'][0]['exp_avg'])
    assert torch.equal(loaded['parameter'], saved['parameter'])
    history = loaded['message_hub']['log_scalars']['val/mIoU']
    assert isinstance(history, HistoryBuffer)
    assert history.current() == 70.25
    assert loaded['message_hub']['runtime_info']['best_score'] == np.float32(70.25)
    assert (loaded['message_hub']['runtime_info']['dataset_meta']['palette'] == np.eye(3)).all()


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_loads_what_mmengine_writes(tmp_path, zipped):
    path = tmp_path / 'iter_5.pth'
    saved = contents()
    if zipped:
        save_checkpoint(saved, str(path))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=False)
    # by mmengine's own entrance, which Runner.resume, load_from and init_cfg use
    loaded = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert_same_contents(loaded, saved)


def rename_globals(path: Path, old: bytes, new: bytes) -> None:
    """Rewrite a module's name in the pickle of a checkpoint, as another version of the library had written it."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in records if name.endswith('/data.pkl'))
    assert old in records[pickled]
    records[pickled] = records[pickled].replace(old, new)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, record in records.items():
            archive.writestr(name, record)


@pytest.mark.parametrize('other', [b'cnumpy.core.multiarray\n', b'cnumpy._core.multiarray\n'])
def test_loads_arrays_of_numpy_1_and_2(tmp_path, other):
    path = tmp_path / 'iter_5.pth'
    saved = contents()
    torch.save(saved, path)
    own = f'c{np.empty(0).__reduce__()[0].__module__}\n'.encode()
    rename_globals(path, own, other)
    assert_same_contents(load_from_local(path), saved)


class Evil:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(path: Path) -> Evil:
    return Evil(exec, f'open({str(path)!r}, "w")')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_code_is_refused_and_does_not_run(tmp_path, zipped):
    path, trace = tmp_path / 'iter_5.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, meta=touch(trace)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'iter_5.pth: refused, it asks for builtins.exec') as error:
        CheckpointLoader.load_checkpoint(str(path))
    assert '\n' not in str(error.value)
    assert not trace.exists()
    # the file is what it should be: plain pickle runs it
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_code_runs_where_the_user_trusts_the_file(tmp_path, monkeypatch):
    path, trace = tmp_path / 'iter_5.pth', tmp_path / 'ran'
    torch.save(dict(state_dict={}, meta=touch(trace)), path)
    for value in ('', '0', 'yes'):
        monkeypatch.setenv('MMSEG_TRUST_CHECKPOINT', value)
        with pytest.raises(UntrustedCheckpointError):
            load_from_local(path)
    assert not trace.exists()
    monkeypatch.setenv('MMSEG_TRUST_CHECKPOINT', '1')
    assert load_from_local(path)['state_dict'] == {}
    assert trace.exists()
    path.write_bytes(path.read_bytes()[:-10])  # trust does not mend a file
    with pytest.raises(CheckpointError, match='is cut short or damaged'):
        load_from_local(path)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A web server's folder and its URL; torch's and mmengine's caches are empty."""
    for name in ('TORCH_HOME', 'MMENGINE_HOME'):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f'http://127.0.0.1:{running.server_address[1]}'
        running.shutdown()
        thread.join()


WAYS = [
    'http://',
    'torchvision://',
    'open-mmlab://',
    'openmmlab://',
    'file of the list',
    'mmcls://',
]


@pytest.mark.parametrize('way', WAYS)
def test_files_from_everywhere_are_loaded_by_the_same_rules(way, served, tmp_path, monkeypatch):
    folder, url = served
    for name, content in (('good-b.pth', contents()), ('evil-b.pth', dict(meta=touch(tmp_path / 'ran')))):
        torch.save(content, folder / name)
        place = f'{url}/{name}'
        monkeypatch.setattr(mmengine_checkpoint, 'get_torchvision_models', lambda place=place: {'x': place})
        monkeypatch.setattr(mmengine_checkpoint, 'get_mmcls_models', lambda place=place: {'x': place})
        listed = str(folder / name) if way == 'file of the list' else place
        monkeypatch.setattr(mmengine_checkpoint, 'get_external_models', lambda listed=listed: {'x': listed})
        source = {'http://': place, 'file of the list': 'openmmlab://x'}.get(way, f'{way}x')
        if name == 'good-b.pth':
            loaded = CheckpointLoader.load_checkpoint(source, map_location='cpu')
            assert 'state_dict' in loaded
        else:
            with pytest.raises(CheckpointError, match=r'refused, it asks for builtins.exec'):
                CheckpointLoader.load_checkpoint(source, map_location='cpu')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('source', ['s3://b/x.pth', 'cluster:s3://b/x.pth', 'petrel://b/x.pth', 'pavi://x'])
def test_other_stores_are_refused(source):
    """mmengine hands what it gets from there to torch.load as it is."""
    with pytest.raises(CheckpointError, match='is in a store that is not supported here: download the file'):
        CheckpointLoader.load_checkpoint(source)


def test_a_download_is_kept_and_its_hash_compared(served, tmp_path):
    folder, url = served
    torch.save(contents(), folder / 'x.pth')
    digest = hashlib.sha256((folder / 'x.pth').read_bytes()).hexdigest()[:8]
    good, bad = folder / f'x-{digest}.pth', folder / 'x-00000000.pth'
    for path in (good, bad):
        path.write_bytes((folder / 'x.pth').read_bytes())
    CheckpointLoader.load_checkpoint(f'{url}/{good.name}')
    good.unlink()
    CheckpointLoader.load_checkpoint(f'{url}/{good.name}')  # from the cache
    with pytest.raises(RuntimeError, match='invalid hash value'):
        CheckpointLoader.load_checkpoint(f'{url}/{bad.name}')
    assert [path.name for path in (tmp_path / 'TORCH_HOME').rglob('*.pth')] == [good.name]


@pytest.mark.parametrize(
    ('evil', 'name'),
    [
        (Evil(getattr, HistoryBuffer, '__init__'), '__init__'),
        (Evil(getattr, torch.Tensor, 'mean'), 'mean'),
        (Evil(eval, '1'), 'builtins.eval'),
        (Evil(np.fromfile, '/etc/hostname'), 'numpy.fromfile'),
        (Evil(torch.hub.load, 'a', 'b'), 'torch.hub.load'),
        (Evil(torch.load, 'a'), 'torch.serialization.load'),
        (Evil(Path, 'a'), 'pathlib'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_other_globals_are_refused_by_name(tmp_path, evil, name):
    path = tmp_path / 'iter_5.pth'
    torch.save(evil, path)
    with pytest.raises(CheckpointError, match=f'refused, it asks for .*{name}'):
        load_from_local(path)


def test_classes_cannot_be_altered(tmp_path):
    """BUILD, which gives an object its state, would otherwise set attributes of any class on the list."""
    path = tmp_path / 'iter_5.pth'
    torch.save(0, path)
    altering = b'\x80\x02ccollections\nCounter\nN}X\x0b\x00\x00\x00most_commonK\x01s\x86b.'
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
        rest = {other: archive.read(other) for other in archive.namelist() if other != name}
    with zipfile.ZipFile(path, 'w') as archive:
        for other, record in {**rest, name: altering}.items():
            archive.writestr(other, record)
    before = Counter.most_common
    with pytest.raises(CheckpointError, match='refused, it alters'):
        load_from_local(path)
    assert Counter.most_common is before
    try:
        pickle.loads(altering)
        assert Counter.most_common == 1
    finally:
        Counter.most_common = before


def test_programs_and_archives_are_refused(tmp_path):
    program = tmp_path / 'program.pth'
    torch.jit.script(torch.nn.ReLU()).save(str(program))
    with pytest.raises(CheckpointError, match='is a TorchScript program'):
        load_from_local(program)
    # torch.load unpacks a tar archive, which may begin like a legacy checkpoint
    magic = LEGACY_MAGIC.decode('latin1')
    archive = tmp_path / 'archive.pth'
    (tmp_path / 'member').touch()
    with tarfile.open(archive, 'w', format=tarfile.USTAR_FORMAT, encoding='latin1') as tar:
        tar.add(tmp_path / 'member', arcname=magic)
        tar.add(tmp_path / 'member', arcname='storages')
    assert tarfile.is_tarfile(archive)
    with pytest.raises(CheckpointError, match='cannot be read'):
        load_from_local(archive)


@pytest.mark.parametrize('kept', [0, 1, 100, 0.5, 0.99, -1])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_file_cut_short_is_refused(tmp_path, kept, zipped):
    path = tmp_path / 'iter_5.pth'
    torch.save(contents(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r'is (empty|cut short|not a)|cannot be read|refused') as error:
        load_from_local(path)
    assert '\n' not in str(error.value)


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path):
    path = tmp_path / 'iter_5.pth'
    value = torch.arange(1000.0)
    torch.save(dict(state_dict=dict(value=value)), path)
    content = bytearray(path.read_bytes())
    content[content.index(value.numpy().tobytes()) + 1000] ^= 4
    path.write_bytes(bytes(content))
    # what torch itself makes of it
    assert not torch.equal(torch.load(path)['state_dict']['value'], value)
    for read in (check_file, load_from_local):
        with pytest.raises(CheckpointError, match='is damaged'):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none.pth can not be found'):
        load_from_local(tmp_path / 'none.pth')
