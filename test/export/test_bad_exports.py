"""Whatever a user gets wrong ends as one line that says so, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch

import evil_checkpoints
from recipe.core import console
from recipe.export import cli, formats, libraries


class World:
    """Files to name on a command line."""

    def __init__(self, folder: Path, checkpoint: Path, facebook: Path) -> None:
        self.folder, self.checkpoint, self.facebook = folder, checkpoint, facebook
        self.out = folder / 'out'
        self.out.mkdir()

    def file(self, name: str, content: bytes = b'') -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def arrays(self, **changed: Any) -> Path:
        """facebookresearch's file with other tensors; None leaves one out."""
        content = pickle.loads(self.facebook.read_bytes())
        content['model'].update(changed)
        content['model'] = {name: value for name, value in content['model'].items() if value is not None}
        return self.file('changed.pkl', pickle.dumps(content))

    def hf(self, config: Any, name: str = 'hf') -> Path:
        return self.file(f'{name}/config.json', json.dumps(config).encode()).parent


SWIN = {'model_type': 'mask2former', 'backbone_config': {'model_type': 'swin'}}
EMBED, QUERY = 'backbone.patch_embed.proj.weight', 'sem_seg_head.predictor.query_feat.weight'


def to(kind: str, name: str = '') -> Callable[[World], List[str]]:
    """Options of an export of the good checkpoint."""
    suffix = cli.FORMATS.get(kind, '.x')
    return lambda w: [
        '--checkpoint',
        str(w.checkpoint),
        f'--format={kind}',
        '--out',
        str(w.out / (name or f'm{suffix}')),
    ]


def of(source: Callable[[World], Any], kind: str = 'safetensors') -> Callable[[World], List[str]]:
    """Options of an export of another checkpoint."""
    return lambda w: ['--checkpoint', str(source(w)), f'--format={kind}', '--out', str(w.out / f'm{cli.FORMATS[kind]}')]


def taking(trainer: str, source: Callable[[World], Any]) -> Callable[[World], List[str]]:
    """Options that take over a model of another trainer."""
    return lambda w: ['--checkpoint', str(source(w)), f'--from={trainer}', '--out', str(w.out / 'm.pth')]


def more(options: Callable[[World], List[str]], *others: str) -> Callable[[World], List[str]]:
    return lambda w: [*options(w), *others]


