"""What a user can do wrong with predict, publish and load: one line says it, and nothing is half-written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import recipe
from recipe.core import console, paths
from recipe.predict import cli, publish


class World:
    """A folder with a good checkpoint and a picture, and files with something wrong."""

    def __init__(self, folder, run, checkpoint, street):
        self.folder, self.run, self.checkpoint = folder, run, checkpoint
        street.save(folder / 'a.png')

    def path(self, name, content=None):
        if content is not None:
            (self.folder / name).write_bytes(content)
        return str(self.folder / name)

    def saved(self, **changes):
        torch.save({**self.checkpoint, **changes}, self.folder / 'changed.pth')
        return str(self.folder / 'changed.pth')

    def meta(self, old, new):
        return {**self.checkpoint['meta'], 'cfg': self.checkpoint['meta']['cfg'].replace(old, new)}

    def without(self, name):
        return {key: value for key, value in self.checkpoint['state_dict'].items() if key != name}

    def predict(self, *argv, checkpoint=None, out='out'):
        given = ['--checkpoint', checkpoint or str(self.run), '--out', self.path(out), '--device=cpu']
        return cli.main([*(argv or [self.path('a.png')]), *given])

    def load(self, source, **options):
        return recipe.load(source, **{'device': 'cpu', **options})


@pytest.fixture
def world(tmp_path, run, checkpoint, street):
    return World(tmp_path, run, checkpoint, street)


class Program:
    """Would leave a mark if it were unpickled as pickle does it."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


FAULTS = {
    # the input
    'no such file': (lambda w: w.predict(w.path('gone.png')), 'there is no file .*gone.png; check the path'),
    'an empty folder': (lambda w: w.predict(str(w.folder / 'empty')), 'empty holds no pictures and no videos'),
    'a pattern that fits nothing': (lambda w: w.predict(w.path('*.bmp')), r'no file fits .*\*\.bmp; check'),
    # the output
    'the output is a file': (lambda w: w.predict(out='a.png'), 'a.png is not a folder; give another --out'),
    'the output is below a file': (lambda w: w.predict(out='a.png/out'), 'a.png is not a folder'),
    'the output cannot be made': (
        lambda w: cli.main([w.path('a.png'), '--checkpoint', str(w.run), '--out=/proc/out']),
        'cannot write to /proc.* give a --out that can be',
    ),
    # options
    'an unknown class': (lambda w: w.predict(w.path('a.png'), '--classes=car,cat'), 'there is no class cat; give some'),
    'a class number': (lambda w: cli._shown('1', ['road']), '--classes: there is no class 1'),
    'no class': (lambda w: cli._shown(' , ', ['road']), '--classes names no class; give some of road'),
    'an unknown device': (lambda w: w.load(w.run, device='tpu'), 'device: tpu is no device; give auto, cpu'),
    'a device that is not there': (lambda w: w.load(w.run, device='npu'), '--device=npu: torch_npu is not installed'),
    # the checkpoint
    'no checkpoint': (
        lambda w: w.predict(checkpoint=w.path('gone.pth')),
        'there is no file .*gone.pth; check the path',
    ),
    'a folder without checkpoints': (lambda w: w.predict(checkpoint=w.path('empty')), r'empty holds no iter_N\.pth'),
    'an empty checkpoint': (lambda w: w.predict(checkpoint=w.path('0.pth', b'')), '0.pth is empty; bring the file'),
    'a picture as checkpoint': (lambda w: w.predict(checkpoint=w.path('a.png')), 'is not a checkpoint of PyTorch'),
    'a cut checkpoint': (
        lambda w: w.load(w.path('cut.pth', (w.run / 'iter_8.pth').read_bytes()[:99999])),
        r'checkpoint .*cut\.pth: is cut short',
    ),
    'a checkpoint with code': (lambda w: w.load(w.saved(more=Program())), 'give --trust_checkpoint'),
    'of another model': (
        lambda w: w.load(w.saved(meta=w.meta('embed_dims=48', 'embed_dims=96'))),
        'changed.pth is of another model: backbone.* there and .* here',
    ),
    'of other classes': (
        lambda w: w.load(w.saved(meta=w.meta('num_classes=19', 'num_classes=150'))),
        r'cls_embed\.weight is \(20, 128\) there and \(151, 128\) here',
    ),
    'a tensor is missing': (
        lambda w: w.load(w.saved(state_dict=w.without('decode_head.query_feat.weight'))),
        'another model: decode_head.query_feat.weight is not there',
    ),
    'no config': (lambda w: w.load(w.saved(meta={})), 'holds no config of a model.* give the config .* --config=FILE'),
    'a config that names code': (
        lambda w: w.load(w.saved(meta=w.meta("type='EncoderDecoder'", "type='os.system'"))),
        "model.type of the config is 'os.system'",
    ),
    'a config that is no Python': (
        lambda w: w.load(w.run, config=w.path('c.py', b'model = (')),
        r'config: .*c\.py cannot be read',
    ),
    'a config without model': (lambda w: w.load(w.run, config=w.path('c.py', b'a = 1')), r'c\.py has no model'),
    'no config file': (lambda w: w.load(w.run, config=w.path('gone.py')), 'config: there is no file .*gone.py'),
    # publish
    'publish: no run': (lambda w: publish.main([w.path('gone')]), 'there is no file .*gone'),
    'publish: no figures': (lambda w: publish.main([w.saved()]), r'there is no .*result\.json, which has the figures'),
    'publish: a name with a slash': (lambda w: publish.main([str(w.run), '--name=a/b']), '--name: a/b is no part of'),
    'publish: the output is a file': (
        lambda w: publish.main([str(w.run), '--out', w.path('a.png')]),
        'a.png is not a folder; give another --out',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_one_line_and_nothing_written(world, monkeypatch, fault):
    monkeypatch.chdir(world.folder)
    (world.folder / 'empty').mkdir()
    call, message = FAULTS[fault]
    with pytest.raises(console.UserError, match=message) as raised:
        call(world)
    assert '\n' not in str(raised.value) and raised.value.status != 0
    left = {path.name for path in world.folder.iterdir()}
    assert left <= {'a.png', 'empty', 'changed.pth', 'cut.pth', '0.pth', 'c.py'}
    assert not (world.run / 'published').exists()


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['a.png'],
        ['a.png', '--checkpoint=a.pth'],
        ['--checkpoint=a.pth', '--out=o'],
        ['a.png', '--checkpoint=a.pth', '--out=o', '--batch_size=0'],
        ['a.png', '--checkpoint=a.pth', '--out=o', '--opacity=1.5'],
        ['a.png', '--checkpoint=a.pth', '--out=o', '--opacity=nan'],
        ['a.png', '--checkpoint=a.pth', '--out=o', '--forced'],
    ],
)
def test_options_that_are_wrong_or_missing(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == console.EXIT_USAGE and 'predict.py: error: ' in capsys.readouterr().err


@pytest.mark.parametrize('argv', [['predict.py', 'a.png', '--checkpoint=a.pth', '--out=o'], ['publish.py', 'run']])
def test_without_the_environment_one_line_says_what_to_do(tmp_path, argv):
    command = [sys.executable, '-S', str(paths.TOOLS / argv[0]), *argv[1:]]  # without installed packages
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr == 'error: package mmcv: mmcv cannot be imported; run: bash tools/setup.sh\n'
