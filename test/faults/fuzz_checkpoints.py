"""Loads checkpoints that were changed at random in every way that the recipe loads them, and counts what happens.

    python test/faults/fuzz_checkpoints.py                         # 500 files, seed 0
    python test/faults/fuzz_checkpoints.py --count=50 --seed=7 --json=figures.json
    python test/faults/fuzz_checkpoints.py --seed=0 --only=123     # one file again; --keep=FOLDER keeps it

Each file is loaded in processes of their own under a memory limit: by mmengine's entrance, as weights of a backbone, as
a start (load_from), as dump of a step with its replay, and as a checkpoint to resume from, which goes on to two steps
of a real training. Each way has to end in one of two ways: the file is refused in one line, or the training goes on.
Anything else is a fault: a crash, an error that is not the file's one line, a process, a module or a file that was
started, imported, written or removed, more memory or time than there is. Ends with status 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import pickletools
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'test/faults')]
MEMORY = 1 << 30  # bytes that one way of loading may add to its process
CPU_S = 60
GOOD = ('loaded', 'refused')

import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402

import checkpoint_toy  # noqa: E402
import evil_checkpoints as evil  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# Mutations. Each takes the bytes of a good file and a random generator, and returns others.


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Some bits of the file."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_and_paste(content: bytes, rng: random.Random) -> bytes:
    """A piece of the file, left out, doubled or put elsewhere."""
    begin = rng.randrange(len(content))
    piece = content[begin : begin + rng.choice((1, 16, 300, 5000))]
    rest = content[:begin] + content[begin + len(piece) :]
    place = rng.randrange(len(rest) + 1)
    return rng.choice((rest, rest[:place] + piece + rest[place:], content[:place] + piece + content[place:], piece))


def directory(content: bytes, rng: random.Random) -> bytes:
    """A number in the directory or the end of the archive."""
    start = content.find(b'PK\1\2')
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(start, len(changed) - 4) if start >= 0 else rng.randrange(len(changed) - 4)
        changed[place : place + 4] = struct.pack('<I', rng.choice((0, 1, 0xFFFF, 0xFFFFFFFF, rng.getrandbits(32))))
    return bytes(changed)


def records(content: bytes, rng: random.Random) -> bytes:
    """Records left out, added, renamed, swapped, emptied or compressed; the archive itself is whole."""
    found = evil.records_of(content)
    names = list(found)
    one, other = rng.choice(names), rng.choice(names)
    folder = one.partition('/')[0]
    kind = rng.randrange(8)
    if kind == 0:
        del found[one]
    elif kind == 1:
        found[one], found[other] = found[other], found[one]
    elif kind == 2:
        found[one] = found[one][: len(found[one]) // 2]
    elif kind == 3:
        found[one] += bytes(rng.choice((1, 4, 1 << 16)))
    elif kind == 4:
        found[f'{folder}/{rng.choice(("constants.pkl", "byteorder", "code/a.py", "DATA.PKL", "data.pkl/x"))}'] = b'big'
    elif kind == 5:
        found = {
            name.replace('data', rng.choice(('x', 'data/data', '../data', '\u00e4'))): found[name] for name in names
        }
    elif kind == 6:
        return evil.zip_of(found, zipfile.ZIP_DEFLATED)
    else:
        file = io.BytesIO(evil.zip_of(found))
        with warnings.catch_warnings(), zipfile.ZipFile(file, 'a') as archive:
            warnings.simplefilter('ignore')
            archive.writestr(one, found[other])
        return file.getvalue()
    return evil.zip_of(found)


def ends(content: bytes, rng: random.Random) -> bytes:
    """A second end of the archive, with a program behind one of them."""
    trace = Path.cwd() / 'ran'
    other = rng.choice((evil.program, lambda _: evil.zipped({'state_dict': {}})))(trace)
    pair = (content, other) if rng.randrange(3) else (other, content)
    made = evil.with_two_ends(*pair)
    return flip_bits(made, rng) if rng.randrange(2) else made


_NAMES = [
    *('builtins exec', 'builtins eval', 'builtins getattr', 'builtins list', 'builtins bytearray', 'builtins range'),
    *('posix system', 'os system', 'subprocess Popen', 'torch.hub load', 'torch load', 'numpy dtype', 'numpy ndarray'),
    *('numpy.core.multiarray scalar', 'numpy.core.multiarray _reconstruct', 'numpy._core.multiarray scalar'),
    *('torch FloatStorage', 'torch QInt8Storage', 'torch.storage UntypedStorage', 'torch Tensor', 'torch Size'),
    *('torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_tensor', 'torch._utils _rebuild_parameter'),
    *('torch._utils _rebuild_sparse_tensor', 'torch._utils _rebuild_qtensor', 'torch._utils _rebuild_wrapper_subclass'),
    *('torch.nn.parameter Parameter', 'torch device', 'torch float64', 'torch quint8', 'collections OrderedDict'),
    *(
        'collections defaultdict',
        'collections deque',
        'collections Counter',
        '_codecs encode',
        'copyreg _reconstructor',
    ),
    *('mmengine.logging.history_buffer HistoryBuffer', 'mmengine.config.config ConfigDict', '__builtin__ set'),
]
_NUMBERS = [0, 1, -1, 2, 3, 8, 255, 624, 65535, 1 << 20, (1 << 31) - 1, -(1 << 31)]


def _snippet(rng: random.Random) -> bytes:
    """Instructions that may stand anywhere in a pickle."""
    name = rng.choice(_NAMES).replace(' ', '\n').encode()
    number = struct.pack('<i', rng.choice(_NUMBERS))
    return rng.choice(
        (
            b'c' + name + b'\n',
            b'c' + name + b'\n)R',
            b'c' + name + b'\nJ' + number + b'\x85R',
            b'c' + name + b'\n(J' + number + b'J' + number + b'J' + number + b'tR',
            b'c' + name + b'\n)\x81}b',
            b'J' + number,
            b'}b',
            b'Nb',
            b'(l',
            b'h' + number[:1],
            b'q' + number[:1],
            b'Q',
            b'\x85',
            b'\x88',
            b'0',
            b'\x8f',
            b'\x8b\xff\xff\xff\x7f',
            b'X' + number,
            b'\x96\xff\xff\xff\xff\xff\xff\x00\x00',
            b']' * rng.choice((1, 500)) + b'a' * rng.choice((1, 500)),
            b'\x8a\x04' + number,
        )
    )


def instructions(pickled: bytes, rng: random.Random) -> bytes:
    """Instructions of the pickle left out, doubled, swapped, put in, and their numbers and names changed."""
    places = []
    with contextlib.suppress(ValueError):  # a pickle that was changed before
        places = [place for _, _, place in pickletools.genops(pickled)]
    if len(places) < 3:
        return pickled + _snippet(rng)
    parts = [pickled[begin:end] for begin, end in zip(places, [*places[1:], len(pickled)])]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(1, len(parts))
        kind = rng.randrange(7)
        if kind == 0:
            parts[at] = b''
        elif kind == 1:
            parts[at] *= 2
        elif kind == 2:
            other = rng.randrange(1, len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts.insert(at, _snippet(rng))
        elif kind == 4:
            numbers = [place for place, part in enumerate(parts) if part[:1] in b'KMJ' and len(part) > 1]
            parts[rng.choice(numbers)] = b'J' + struct.pack('<i', rng.choice(_NUMBERS)) if numbers else b''
        elif kind == 5:
            names = [place for place, part in enumerate(parts) if part[:1] == b'c']
            parts[rng.choice(names) if names else at] = b'c' + rng.choice(_NAMES).replace(' ', '\n').encode() + b'\n'
        else:
            parts[at] = bytes([rng.randrange(256)]) + parts[at][1:]
    return b''.join(parts)


def pickle_of_archive(content: bytes, rng: random.Random) -> bytes:
    """The pickle, in an archive whose checksums fit."""
    return evil.with_pickle(content, lambda pickled: instructions(pickled, rng))


def _anywhere(content: Any, rng: random.Random) -> Tuple[Any, Any]:
    """A container within a checkpoint, and one of its keys."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        value = content[key]
        if not isinstance(value, (dict, list)) or not value or not rng.randrange(4):
            return content, key
        content = value


