"""Faults of files: checkpoints and pictures that are damaged, disks that are full, read-only or gone."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from functools import partial
from pathlib import Path
from random import Random
from typing import Callable, Dict

import torch

from fault import UnavailableError, kind
from fault_bench import Bench, iterations, newest_good
from recipe.engine.checkpoint import CheckpointError, find_resumable
from resume_faults import at_iteration, fill_disk
from resume_job import MAX_ITERS, assert_same_end, recipe, train


def cut(path: Path, random: Random) -> str:
    size = random.randrange(1, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return f'cut to {size} bytes'


def flip(path: Path, random: Random) -> str:
    content = bytearray(path.read_bytes())
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(bytes(content))
    return f'bit {bit} of byte {place} of {len(content)} flipped'


def empty(path: Path, random: Random) -> str:
    path.write_bytes(b'')
    return 'empty'


def zeros(path: Path, random: Random) -> str:
    """What a file system may leave after a loss of power."""
    size = path.stat().st_size
    begin = random.randrange(size)
    content = path.read_bytes()
    path.write_bytes(content[:begin] + bytes(size - begin))
    return f'zeros from byte {begin} on'


def foreign(path: Path, random: Random) -> str:
    what: Dict[str, object] = {
        'weights alone': {'state_dict': {'weight': torch.zeros(3)}},
        'a tensor': torch.zeros(3),
        'a list': [1, 2],
        'an empty dict': {},
        'a dict without its iteration': {
            name: {} for name in ('state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta')
        },
    }
    name = random.choice(sorted(what))
    torch.save(what[name], path)
    return name


def page(path: Path, random: Random) -> str:
    path.write_text('<html>404 Not Found</html>')
    return 'an error page'


def folder_instead(path: Path, random: Random) -> str:
    path.unlink()
    path.mkdir()
    return 'a folder'


def deleted(path: Path, random: Random) -> str:
    path.unlink()
    return 'deleted'


DAMAGES = (cut, flip, empty, zeros, foreign, page, deleted)


def damage(bench: Bench, random: Random, how: Callable[[Path, Random], str]) -> str:
    """The newest checkpoint is damaged: an older one is gone on from."""
    before = random.choice([5, 7, 9, 11])
    folder = bench.stopped(1, before)
    newest, older = before - 1, before - 3
    path = folder / f'iter_{newest}.pth'
    for best in folder.glob(f'best_*_iter_{newest}.pth'):
        best.unlink()  # another name of the same file
    what = how(path, random)
    found = newest_good(folder)
    # A flipped bit may be in a part of the archive that means nothing.
    assert found == older or (how is flip and found == newest), found
    bench.finish(folder, 1, least=older)
    return f'iter_{newest}.pth: {what}; resumed at iteration {found}, same end'


def register() -> None:
    for how in DAMAGES:
        name = f'newest checkpoint: {how.__name__}'
        kind(name, 2)(partial(damage, how=how))


register()


@kind('every checkpoint damaged')
def all_damaged(bench: Bench, random: Random) -> str:
    folder = bench.stopped(1, 7)
    for path in folder.glob('*.pth'):
        random.choice([cut, empty, page])(path, random)
    content = {path: path.read_bytes() for path in folder.glob('*.pth')}
    try:
        find_resumable(str(folder))
    except CheckpointError as error:
        assert 'iter_6.pth' in str(error)
        assert '\n' not in str(error)
    else:
        raise AssertionError('a damaged checkpoint passes')
    assert content == {path: path.read_bytes() for path in folder.glob('*.pth')}, 'files were changed'
    return 'all damaged: refused, no file changed'


@kind('last_checkpoint deleted')
def last_checkpoint_deleted(bench: Bench, random: Random) -> str:
    folder = bench.stopped(1, 9)
    (folder / 'last_checkpoint').unlink()
    for log in folder.glob('*/vis_data/*'):
        log.unlink()
    bench.finish(folder, 1, least=8)
    return 'last_checkpoint and logs deleted; same end'


@kind('disk full for good', 2)
def disk_full(bench: Bench, random: Random) -> str:
    """No file takes more than some size, which is less than a checkpoint's."""
    first, folder, world = random.choice([4, 6, 8, 10]), bench.new_folder(), random.choice([1, 2])
    outcome = train(recipe(bench.data, folder), world, sabotage=partial(fill_disk, first, MAX_ITERS + 1))
    assert outcome.codes == [1] * world, outcome.output
    assert 'the last checkpoint, after iteration 12, could not be written' in outcome.output, outcome.output
    saved = (first - 1) // 2 * 2
    assert newest_good(folder) == saved
    bench.finish(folder, world, least=saved)
    return f'full from iteration {first} on; trained on, ended with an error, resumed at {saved}, same end'