CASES: Dict[str, Tuple[Callable[[World], List[str]], str]] = {
    'unknown format': (to('tflite', 'm.tflite'), "--format: invalid choice: 'tflite'"),
    'no format': (lambda w: ['--checkpoint', 'a', '--out', 'b'], 'give either --format or --from'),
    'unknown option': (more(to('onnx'), '--optset=17'), 'unrecognized arguments: --optset=17'),
    'a size of one side': (more(to('onnx'), '--size=512'), "'512' is neither free nor HEIGHTxWIDTH"),
    'a side of nothing': (more(to('onnx'), '--size=0x512'), "'0x512' is neither free nor HEIGHTxWIDTH"),
    'sides without padding': (more(to('onnx'), '--size=100x200', '--preprocess=outside'), 'are multiples of 32'),
    'free sizes of torch': (more(to('pt2'), '--size=free'), 'cannot keep height and width free'),
    'old operators': (more(to('onnx'), '--opset=11'), "11 is out of range; give a whole number from 17"),
    'no pictures': (more(to('safetensors'), '--parity_pictures=0'), "0 is out of range; give a whole number from 1"),
    'another suffix': (to('onnx', 'm.pb'), 'does not end with .onnx'),
    'no folder to write to': (to('onnx', 'none/m.onnx'), 'there is no folder'),
    'a folder in the way': (lambda w: [*to('onnx')(w)[:-1], str(w.file('m.onnx/a').parent)], 'is a folder'),
    'a file in the way of a folder': (lambda w: [*to('huggingface')(w)[:-1], str(w.file('hf'))], 'is a file'),
    'a file that exists': (lambda w: [*to('pt2')(w)[:-1], str(w.file('m.pt2'))], 'exists; give another'),
    'a folder of something else': (
        lambda w: [*to('huggingface')(w)[:-1], str(w.file('mine/thesis.tex').parent), '--force'],
        'holds files that no export wrote',
    ),
    'no checkpoint': (of(lambda w: w.folder / 'none.pth'), 'there is no file'),
    'a run without a checkpoint': (of(lambda w: w.out), 'holds no iter_N.pth'),
    'an empty checkpoint': (of(lambda w: w.file('a.pth')), 'is empty'),
    'text for a checkpoint': (of(lambda w: w.file('a.pth', b'hello')), 'is not a checkpoint of PyTorch'),
    'a checkpoint without a config': (
        of(lambda w: w.file('a.pth', evil_checkpoints.zipped({'state_dict': {'a': torch.zeros(1)}}))),
        'holds no config of a model',
    ),
    'no picture': (more(to('safetensors'), '--pictures', 'none.png'), '--pictures: there is no file'),
    'a damaged picture': (
        lambda w: [*to('safetensors')(w), '--pictures', str(w.file('a.png', b'\x89PNG'))],
        'a.png cannot be read',
    ),
    'a damaged pickle': (
        taking('facebook', lambda w: w.file('a.pkl', w.facebook.read_bytes()[:-999])),
        'a.pkl: cannot be read (EOFError',
    ),
    'a pickle of a list': (taking('facebook', lambda w: w.file('a.pkl', pickle.dumps([1]))), 'holds no weights'),
    'an evil pickle': (
        taking('facebook', lambda w: w.file('a.pkl', pickle.dumps(evil_checkpoints.touching(w.out / 'trace')))),
        'refused, it asks for builtins.exec',
    ),
    'a pickle of objects': (
        taking('facebook', lambda w: w.file('a.pkl', pickle.dumps({'model': np.array([{}], dtype=object)}))),
        'refused',
    ),
    'names of another trainer': (taking('huggingface', lambda w: w.facebook), "has facebookresearch's names"),
    'our own checkpoint': (taking('facebook', lambda w: w.checkpoint), "has mmsegmentation's names"),
    'a backbone that is no Swin': (
        taking('facebook', lambda w: w.file('a.pkl', pickle.dumps({'model': {QUERY: np.zeros((1, 1))}}))),
        'its backbone is neither Swin nor ResNet',
    ),
    'a tensor too many': (
        taking('facebook', lambda w: w.arrays(**{'sem_seg_head.more': np.zeros(1)})),
        'have no counterpart: sem_seg_head.more',
    ),
    'a tensor that is missing': (taking('facebook', lambda w: w.arrays(**{EMBED: None})), 'projection.weight'),
    'a layer that is missing': (
        taking('facebook', lambda w: w.arrays(**{'sem_seg_head.predictor.decoder_norm.weight': None})),
        'post_norm.weight is not there',
    ),
    'shapes that do not fit': (
        taking('facebook', lambda w: w.arrays(**{QUERY: np.zeros((7, 128), dtype=np.float32)})),
        'query_embed.weight is (40, 128) there and (7, 128) here',
    ),
    'no folder of Hugging Face': (taking('huggingface', lambda w: w.out), 'holds no config.json'),
    'another architecture': (taking('huggingface', lambda w: w.hf({'model_type': 'segformer'})), 'is segformer, not'),
    'another backbone': (
        taking('huggingface', lambda w: w.hf({**SWIN, 'backbone_config': {'model_type': 'resnet'}})),
        'its backbone is resnet, not swin',
    ),
    'a config that is no config': (taking('huggingface', lambda w: w.hf([])), 'cannot be read: holds a list'),
    'a config nested too deeply': (
        taking('huggingface', lambda w: w.file('hf/config.json', b'[' * 100_000).parent),
        'config.json cannot be read: nested',
    ),
    'no weights in the folder': (taking('huggingface', lambda w: w.hf(SWIN)), 'lacks model.safetensors'),
    'damaged safetensors': (
        taking('huggingface', lambda w: w.file('hf/model.safetensors', b'\xff' * 99) and w.hf(SWIN)),
        'model.safetensors cannot be read',
    ),
    'a part that is missing': (
        taking(
            'huggingface',
            lambda w: w.file('hf/model.safetensors.index.json', b'{"weight_map": {"a": "part-1.safetensors"}}')
            and w.hf(SWIN),
        ),
        'lacks part-1.safetensors',
    ),
}  # fmt: skip


@pytest.fixture
def world(tmp_path, checkpoint, facebook):
    return World(tmp_path, checkpoint, facebook)


def refused(world: World, options: List[str], said: str) -> None:
    world.out.mkdir(exist_ok=True)
    with pytest.raises((console.UserError, SystemExit, OSError)) as caught:
        cli.main(options)
    message = str(caught.value)
    assert isinstance(caught.value, console.UserError), message
    assert said in message
    assert caught.value.status != 0
    assert '\n' not in message
    assert list(world.out.iterdir()) == []


@pytest.mark.parametrize('name', CASES)
def test_one_clear_line(name, world):
    options, said = CASES[name]
    refused(world, options(world), said)


@pytest.mark.parametrize('kind', ['onnx', 'safetensors', 'huggingface'])
def test_a_missing_library_is_named_with_the_command(kind, world, monkeypatch):
    monkeypatch.setattr(libraries.importlib.util, 'find_spec', lambda name: None)
    refused(world, to(kind)(world), 'pip install -r requirements/export.txt')


def test_a_full_disk_leaves_nothing(world, monkeypatch):
    def fill(trained, path, shape):
        path.write_bytes(b'half')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(formats, 'write_safetensors', fill)
    with pytest.raises(OSError, match='No space left') as caught:  # console.run makes one line of it
        cli.main(to('safetensors')(world))
    assert caught.value.filename
    assert list(world.out.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(world, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write everywhere
    refused(world, to('safetensors')(world), 'cannot be written to')


def test_an_exporter_that_fails_is_one_line(world, monkeypatch):
    def fail(*_):
        raise RuntimeError('no operator\nwith a long story')

    monkeypatch.setattr(formats, 'write_safetensors', fail)
    refused(world, to('safetensors')(world), 'cannot be exported: RuntimeError: no operator')