class _View(torch.Tensor):
    """Pickles as a view of a small storage, wherever it lies."""

    def __reduce_ex__(self, protocol: int) -> tuple:
        return torch._utils._rebuild_tensor_v2, (self.of, *self.place, False, OrderedDict())


def _strange(rng: random.Random) -> Any:
    """A value that no checkpoint holds there."""
    size = rng.choice((0, 1, 2, 4, 1000, 1 << 20, 1 << 31, 1 << 45, -1))
    kind = rng.randrange(14)
    if kind == 0:
        return rng.choice(list(evil.numpy_faults().values()))
    if kind == 1:
        made = _View()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            made.of = torch.ones(4).storage()
        made.place = (rng.choice((0, 1, size)), (size, rng.choice((1, 2, size))), (rng.choice((0, 1, size)), 1))
        return made
    if kind == 2:
        value: Any = rng.choice((list, tuple))()
        for _ in range(rng.choice((5, 150))):
            value = type(value)([value] * rng.choice((1, 2)))
        return value
    if kind == 3:
        value = [1]
        value.append(value)
        return value
    if kind == 4:
        return evil.touching(Path.cwd() / 'ran')
    if kind == 5:
        call = rng.choice((bytearray, bytes, list, range, torch.Tensor, torch.Size, np.dtype, set, OrderedDict))
        return evil.Reduced(call, (rng.choice((size, range(abs(size)), 'f8', [size])),))
    if kind == 6:
        return f'open({str(Path.cwd() / "ran")!r}, "w")\n'
    if kind == 7:
        return torch.zeros(
            tuple(rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randrange(4))),
            dtype=rng.choice((torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.bfloat16)),
        )
    if kind == 8:
        return np.zeros(rng.choice((0, 1, 624)), rng.choice(('f4', 'u4', '>i8', 'c16', '?')))
    if kind == 9:
        return HistoryBuffer([1.0], [1])
    if kind == 10:
        return rng.choice(('', '../../mine.pth', '/etc/hostname', '\x1b[2J', '\ud800', 'a' * 100000))
    if kind == 11:
        return rng.choice((float('nan'), float('inf'), -1.5, size, True, None, b'x', 1j, 1 << 5000))
    if kind == 12:
        return ['../mine.pth', str(Path.cwd().parent / 'mine.pth'), 'iter_1.pth']
    return {rng.choice((1, 'step', 'params', None, ('a',))): rng.choice((1, 'x', [], {}))}


