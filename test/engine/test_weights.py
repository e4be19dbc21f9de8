from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import torch

from recipe.core import console, network
from recipe.engine import weights


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f'http://127.0.0.1:{running.server_address[1]}'
        running.shutdown()
        thread.join()


def hashed(folder: Path, content: bytes = b'weights') -> Path:
    path = folder / f'swin-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_that_the_user_names_is_taken(tmp_path):
    path = tmp_path / 'mine.pth'
    path.write_bytes(b'x')
    assert weights.locate(str(path), 'https://example.invalid/other.pth') == path


def test_none_trains_from_scratch():
    assert weights.locate('none', 'https://example.invalid/other.pth') is None
    assert weights.locate(None, None) is None


def test_the_cache_is_asked_before_the_network(cache):
    path = hashed(cache)
    assert weights.locate(None, f'https://example.invalid/{path.name}') == path


def test_a_damaged_file_is_refused_whoever_brought_it(cache, tmp_path):
    for path in (hashed(cache), hashed(tmp_path / 'mine')):
        path.write_bytes(b'damaged')
        given = None if path.parent == cache else str(path)
        with pytest.raises(console.UserError, match=f'{path} is damaged'):
            weights.locate(given, f'https://example.invalid/{path.name}')


def test_offline_the_message_says_what_to_bring_and_where_to_put_it(cache):
    url = f'http://127.0.0.1:{network.free_port()}/swin-12345678.pth'
    with pytest.raises(console.UserError) as caught:
        weights.locate(None, url)
    for part in (url, str(cache / 'swin-12345678.pth'), '--pretrained=FILE', '--pretrained=none'):
        assert part in str(caught.value)
    assert not any(cache.glob('*'))


def test_online_the_file_is_downloaded_once(cache, server):
    folder, url = server
    name = hashed(folder).name
    path = weights.locate(None, f'{url}/{name}')
    assert path == cache / name
    (folder / name).unlink()
    assert weights.locate(None, f'{url}/{name}').read_bytes() == b'weights'


def test_a_download_that_is_not_what_its_name_says_leaves_nothing(cache, server):
    folder, url = server
    path = hashed(folder)
    path.write_bytes(b'an error page')
    with pytest.raises(console.UserError, match='is damaged'):
        weights.locate(None, f'{url}/{path.name}')
    assert not any(cache.glob('*'))
    with pytest.raises(console.UserError, match='cannot download'):
        weights.locate(None, f'{url}/missing.pth')
    assert not any(cache.glob('*'))


def test_the_checkpoint_in_load_from_is_found_or_refused_by_its_key(cache, tmp_path, monkeypatch):
    (tmp_path / 'start.pth').write_bytes(b'x')
    monkeypatch.chdir(tmp_path)
    assert weights.locate_start('start.pth') == tmp_path / 'start.pth'  # absolute, whatever the ranks' folder is
    refused = {'gone.pth': 'there is no weights file', 's3://bucket/start.pth': 'is neither a file nor a URL of http'}
    url = f'http://127.0.0.1:{network.free_port()}/start.pth'
    for source, said in {**refused, 5: 'is neither', str(tmp_path): 'there is no', url: 'cannot download'}.items():
        with pytest.raises(console.UserError, match=f'load_from.* {said}.*load_from=FILE'):
            weights.locate_start(source)


@pytest.fixture
def backbone() -> torch.nn.Module:
    """Named as a Swin: ten tensors."""
    model = torch.nn.Sequential()
    for number in range(4):
        model.add_module(f'layer{number}', torch.nn.Linear(3, 3))
    model.add_module('norm', torch.nn.LayerNorm(3))
    model.register_buffer('relative_position_index', torch.zeros(2))
    return model


def compare(path, model):
    return weights.compare(path, dict(model.named_parameters()), dict(model.named_buffers()))


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s}, lambda s: {'model': s, 'epoch': 3}])
@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'module.'])
def test_the_layouts_of_weights_files_are_known(tmp_path, backbone, wrap, prefix):
    state = {prefix + name: value for name, value in backbone.state_dict().items()}
    state['head.fc.weight'] = torch.zeros(2)
    torch.save(wrap(state), tmp_path / 'w.pth')
    match = compare(tmp_path / 'w.pth', backbone)
    assert len(match.found) == 10
    assert match.missing == []
    assert match.unexpected == ['head.fc.weight']
    assert str(match) == '10 of 10 tensors of the backbone, 0 missing, 1 unexpected (head.fc.weight)'


def test_missing_tensors_are_counted(tmp_path, backbone):
    state = backbone.state_dict()
    del state['norm.bias']
    torch.save(state, tmp_path / 'w.pth')
    assert compare(tmp_path / 'w.pth', backbone).missing == ['norm.bias']


def test_another_model_is_refused(tmp_path, backbone):
    path = tmp_path / 'w.pth'
    state = backbone.state_dict()
    torch.save({f'layers.{name}': value for name, value in state.items()}, path)
    with pytest.raises(console.UserError, match=r'of another model: 0 of 10 .*swin2mmseg'):
        compare(path, backbone)
    torch.save({**state, 'layer1.weight': torch.zeros(4, 3)}, path)
    with pytest.raises(console.UserError, match=r'layer1.weight is \(4, 3\) there and \(3, 3\) in the backbone'):
        compare(path, backbone)


def test_tables_of_another_window_size_are_resized_by_the_backbone(tmp_path):
    model = torch.nn.Module()
    for number in range(10):
        model.register_parameter(f'relative_position_bias_table{number}', torch.nn.Parameter(torch.zeros(1)))
    model.register_parameter('relative_position_bias_table', torch.nn.Parameter(torch.zeros(49, 4)))
    state = {**model.state_dict(), 'relative_position_bias_table': torch.zeros(169, 4)}
    torch.save(state, tmp_path / 'w.pth')
    assert compare(tmp_path / 'w.pth', model).resized == ['relative_position_bias_table']
    torch.save({**state, 'relative_position_bias_table': torch.zeros(169, 3)}, tmp_path / 'w.pth')
    with pytest.raises(console.UserError, match='of another model'):
        compare(tmp_path / 'w.pth', model)


@pytest.mark.parametrize('content', [b'<html>404</html>', b'PK\x03\x04 cut short'])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, backbone, content):
    (tmp_path / 'w.pth').write_bytes(content)
    with pytest.raises(console.UserError, match=f'weights file {tmp_path}/w.pth'):
        compare(tmp_path / 'w.pth', backbone)
    torch.save({'epoch': 3}, tmp_path / 'w.pth')
    with pytest.raises(console.UserError, match='holds no tensors'):
        compare(tmp_path / 'w.pth', backbone)
