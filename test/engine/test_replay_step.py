"""A dump of a step is data: its config builds a model of known parts and nothing else."""

from __future__ import annotations

import ast

import mmseg.models  # noqa: F401  registers them
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import fuzz_checkpoints
from recipe.core import config_text, console
from recipe.data import random_state
from recipe.engine import replay as replay_step
from recipe.engine.nonfinite import BadStep, read_dump, write_dump


@pytest.fixture
def dump(tmp_path):
    """Write a dump whose config has something changed in its text."""
    sample = SegDataSample(metainfo={'img_path': 'a.png', 'img_shape': (8, 8), 'pad_shape': (8, 8)})
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.long))
    step = BadStep(2, {'inputs': [torch.zeros(3, 8, 8)], 'data_samples': [sample]}, random_state.capture())
    init_default_scope('mmseg')
    state = MODELS.build(config_text.read_config(fuzz_checkpoints.CONFIG)['model']).state_dict()

    def write(old='', new='', **content):
        assert old in fuzz_checkpoints.CONFIG
        text = fuzz_checkpoints.CONFIG.replace(old, new, 1) if old else fuzz_checkpoints.CONFIG
        ast.parse(text)
        torch.save({'state_dict': state, 'meta': {'cfg': text}}, tmp_path / 'iter_2_weights.pth')
        path = write_dump(str(tmp_path), step, 0, 1, 'iter_2_weights.pth')
        torch.save({**torch.load(path, weights_only=False), **content}, path)
        return path

    return write


def replay(path):
    return replay_step.replay(replay_step.load(str(path)), 'cpu')


def test_a_step_is_replayed(dump):
    assert replay(dump()).keys() == {'losses', 'grad_norm'}


GN = "norm_cfg=dict(type='GN', num_groups=1)"


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        # mmengine imports what has dots, and calls it
        ("type='UNet'", "type='os.system', command='touch ran'"),
        (GN, 'norm_cfg=dict(type=\'builtins.exec\', object=\'open("ran", "w")\')'),
        ("type='FCNHead'", "type='evil.FCNHead'"),
        ("type='FCNHead'", "_scope_='evil', type='FCNHead'"),
        ("test_cfg=dict(mode='whole')", "test_cfg=dict(mode='whole'), auxiliary_head=[dict(type='evil.Head')]"),
        ("type='OptimWrapper'", "type='evil.OptimWrapper'"),
        # a registered class that evaluates its argument
        (GN, 'norm_cfg=dict(type="CameraMotionCompensation", warp_mode="open(\'ran\', \'w\')")'),
        # a file that a class unpickles
        ("type='FCNHead'", "type='FCNHead', loss_decode=dict(type='CrossEntropyLoss', class_weight='evil.pkl')"),
        # work without end
        ('num_convs=1', 'num_convs=100000'),
        ('enc_num_convs=(1, 1)', 'enc_num_convs=(1, 99999)'),
    ],
)
def test_what_is_no_registered_part_of_a_model_is_refused(dump, tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'evil').mkdir()
    (tmp_path / 'evil' / '__init__.py').write_text('open("ran", "w")\n')
    (tmp_path / 'evil' / 'registry.py').touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(console.UserError, match=r'refused|cannot be replayed') as error:
        replay(dump(old, new))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()


def test_a_part_of_ones_own_is_built_where_the_dump_is_trusted(dump, tmp_path, monkeypatch):
    monkeypatch.setenv('MMSEG_TRUST_CHECKPOINT', '1')
    path = dump("type='UNet'", "type='mmseg.models.backbones.unet.UNet'")
    assert replay(path).keys() == {'losses', 'grad_norm'}
    monkeypatch.delenv('MMSEG_TRUST_CHECKPOINT')
    with pytest.raises(console.UserError, match='give --trust_checkpoint if you trust where the file comes from'):
        replay(path)


def test_the_weights_of_a_start_are_not_asked_for(dump):
    """They would be loaded from wherever the config says; the dump brings its own."""
    start = "init_cfg=dict(type='Pretrained', checkpoint='http://192.0.2.1/a.pth')"
    assert replay(dump("type='UNet'", f"type='UNet', {start}")).keys() == {'losses', 'grad_norm'}


@pytest.mark.parametrize(
    'content',
    [
        dict(weights='../iter_2_weights.pth'),
        dict(weights='/etc/hostname'),
        dict(random_state={}),
        dict(losses={'loss': 'x'}),
        dict(batch={'inputs': 1, 'data_samples': []}),
        dict(batch={'inputs': [], 'data_samples': [{'metainfo': {'to': 1}, 'fields': {}}]}),
        dict(batch={'inputs': [], 'data_samples': [{'metainfo': {}, 'fields': {'__class__': torch.zeros(1, 2, 2)}}]}),
    ],
    ids=lambda content: str(content)[:40],
)
def test_what_is_no_dump_is_refused(dump, content):
    path = dump(**content)
    with pytest.raises(ValueError, match='iter_2_rank_0'):
        read_dump(path)
    with pytest.raises(console.UserError, match='iter_2_rank_0'):
        replay_step.load(path)


def test_a_text_that_is_nested_without_end_is_no_config():
    for text in ('a = ' + '[' * 100000, 'a = ' + '-' * 100000 + '1', 'a = ' + 'dict(b=' * 5000 + ')' * 5000):
        assert config_text.read_config(text) == {}