def _changed(content: bytes, rng: random.Random, zipped: bool) -> bytes:
    loaded = torch.load(io.BytesIO(content), weights_only=False)
    for _ in range(rng.choice((1, 1, 2, 4))):
        container, key = _anywhere(loaded, rng)
        if isinstance(container, dict) and not rng.randrange(5):
            del container[key]
            if not container:
                break
        elif isinstance(container, dict) and not rng.randrange(6):
            container[rng.choice(('config', 'step', 'superseded_ckpts', 0, '__class__', ('a', 'b')))] = _strange(rng)
        else:
            container[key] = _strange(rng)
    file = io.BytesIO()
    try:
        torch.save(loaded, file, _use_new_zipfile_serialization=zipped)
    except (RecursionError, TypeError, AttributeError, pickle.PicklingError):
        return _changed(content, rng, zipped)
    return file.getvalue()


def values(content: bytes, rng: random.Random) -> bytes:
    """Values of the checkpoint: types, shapes, sizes, nesting; the file is what ``torch.save`` writes."""
    return _changed(content, rng, True)


def legacy_values(content: bytes, rng: random.Random) -> bytes:
    """The same in torch's legacy format."""
    return _changed(content, rng, False)


def legacy_bytes(content: bytes, rng: random.Random) -> bytes:
    """A legacy file, its bytes or its instructions changed."""
    loaded = torch.load(io.BytesIO(content), weights_only=False)
    file = io.BytesIO()
    torch.save(loaded, file, _use_new_zipfile_serialization=False)
    return rng.choice((flip_bits, cut_and_paste, lambda content, rng: _legacy_instructions(content, rng)))(
        file.getvalue(), rng
    )


def _legacy_instructions(content: bytes, rng: random.Random) -> bytes:
    file = io.BytesIO(content)
    for _ in range(3):
        pickle.load(file)
    begin = file.tell()
    for _ in pickletools.genops(file):
        pass
    end = file.tell()
    return content[:begin] + instructions(content[begin:end], rng) + content[end:]


