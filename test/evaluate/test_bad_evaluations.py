"""What a user can get wrong: one line that says what, where and what to do, and no file changes."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

import cityscapes_sets
from recipe.core import console, run_folder
from recipe.evaluate import classes, folder
from recipe.launch import checks, evaluation, options
from recipe.launch.plan import Plan
from recipe.predict import trained_model


class World:
    """A data set, a file that stands for a checkpoint, and a folder."""

    def __init__(self, home, data):
        self.home, self.data = home, home / 'data'
        shutil.copytree(data, self.data)
        self.checkpoint = home / 'iter_1.pth'
        self.checkpoint.write_bytes(b'weights')
        self.folder = home / 'out'
        self.classes = list(classes.NAMES)

    def trained(self, *_, **__):
        """The stand-in for what the checkpoint holds."""
        return SimpleNamespace(path=self.checkpoint, classes=self.classes, config={}, model=None)

    def run(self, *argv):
        """All checks up to the start of the ranks, without those of the machine; returns the plan."""
        given = [f'--checkpoint={self.checkpoint}', f'--data_path={self.data}', '--nproc=1', '--device=cpu', *argv]
        plan = Plan(options.read('evaluate', given), device='cpu', nproc=1)
        for check in checks.EVALUATION:
            if check.name in ('data path', 'checkpoint', 'data set'):
                list(check.examine(plan))
        self.pictures, self.identity = evaluation.prepare(plan)
        return plan

    def part(self, pattern):
        """The first file below the data set that fits."""
        return next(iter(sorted(self.data.glob(pattern))))

    def add_test_pictures(self):
        """Give the data set a test split of two pictures."""
        for number, path in enumerate(sorted(self.data.glob('leftImg8bit/val/*/*.png'))):
            city = self.data / 'leftImg8bit' / 'test' / 'teststadt'
            city.mkdir(exist_ok=True)
            shutil.copy(path, city / f'teststadt_{number:06d}_000019_leftImg8bit.png')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return cityscapes_sets.make_prepared(tmp_path_factory.mktemp('good') / 'data')


@pytest.fixture
def world(tmp_path, data, monkeypatch):
    made = World(tmp_path, data)
    monkeypatch.setattr(trained_model, 'load_trained_model', made.trained)
    monkeypatch.setattr(run_folder, 'OUTPUT', tmp_path / 'output')
    return made


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def use_folder(world, *argv):
    """Begin an evaluation in a folder."""
    plan = world.run(f'--work_dir={world.folder}', *argv)
    plan.folder.mkdir()
    folder.claim(plan.folder, world.identity)


def occupy(world):
    world.folder.mkdir()
    (world.folder / 'thesis.tex').write_text('x')


def damage(world):
    use_folder(world)
    (world.folder / folder.IDENTITY).write_text('[' * 100_000)


def set_classes(world, names):
    world.classes = names


def drop_demo_file(world):
    world.add_test_pictures()
    (world.data / 'demo.json').unlink()


def twice(world):
    path = world.part('leftImg8bit/val/*/*.png')
    world.add_test_pictures()
    other = world.data / 'leftImg8bit' / 'test' / 'zweitstadt'
    other.mkdir()
    shutil.copy(path, other / 'teststadt_000000_000019_leftImg8bit.png')


def nothing(world):
    """The options alone are wrong."""


BAD = {
    'no checkpoint': (nothing, ['--checkpoint='], '--checkpoint: needs a value'),
    'checkpoint not there': (nothing, ['--checkpoint=/no/iter_1.pth'], 'there is no file /no/iter_1.pth'),
    'checkpoint empty': (lambda w: w.checkpoint.write_bytes(b''), [], 'iter_1.pth is empty'),
    'unknown mode': (nothing, ['--mode=tiles'], "--mode: 'tiles' is not one of whole, slide"),
    'unknown split': (nothing, ['--split=train'], "--split: 'train' is not one of val, test"),
    'flag with a value': (nothing, ['--tta=1'], '--tta takes no value'),
    'option of a training': (nothing, ['--max_iters=5'], 'unknown option --max_iters'),
    'override': (nothing, ['--', 'model.test_cfg.mode=slide'], 'takes no config overrides'),
    'precision': (nothing, ['--amp=fp8'], "--amp: 'fp8' is not one of off, bf16, fp16"),
    'batch size': (nothing, ['--batch_size=0'], '--batch_size: 0 is out of range'),
    'machines': (nothing, ['--nnodes=2'], '--nnodes=2 needs --node_rank'),
    'config not there': (nothing, ['--config=/no/config.py'], 'there is no file /no/config.py'),
    'config of a kind': (lambda w: (w.home / 'c.txt').write_text('x'), ['--config={home}/c.txt'], 'does not end with'),
    'official test': (nothing, ['--official', '--split=test'], '--official: the test split has no labels'),
    'archive of a kind': (nothing, ['--submission={home}/sub.tar'], 'does not end with .zip'),
    'archive is there': (
        lambda w: (w.home / 'sub.zip').touch(),
        ['--submission={home}/sub.zip'],
        'sub.zip is there already',
    ),
    'archive nowhere': (nothing, ['--submission=/no/sub.zip'], '--submission: /no is no folder'),
    'folder cannot be made': (nothing, ['--work_dir=/proc/here'], 'cannot write to /proc'),
    'folder of something else': (occupy, ['--work_dir={home}/out'], 'holds other files, such as thesis.tex'),
    'folder of other options': (
        use_folder,
        ['--work_dir={home}/out', '--tta'],
        'the evaluation of something else (tta: False there, True now)',
    ),
    'folder of another checkpoint': (
        lambda w: (use_folder(w), w.checkpoint.write_bytes(b'others')),
        ['--work_dir={home}/out'],
        'something else (checkpoint_sha256: ',
    ),
    'folder of other pictures': (
        lambda w: (use_folder(w), w.part('leftImg8bit/val/*/*.png').touch()),
        ['--work_dir={home}/out'],
        'something else (pictures_sha256: ',
    ),
    'damaged folder': (damage, ['--work_dir={home}/out'], 'evaluation.json cannot be read: nested'),
    'no data': (nothing, ['--data_path=/no/data'], '--data_path: /no/data: no such folder'),
    'no labels': (lambda w: shutil.rmtree(w.data / 'gtFine'), [], 'gtFine/: missing; unpack'),
    'labels not prepared': (
        lambda w: [path.unlink() for path in w.data.glob('gtFine/val/*/*_labelTrainIds.png')],
        [],
        'cityscapes.py',
    ),
    'picture missing': (lambda w: w.part('leftImg8bit/val/*/*.png').unlink(), [], 'its picture'),
    'picture cut': (lambda w: cut(w.part('leftImg8bit/val/*/*.png')), [], 'damaged or truncated'),
    'labels cut': (lambda w: cut(w.part('gtFine/val/*/*_labelTrainIds.png')), [], 'damaged or truncated'),
    'no label ids': (
        lambda w: w.part('gtFine/val/*/*_labelIds.png').unlink(),
        ['--official'],
        '--official: 1 of 2 files of label ids are missing',
    ),
    'no test pictures': (nothing, ['--split=test'], 'leftImg8bit/test holds no pictures'),
    'too few test pictures': (
        drop_demo_file,
        ['--split=test'],
        'holds 2 pictures (*_leftImg8bit.png), the test split has 1525',
    ),
    'test picture cut': (
        lambda w: (w.add_test_pictures(), cut(w.part('leftImg8bit/test/*/*.png'))),
        ['--split=test'],
        'damaged or truncated',
    ),
    'two pictures of one name': (twice, ['--split=test'], 'have one name'),
    'classes of another number': (lambda w: set_classes(w, ['a', 'b', 'c']), [], 'its 3 classes (a, b, c, ...)'),
    'classes of other names': (lambda w: set_classes(w, ['sky'] * 19), [], 'are not the 19 of Cityscapes'),
}


@pytest.mark.parametrize(('spoil', 'argv', 'said'), BAD.values(), ids=BAD)
def test_it_is_refused_in_one_line_and_nothing_changes(world, spoil, argv, said):
    spoil(world)
    before = cityscapes_sets.digests(world.home)
    with pytest.raises(console.UserError) as caught:
        world.run(*(text.format(home=world.home) for text in argv))
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)
    assert caught.value.status not in (0, -1)
    after = cityscapes_sets.digests(world.home)
    after.pop('data/.verify_cache.json', None)  # which files were found whole
    before.pop('data/.verify_cache.json', None)
    assert after == before


def test_no_checkpoint_at_all():
    with pytest.raises(console.UserError, match='--checkpoint is missing; give --checkpoint=FILE'):
        options.read('evaluate', ['--demo'])


def test_the_good_world_passes(world):
    plan = world.run('--official', f'--submission={world.home}/sub.zip')
    assert [picture.name.split('_')[0] for picture in world.pictures] == ['probeburg'] * 2
    assert plan.folder.parent == world.home / 'output' / 'evaluate_8p'
    assert not plan.folder.exists()
    assert world.run().folder == plan.folder  # what only reads predictions has the same folder
    assert world.run('--tta').folder != plan.folder
    assert json.loads(json.dumps(world.identity)) == world.identity


def test_the_test_split_needs_no_labels(world):
    world.add_test_pictures()
    shutil.rmtree(world.data / 'gtFine')
    world.run('--split=test', f'--submission={world.home}/sub.zip')
    assert len(world.pictures) == 2


def test_train_pictures_are_not_needed(world):
    for part in ('leftImg8bit', 'gtFine'):
        shutil.rmtree(world.data / part / 'train')
    world.run()
    with Image.open(world.pictures[0].path) as opened:
        assert opened.size == (128, 64)


def test_a_folder_whose_start_was_killed_early_is_taken(world):
    world.folder.mkdir()
    for name in ('launcher.log', 'lock.json'):
        (world.folder / name).touch()
    assert world.run(f'--work_dir={world.folder}').folder == world.folder