class Disk:
    """A small file system in memory.

    Args:
        place: Where it is mounted; made.
        size: Bytes.
    """

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        place.mkdir()
        done = subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UnavailableError(f'no file system can be mounted here: {done.stderr.strip()}')

    def fill(self) -> None:
        """Use up what is free."""
        with contextlib.suppress(OSError), (self.place / 'filler').open('wb', buffering=0) as file:
            for size in (1 << 20, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self) -> None:
        """Undo ``fill``."""
        (self.place / 'filler').unlink()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(['umount', '-l', str(self.place)], capture_output=True, check=False)


@kind('small file system runs full', 2)
def small_disk(bench: Bench, random: Random) -> str:
    place = bench.new_folder()  # room for less than the best checkpoint, the two newest and the next one
    checkpoint = next(iter(bench.unbroken(1).glob('iter_*.pth'))).stat().st_size
    size = int(checkpoint * random.uniform(1.2, 3.8))
    with Disk(place, size):
        folder = place / 'run'
        outcome = train(recipe(bench.data, folder))
        ended, saved = outcome.codes[0], newest_good(folder)
        kept = bench.new_folder()
        shutil.copytree(folder, kept)
    if ended == 0:
        assert 'could not be written' in outcome.output, outcome.output[-2000:]
        return f'{size} bytes: too little for the best checkpoint only; trained to the end'
    assert 'could not be written' in outcome.output, outcome.output[-2000:]
    bench.finish(kept, 1, least=saved or 0)
    return f'{size} bytes; ended with an error, {saved} iterations saved; resumed elsewhere, same end'


def on_disk(bench: Bench, random: Random, name: str, command: str) -> str:
    """Something happens to the file system in the middle of the training."""
    place = bench.new_folder()
    number = random.randint(3, MAX_ITERS - 1)
    with Disk(place, 200 << 20):
        folder = place / 'run'
        cfg = recipe(bench.data, folder)
        bench.unbroken(1)
        outcome = train(cfg, sabotage=partial(at_iteration, number, command.format(place=place)))
        assert outcome.codes == [1], outcome.output[-3000:]
        said = outcome.output
        if name == 'read-only':
            subprocess.run(['umount', str(place)], check=True)
            saved = newest_good(folder)
            assert saved == (number - 1) // 2 * 2, (saved, number)
            assert 'could not be written' in said, said[-2000:]
            kept = bench.new_folder()
            shutil.copytree(folder, kept)
            bench.finish(kept, 1, least=saved)
            return f'read-only from iteration {number} on; ended with an error, resumed at {saved}, same end'
    left = [path for path in place.rglob('*') if path.is_file() and path.suffix == '.pth']
    assert not left, f'checkpoints were written to where the file system had been: {left}'
    return f'file system gone from iteration {number} on; refused to write checkpoints elsewhere'


@kind('file system turns read-only')
def read_only(bench: Bench, random: Random) -> str:
    """For whatever is opened from then on; what is open, such as the log, would keep the whole from being remounted."""
    return on_disk(bench, random, 'read-only', 'mount --bind {place} {place} && mount -o remount,ro,bind {place}')


@kind('file system vanishes')
def vanishes(bench: Bench, random: Random) -> str:
    return on_disk(bench, random, 'gone', 'umount -l {place}')


@kind('picture damaged', 2)
def picture_damaged(bench: Bench, random: Random) -> str:
    """In a copy of the data set; put right, the training goes on."""
    data = bench.new_folder()
    shutil.copytree(bench.data, data)
    picture = random.choice(sorted(data.glob('leftImg8bit/train/*/*.png')))
    good = picture.read_bytes()
    how = random.choice([cut, empty, page, zeros])
    what = how(picture, random)
    folder = bench.new_folder()
    outcome = train(recipe(data, folder))
    saved = max(iterations(folder), default=0)
    if outcome.codes == [0]:
        # What is lost lies behind the last row that a crop shows.
        assert how in (cut, zeros), outcome.output[-2000:]
        return f'{picture.name}: {what}; not looked at by any crop, same end'
    assert outcome.codes == [66], outcome.codes
    assert picture.name in outcome.output.splitlines()[-1], outcome.output[-2000:]
    picture.write_bytes(good)
    resumed = newest_good(folder)
    again = train(recipe(data, folder), resume=resumed is not None)
    assert again.codes == [0], again.output[-2000:]
    assert_same_end(folder, bench.unbroken(1))
    return f'{picture.name}: {what}; named, put right, resumed at {saved}, same end'


@kind('run folder moved')
def moved(bench: Bench, random: Random) -> str:
    folder = bench.stopped(1, 9)
    elsewhere = bench.new_folder()
    folder.replace(elsewhere)
    bench.finish(elsewhere, 1, least=8)
    return 'moved elsewhere; same end'