MUTATIONS: Dict[str, Tuple[Callable[[bytes, random.Random], bytes], int]] = {
    'bits of the file': (flip_bits, 2),
    'pieces of the file': (cut_and_paste, 1),
    'zip directory': (directory, 2),
    'zip records': (records, 2),
    'two zip ends': (ends, 1),
    'pickle instructions': (pickle_of_archive, 5),
    'values': (values, 6),
    'values, legacy': (legacy_values, 2),
    'bytes and instructions, legacy': (legacy_bytes, 2),
}

# ---------------------------------------------------------------------------------------------------------------------
# Ways of loading. Each takes the path of a file in a folder of its own, and raises what a user would see.


def by_mmengine(path: Path) -> None:
    """``CheckpointLoader``: init_cfg, load_from and everything else of mmengine."""
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.load_checkpoint(str(path), map_location='cpu')


def as_pretrained(path: Path) -> None:
    """``--pretrained``."""
    from recipe.engine import weights

    layer = torch.nn.Linear(3, 8)
    weights.compare(path, dict(layer.named_parameters()), {})


def as_start(path: Path) -> None:
    """``load_from``, in the launcher and then in a rank."""
    from recipe.engine import weights

    runner = checkpoint_toy.make(path.parent / 'run', max_iters=2, load_from=path)
    weights.require_start(path, runner.model)
    runner.train()


def as_resumed(path: Path) -> None:
    """``--resume=1``, in the launcher and then in a rank, for two steps."""
    from recipe.engine.checkpoint import find_resumable, misfit

    runner = checkpoint_toy.make(path.parent / 'run', max_iters=4, load_from=path, resume=True)
    runner.optim_wrapper = wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = schedulers = runner.build_param_scheduler(runner.param_schedulers)
    find_resumable(str(path.parent), lambda content: misfit(content, runner.model, wrapper, schedulers))
    runner.train()


def as_unseen(path: Path) -> None:
    """``--resume`` of tools/train.py, where no launcher has compared anything."""
    from recipe.engine.checkpoint import find_resumable

    found, _ = find_resumable(str(path.parent))
    checkpoint_toy.make(path.parent / 'run', max_iters=4, load_from=found, resume=True).train()


def as_dump(path: Path) -> None:
    """tools/replay_step.py."""
    from recipe.engine import replay

    dump = path.with_name('iter_2_rank_0.pth')
    path.rename(dump)
    shutil.copy(good_files()['weights'], path.with_name('iter_2_weights.pth'))
    replay.replay(replay.load(str(dump)), 'cpu')


def as_weights_of_dump(path: Path) -> None:
    """The same with the other file of the two."""
    from recipe.engine import replay

    path.rename(path.with_name('iter_2_weights.pth'))
    dump = path.with_name('iter_2_rank_0.pth')
    shutil.copy(good_files()['dump'], dump)
    replay.replay(replay.load(str(dump)), 'cpu')


# name of the way: the good file that is changed for it
WAYS: Dict[Callable[[Path], None], str] = {
    by_mmengine: 'checkpoint',
    as_pretrained: 'checkpoint',
    as_start: 'checkpoint',
    as_resumed: 'checkpoint',
    as_unseen: 'checkpoint',
    as_dump: 'dump',
    as_weights_of_dump: 'weights',
}
_FILES: Dict[str, Path] = {}

CONFIG = """
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(8, 8), mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]),
    backbone=dict(
        type='UNet',
        base_channels=4,
        num_stages=2,
        strides=(1, 1),
        enc_num_convs=(1, 1),
        dec_num_convs=(1, ),
        downsamples=(True, ),
        enc_dilations=(1, 1),
        dec_dilations=(1, ),
        norm_cfg=dict(type='GN', num_groups=1)),
    decode_head=dict(
        type='FCNHead', in_channels=4, channels=4, num_classes=3, num_convs=1, concat_input=False, in_index=1),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1))
"""


def good_files() -> Dict[str, Path]:
    """The files that are changed, by what they are; made when they are asked for first."""
    return _FILES


def make_good_files(folder: Path) -> None:
    """Train the toy, and write what a step that is not finite would leave."""
    import mmseg.models  # noqa: F401  registers them
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from recipe.core.config_text import read_config
    from recipe.data import random_state
    from recipe.engine import replay
    from recipe.engine.nonfinite import BadStep, write_dump

    _FILES['checkpoint'] = checkpoint_toy.checkpoint(folder)
    sample = SegDataSample(metainfo={'img_path': 'a.png', 'img_shape': (8, 8), 'pad_shape': (8, 8)})
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.long))
    step = BadStep(2, {'inputs': [torch.zeros(3, 8, 8)], 'data_samples': [sample]}, random_state.capture())
    _FILES['dump'] = Path(write_dump(str(folder), step, 0, 1, 'iter_2_weights.pth'))
    state = MODELS.build(read_config(CONFIG)['model']).state_dict()
    _FILES['weights'] = folder / 'iter_2_weights.pth'
    torch.save({'state_dict': state, 'meta': {'cfg': CONFIG, 'iter': 1}}, _FILES['weights'])
    replay.replay(replay.load(str(_FILES['dump'])), 'cpu')  # and has what it needs imported


# ---------------------------------------------------------------------------------------------------------------------
# One file


_EVENTS = ('os.system', 'subprocess.Popen', 'os.exec', 'os.posix_spawn', 'socket.connect', 'ctypes.dlopen')
_CHANGES = (
    'os.mkdir',
    'os.remove',
    'os.rename',
    'os.rmdir',
    'os.chmod',
    'os.link',
    'os.symlink',
    'os.truncate',
    'shutil.rmtree',
)

# mmengine notes versions when a Runner is made and when it saves
_OF_MMENGINE = (['/bin/sh', '-c', 'gcc --version'], ['git', 'rev-parse', 'HEAD'])


def _watch(mine: Path, seen: List[str]) -> None:
    """Note what this process does from now on besides reading: programs, and changes outside of its folder."""

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  does not follow links
        return not place.startswith((f'{mine}/run', f'{mine}/iter_2', '/dev/null', '/proc/', '/dev/shm'))

    def hook(event: str, args: tuple) -> None:
        if event == 'subprocess.Popen' and list(args[1]) in _OF_MMENGINE:
            return
        if event in _EVENTS:
            seen.append(f'ran: {event} {args!r}'[:200])
        elif event in _CHANGES and outside(args[0]):
            seen.append(f'wrote: {event} {args!r}'[:200])
        elif event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and outside(args[0]):
            seen.append(f'wrote: {args!r}'[:200])

    sys.addaudithook(hook)


def _outcome(way: Callable, path: Path, seen: List[str]) -> Tuple[str, str]:
    """What one way of loading makes of a file."""
    from recipe.core import console
    from recipe.engine.checkpoint import CheckpointError

    try:
        way(path)
    except (CheckpointError, console.UserError) as error:
        kind, text = 'refused', str(error)
        if '\n' in text or not text.replace('\u2026', '').isprintable():
            kind = 'not one line'
    except BaseException as error:
        import traceback

        kind, text = 'error', f'{type(error).__name__}: {error} {traceback.format_exc()[-1500:]}'
    else:
        kind, text = 'loaded', ''
    if (path.parent / 'ran').exists():
        seen.append('ran: the program of the file')
    return (seen[0].split(':')[0], '; '.join(seen)) if seen else (kind, text)


def attempt(way: Callable, content: bytes, folder: Path) -> Dict[str, Any]:
    """Load a file in one way, in a process with limits, in a folder of its own.

    Returns:
        ``outcome``, ``text``, ``seconds`` and ``mebibytes`` that it took.
    """
    mine = folder / way.__name__
    mine.mkdir()
    (folder / 'mine.pth').write_bytes(b'mine')
    path = mine / 'iter_2.pth'
    path.write_bytes(content)
    answer = mine.with_suffix('.json')
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(mine)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(quiet, stream)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            mapped = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            torch.set_num_threads(1)
            seen: List[str] = []
            _watch(mine, seen)
            outcome, text = _outcome(way, path, seen)
            peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            del seen[:]
            found = {'outcome': outcome, 'text': text, 'mebibytes': (peak - base) / 1024}
            answer.write_text(json.dumps(found))
        finally:
            os._exit(0)
    _, status, _ = os.wait4(child, 0)
    seconds = time.monotonic() - began
    died = f'signal {os.WTERMSIG(status)}' if os.WIFSIGNALED(status) else 'no answer'
    found = {'outcome': 'crashed', 'text': died, 'mebibytes': 0.0}
    if answer.is_file() and answer.stat().st_size:
        found = json.loads(answer.read_text())
    if not (folder / 'mine.pth').exists() or list(folder.glob('ran')):
        found = {**found, 'outcome': 'wrote', 'text': "a file beside the run's folder"}
    return {**found, 'seconds': seconds}


def make_file(number: int, seed: int, what: str) -> Tuple[str, bytes]:
    """A changed file, which depends on its number and the seed alone.

    Returns:
        Name of the mutation, and the content.
    """
    rng = random.Random(f'{seed} {number}')
    good = good_files()[what].read_bytes()
    names = [name for name, (_, weight) in MUTATIONS.items() for _ in range(weight)]
    mutation = names[number % len(names)]
    content = good
    for _ in range(20):
        content = MUTATIONS[mutation][0](good, rng)
        if content != good:
            break
    return mutation, content


def campaign(numbers: List[int], seed: int, keep: Any = None, say: Callable[[str], None] = print) -> Dict[str, Any]:
    """Load changed files in every way.

    Args:
        numbers: Of the files.
        seed: Of all of them.
        keep: Folder for the files that found a fault; None to keep none.
        say: Called with a line for each fault.

    Returns:
        Figures: ``files``, ``outcomes`` by way, ``mutations``, ``faults``, the slowest, and the most memory.
    """
    outcomes: Dict[str, Counter] = {way.__name__: Counter() for way in WAYS}
    by_mutation: Dict[str, Counter] = {name: Counter() for name in MUTATIONS}
    faults, slowest, largest = [], {'seconds': 0.0}, {'mebibytes': 0.0}
    with tempfile.TemporaryDirectory() as folder:
        make_good_files(Path(folder))
        for number in numbers:
            for way, what in WAYS.items():
                place = Path(folder) / f'{number}_{way.__name__}'
                place.mkdir()
                here = Path.cwd()
                os.chdir(place)
                (place / way.__name__).mkdir()
                os.chdir(place / way.__name__)  # programs in the file name this folder
                mutation, content = make_file(number, seed, what)
                os.chdir(here)
                (place / way.__name__).rmdir()
                found = attempt(way, content, place)
                found.update(number=number, way=way.__name__, mutation=mutation)
                outcomes[way.__name__][found['outcome']] += 1
                by_mutation[mutation][found['outcome']] += 1
                slowest = max(slowest, found, key=lambda one: one['seconds'])
                largest = max(largest, found, key=lambda one: one['mebibytes'])
                if found['outcome'] not in GOOD:
                    faults.append(found)
                    say(f'file {number} ({mutation}), {way.__name__}: {found["outcome"]}: {found["text"]}')
                    if keep is not None:
                        Path(keep).mkdir(parents=True, exist_ok=True)
                        (Path(keep) / f'{number}_{way.__name__}.pth').write_bytes(content)
                shutil.rmtree(place)
    return {
        'files': len(numbers),
        'seed': seed,
        'loads': sum(sum(counts.values()) for counts in outcomes.values()),
        'outcomes': {way: dict(counts) for way, counts in outcomes.items()},
        'mutations': {name: dict(counts) for name, counts in by_mutation.items()},
        'faults': faults,
        'slowest_s': {name: slowest.get(name) for name in ('seconds', 'number', 'way', 'mutation', 'outcome')},
        'largest_MiB': {name: largest.get(name) for name in ('mebibytes', 'number', 'way', 'mutation', 'outcome')},
    }


def main() -> None:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--count', type=int, default=500, help='files; default: 500')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    parser.add_argument('--only', type=int, help='number of one file')
    parser.add_argument('--keep', help='folder for files that found a fault')
    parser.add_argument('--json', help='file to write the figures to')
    asked = parser.parse_args()
    numbers = list(range(asked.count)) if asked.only is None else [asked.only]
    began = time.monotonic()
    figures = campaign(numbers, asked.seed, asked.keep, lambda line: print(line, flush=True))
    figures['wall_s'] = round(time.monotonic() - began, 1)
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=2) + '\n')
    print(json.dumps({name: value for name, value in figures.items() if name != 'faults'}, indent=2))
    sys.exit(1 if figures['faults'] else 0)


if __name__ == '__main__':
    from recipe.core import left_out

    left_out.leave_out_other_models()
    main()
