"""Whatever a user gets wrong ends as one line that says so, a non-zero status, and nothing changed on disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

import pytest
import torch
from PIL import Image

import evil_checkpoints
import launch_driver
from launch_sandbox import TINY, TINY_OVERRIDES, Sandbox, in_namespace, snapshot
from recipe.core.run_lock import RunLock
from recipe.engine import config as run_config
from recipe.engine.checkpoint import find_resumable, misfit

CPU = ['--device=cpu', '--nproc=1']


class Answer(NamedTuple):
    """What a launcher did."""

    status: int
    out: str
    err: str


class World:
    """A sandbox, a good data set in it, and a process that runs launch.py quickly."""

    def __init__(self, folder: Path) -> None:
        self.sandbox = Sandbox(folder)
        self.home = self.sandbox.home
        # So many labels that classes which do not occur in them cannot be chance.
        self.data = self.sandbox.make_data('data', train=24, val=2)
        self.messages = folder / 'messages'
        self.messages.mkdir()
        self.driver = subprocess.Popen(
            [sys.executable, str(launch_driver.__file__), str(self.sandbox.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.sandbox.env,
            cwd=str(self.home),
        )
        # Meanwhile matplotlib, on its first import, has filled its cache in the home.
        assert self.driver.stdout.readline() == 'ready\n'

    def shell(self, script: str, *argv: str, prefix=(), **env: str) -> Answer:
        """What ``bash test/train_*.sh`` does."""
        done = self.sandbox.run(script, *argv, prefix=prefix, **env)
        return Answer(done.returncode, done.stdout, done.stderr)

    def launch(self, *argv: str, script: str = 'full', **env: str) -> Answer:
        """What the same does from launch.py on, which parses the options: ten times as fast."""
        out, err = self.messages / 'out', self.messages / 'err'
        job = {'argv': [script, *argv], 'env': env, 'out': str(out), 'err': str(err)}
        self.driver.stdin.write(json.dumps(job) + '\n')
        self.driver.stdin.flush()
        status = int(self.driver.stdout.readline())
        return Answer(status, out.read_text(), err.read_text())

    def copy_of_data(self, name: str) -> Path:
        """A data set to spoil; what demo.json says of it stays true."""
        shutil.copytree(self.data, self.home / name)
        return self.home / name

    def refuses(self, act: Callable[[], Answer], said: str) -> Answer:
        """Assert that something is refused as it has to be; return what it said."""
        folders = (self.sandbox.root, self.home)
        before = snapshot(*folders)
        answer = act()
        after = snapshot(*folders)
        errors = [line for line in answer.err.splitlines() if line.startswith('error:')]
        assert answer.status not in (0, -1), answer
        assert len(errors) == 1, answer
        assert said in errors[0], answer
        assert 'Traceback' not in answer.out + answer.err, answer
        assert 'Final' not in answer.out, answer
        assert _changes(before, after) == []
        return answer


def _changes(before: Dict, after: Dict) -> List[str]:
    """Paths that differ, without what is there to make the next look faster.

    That is the note in a data set of which files were found whole, and objects in git's store that nothing refers to.
    """
    changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    notes = {path for path in changed if Path(path).name == '.verify_cache.json' or '/.git/objects' in path}
    return sorted(changed - notes - {str(Path(path).parent) for path in notes})


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp('world'))
    yield made
    made.driver.stdin.close()
    made.driver.wait(600)


OPTIONS = {
    'unknown option': (['--demo', '--batchsize=4'], 'did you mean --batch_size?'),
    'option with dashes': (['--demo', '--batch-size=4'], 'did you mean --batch_size?'),
    'missing value': (['--demo', '--batch_size'], '--batch_size needs a value'),
    'option in place of a value': (['--batch_size', '--demo'], '--batch_size needs a value'),
    'empty value': (['--demo', '--work_dir='], '--work_dir: needs a value'),
    'a word for a number': (['--demo', '--batch_size=two'], "'two' is not a whole number"),
    'a fraction': (['--demo', '--batch_size', '1.5'], "'1.5' is not a whole number"),
    'no images': (['--demo', '--batch_size=0'], '--batch_size: 0 is out of range'),
    'zero workers': (['--demo', '--nproc=0'], '--nproc: 0 is out of range'),
    'fewer than no loaders': (['--demo', '--num_workers', '-1'], '--num_workers: -1 is out of range'),
    'no iterations': (['--demo', '--max_iters=0'], '--max_iters: 0 is out of range'),
    'no validation': (['--demo', '--val_interval=0'], '--val_interval: 0 is out of range'),
    'negative seed': (['--demo', '--seed=-3'], '--seed: -3 is out of range'),
    'unknown device': (['--demo', '--device=tpu'], "--device: 'tpu' is not one of"),
    'unknown precision': (['--demo', '--amp=fp8'], "--amp: 'fp8' is not one of"),
    'resume by word': (['--demo', '--resume=maybe'], "--resume: 'maybe' is not one of 0, 1"),
    'value of a switch': (['--demo=1'], '--demo takes no value'),
    'stray word': (['--demo', 'fast'], "unexpected argument 'fast'"),
    'override without value': (['--demo', '--', 'train_cfg.max_iters'], 'is not key=value'),
    'override with open bracket': (['--demo', '--', 'a=[1'], 'unbalanced brackets'),
    'option behind the overrides': (['--demo', '--', '--seed=1'], 'comes after the lone --'),
    'port out of range': (['--demo', '--master_port=70000'], '--master_port: 70000 is out of range'),
    'machines without addresses': (['--demo', '--nnodes=2'], '--nnodes=2 needs --node_rank, --master_addr'),
    'machine that is not there': (['--demo', '--node_rank=1'], '--node_rank=1 is out of range'),
    'address of another machine': (['--demo', '--master_addr=192.0.2.1'], 'is not an address of this machine'),
    'nothing to resume': (['--demo', '--resume=1'], '--resume=1: there is no checkpoint in'),
    'no data': ([], 'there is no Cityscapes at'),
    'wrong data root': (['--data_path={home}/nowhere'], '--data_path: {home}/nowhere: no such folder'),
    'data root one too high': (['--data_path={home}'], 'give --data_path {home}/data'),
    'a file as data root': (['--data_path={home}/data/demo.json'], 'is a file'),
    'config that is not there': (['--demo', '--config=no.py'], '--config: there is no file'),
    'config that is no Python': (['--demo', '--config={home}/data/demo.json'], 'does not end with .py'),
    'weights that are not there': (['--demo', '--pretrained=no.pth'], '--pretrained: there is no file'),
    'folder as weights': (['--demo', '--pretrained={home}'], 'is a folder'),
    'folder under a file': (['--demo', '--work_dir={home}/data/demo.json/run'], 'is not a folder'),
    'folder that takes no files': (['--demo', '--work_dir=/proc/run'], 'cannot write to /proc'),
}


# One that the parser refuses and one that the launcher does; the others are the same lines by the same two.
BY_SHELL = ['unknown option', 'no data']


@pytest.mark.parametrize('name', OPTIONS)
def test_options(world, name):
    argv, said = OPTIONS[name]
    argv = [word.replace('{home}', str(world.home)) for word in argv]
    said = said.replace('{home}', str(world.home))
    world.refuses(lambda: world.launch(*argv), said)
    if name in BY_SHELL:
        world.refuses(lambda: world.shell('full', *argv), said)


def test_a_performance_run_is_not_resumed(world):
    argv = ['--demo', '--resume=1']
    world.refuses(lambda: world.launch(*argv, script='performance'), '--resume=1: a performance run keeps no')


def test_occupied_port(world):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        world.refuses(lambda: world.launch('--demo', f'--master_port={port}'), f'--master_port={port} is in use')


def test_folder_of_another_run(world):
    run = world.home / 'a run'
    run.mkdir()
    (run / 'iter_5.pth').write_bytes(b'precious')
    world.refuses(lambda: world.launch('--demo', f'--work_dir={run}'), 'already holds a run')


def test_read_only_folder(world):
    place = world.home / 'read only'
    place.mkdir()
    prefix = in_namespace(f'mount --bind "{place}" "{place}" && mount -o remount,ro,bind "{place}"')
    world.refuses(
        lambda: world.shell('full', '--demo', f'--work_dir={place}/run', prefix=prefix), f'cannot write to {place}'
    )


@pytest.mark.parametrize(
    'argv',
    [['--resume=auto'], ['--nnodes=2', '--node_rank=1', '--master_addr=127.0.0.1', '--master_port=7']],
    ids=['again', 'second machine'],
)
def test_a_folder_that_another_training_uses(world, tmp_path, argv):
    with RunLock(tmp_path):
        argv = ['--demo', *CPU, f'--data_path={world.data}', f'--work_dir={tmp_path}', *argv]
        world.refuses(
            lambda: world.launch(*argv), f'{tmp_path} is in use by another training (process {os.getpid()} on '
        )


def test_no_space(world):
    place = world.home / 'small'
    place.mkdir()
    prefix = in_namespace(f'mount -t tmpfs -o size=8m none "{place}"')
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--work_dir={place}/run']
    world.refuses(lambda: world.shell('full', *argv, prefix=prefix), f'no space: {place} has 8 MiB free')


def test_more_cards_than_there_are(world):
    argv = ['--demo', f'--data_path={world.data}', '--nproc=999']
    if torch.cuda.is_available():
        world.refuses(lambda: world.launch(*argv), f'give --nproc={torch.cuda.device_count()}')
    else:
        world.refuses(lambda: world.launch(*argv, '--device=cuda'), '--device=cuda: ')
    world.refuses(lambda: world.launch('--device=npu', *argv), '--device=npu: ')


def test_eight_cards_on_a_cpu(world):
    world.refuses(lambda: world.launch(f'--data_path={world.data}', '--device=cpu'), '--nproc=1')


def test_what_the_doctor_finds(world):
    argv = ['--demo', f'--data_path={world.data}', *CPU]
    world.refuses(
        lambda: world.launch(*argv, GLOO_SOCKET_IFNAME='nosuch0'),
        'network interface: GLOO_SOCKET_IFNAME=nosuch0 names nosuch0, which this machine does not have; unset it',
    )


OVERRIDES = {
    'misspelled key': ('model.backbone.dephts=[2,2]', 'did you mean model.backbone.depths?'),
    'unknown key': ('no_such_thing=1', 'the config has no no_such_thing'),
    'number for a group': ('model=1', 'model is a group of settings'),
    'word for a number': ('train_cfg.max_iters=many', 'give a number'),
    'no such network': ('model.backbone.type=NoSuchNet', "model.backbone.type='NoSuchNet': there is no such class"),
    'no such size': ('model.backbone.depths=5', 'the config does not make a model'),
    'no images': ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0 is not a whole number from 1 on'),
    'missing start': ('load_from=nowhere.pth', 'load_from: there is no weights file '),
}


@pytest.mark.parametrize('name', OVERRIDES)
def test_overrides(world, name):
    override, said = OVERRIDES[name]
    world.refuses(lambda: world.launch('--demo', f'--data_path={world.data}', *CPU, '--', override), said)


CONFIGS = {
    'broken': ('model = dict(', 'cannot be read: SyntaxError'),
    'without its base': ("_base_ = ['gone.py']", 'cannot be read'),
    'of nothing': ('x = 1', 'has no model'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_configs(world, name):
    content, said = CONFIGS[name]
    path = world.home / 'config.py'
    path.write_text(content)
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--config={path}']
    world.refuses(lambda: world.launch(*argv), said)


def labels(data: Path, kind: str = 'labelTrainIds') -> List[Path]:
    return sorted(data.glob(f'gtFine/*/*/*_{kind}.png'))


def only_label_ids(data: Path) -> str:
    for path in labels(data):
        path.unlink()
    return 'labelTrainIds'


def unreadable_picture(data: Path) -> str:
    path = sorted(data.glob('leftImg8bit/train/*/*.png'))[3]
    path.write_bytes(path.read_bytes()[:500])
    return str(path)


def unreadable_label(data: Path) -> str:
    labels(data)[5].write_bytes(b'')
    return str(labels(data)[5])


def seventeen_classes(data: Path) -> str:
    for path in labels(data):
        Image.open(path).point([min(value, 16) if value < 255 else 255 for value in range(256)]).save(path)
    return '17'


def raw_ids_as_train_ids(data: Path) -> str:
    for path in labels(data):
        shutil.copy(str(path).replace('labelTrainIds', 'labelIds'), path)
    return str(labels(data)[0])


def picture_without_label(data: Path) -> str:
    labels(data)[2].unlink()
    return str(data)


def label_of_another_size(data: Path) -> str:
    path = labels(data)[1]
    Image.open(path).resize((64, 32), Image.NEAREST).save(path)
    return str(path)


def no_validation_pictures(data: Path) -> str:
    shutil.rmtree(data / 'leftImg8bit' / 'val')
    return 'val'


def half_downloaded(data: Path) -> str:
    for path in sorted(data.glob('leftImg8bit/train/*/*.png'))[10:]:
        path.unlink()
    return str(data)


SPOILERS = [
    only_label_ids,
    unreadable_picture,
    unreadable_label,
    seventeen_classes,
    raw_ids_as_train_ids,
    picture_without_label,
    label_of_another_size,
    no_validation_pictures,
    half_downloaded,
]


@pytest.mark.parametrize('spoil', SPOILERS, ids=lambda spoil: spoil.__name__)
def test_data_sets(world, spoil):
    data = world.copy_of_data(spoil.__name__)
    said = spoil(data)
    world.refuses(lambda: world.launch('--demo', f'--data_path={data}', *CPU), said)


def test_decoded_caches(world):
    folder, data = world.home / 'decoded', world.copy_of_data('changed')
    world.sandbox.tool('cityscapes.py', 'cache', f'--data_path={data}', f'--to={folder}')
    picture = sorted(data.glob('leftImg8bit/train/*/*.png'))[0]
    picture.write_bytes(picture.read_bytes() + b'changed')
    for cache, said in ((world.home / 'nowhere', 'there is no folder'), (folder, f'{folder} is stale, ')):
        argv = ['--demo', f'--data_path={data}', *CPU, f'--decoded_cache={cache}']
        answer = world.refuses(partial(world.launch, *argv), f'--decoded_cache: {said}')
        assert f'run python tools/cityscapes.py cache --data_path {data} --to {cache}' in answer.err


def test_weights_of_another_model(world):
    path = world.home / 'resnet.pth'
    torch.save({'state_dict': {'conv1.weight': torch.zeros(64, 3, 7, 7)}}, path)
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--pretrained={path}']
    world.refuses(lambda: world.launch(*argv), f'weights file {path} is of another model')


class Evil:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return exec, (f'open({str(self.trace)!r}, "w")',)


def test_weights_that_would_run_code(world, tmp_path):
    trace, path = tmp_path / 'ran', world.home / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': Evil(trace)}, path)
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--pretrained={path}']
    world.refuses(lambda: world.launch(*argv), 'or --trust_checkpoint if you trust where it comes from')
    assert not trace.exists()
    # Trusted, it is read, and refused for what it lacks.
    answer = world.launch(*argv, '--trust_checkpoint')
    assert f'weights file {path} holds no tensors' in answer.err, answer
    assert trace.exists()


def test_a_checkpoint_that_would_run_code(world, tmp_path):
    run = world.home / 'evil run'
    run.mkdir()
    torch.save({'meta': Evil(tmp_path / 'ran')}, run / 'iter_5.pth')
    (run / 'config.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
    argv = ['--demo', f'--data_path={world.data}', *CPU, '--resume=1', f'--work_dir={run}']
    world.refuses(lambda: world.launch(*argv), 'or give --trust_checkpoint if you trust where they come from')
    assert not (tmp_path / 'ran').exists()


@pytest.fixture(scope='module')
def demo_checkpoint(world):
    """A whole checkpoint of the demo's model, as a training leaves it after five iterations."""
    config = run_config.load(run_config.DEMO)
    model = run_config.build_model(config)
    wrapper, schedulers = run_config.build_optimizer(config, model)
    optimizer = wrapper.state_dict()
    for group, saved in zip(wrapper.optimizer.param_groups, optimizer['param_groups']):
        for number, parameter in zip(saved['params'], group['params']):
            empty = torch.zeros_like(parameter)
            optimizer['state'][number] = {'step': torch.tensor(5.0), 'exp_avg': empty, 'exp_avg_sq': empty}
    run = world.home / 'demo run'
    run.mkdir()
    content = {
        'meta': {'iter': 5, 'epoch': 0, 'seed': 0},
        'state_dict': model.state_dict(),
        'optimizer': optimizer,
        'param_schedulers': [scheduler.state_dict() for scheduler in schedulers],
        'message_hub': {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}},
    }
    torch.save(content, run / 'iter_5.pth')
    fits = partial(misfit, model=model, optim_wrapper=wrapper, schedulers=schedulers)
    assert find_resumable(str(run), fits) == (str(run / 'iter_5.pth'), [])
    return run / 'iter_5.pth'


@pytest.mark.parametrize(
    ('override', 'said'),
    [
        ('model.decode_head.num_classes=20', r'iter_5.pth is of another model: decode_head.cls_embed.weight is (20, '),
        ('optim_wrapper.paramwise_cfg.norm_decay_mult=1.0', 'iter_5.pth is of another optimizer: '),
    ],
)
def test_a_checkpoint_of_another_model(world, demo_checkpoint, override, said):
    argv = ['--demo', f'--data_path={world.data}', *CPU, '--resume=1', f'--work_dir={demo_checkpoint.parent}']
    world.refuses(lambda: world.launch(*argv, '--', override), said)


def test_a_start_of_another_model(world):
    path = world.home / 'start.pth'
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(64, 3, 7, 7)}}, path)
    argv = ['--demo', f'--data_path={world.data}', *CPU, '--', f'load_from={path}']
    world.refuses(lambda: world.launch(*argv), f'load_from: {path} is of another model: ')


def test_a_checkpoint_with_pointers(world):
    """numpy would follow them."""
    run = world.home / 'pointers'
    run.mkdir()
    torch.save({'meta': evil_checkpoints.numpy_faults()['field out of bounds']}, run / 'iter_5.pth')
    argv = ['--demo', f'--data_path={world.data}', *CPU, '--resume=1', f'--work_dir={run}']
    world.refuses(lambda: world.launch(*argv), 'iter_5.pth refused, it holds an array of numpy type')


def test_weights_of_another_hash(world):
    path = world.home / 'swin-12345678.pth'
    path.write_bytes(b'something else')
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--pretrained={path}']
    world.refuses(lambda: world.launch(*argv), f'weights file {path} is damaged: its sha256 begins with')


def test_an_error_page_as_weights(world):
    path = world.home / 'page.pth'
    path.write_text('<html>404 Not Found</html>')
    argv = ['--demo', f'--data_path={world.data}', *CPU, f'--pretrained={path}']
    world.refuses(lambda: world.launch(*argv), f'weights file {path}: is not a checkpoint')


def test_recipe_weights_on_an_offline_machine(world):
    argv = [f'--data_path={world.data}', *CPU]
    with socket.socket() as nobody:
        nobody.bind(('127.0.0.1', 0))  # bound and never listened on: connections are refused
        proxy = f'http://127.0.0.1:{nobody.getsockname()[1]}'
        world.refuses(
            lambda: world.launch(*argv, https_proxy=proxy, no_proxy=''),
            f'-e5c09f74.pth by other means and put it at {world.home}/.cache/torch/hub/checkpoints/swin_base_',
        )


def test_damaged_checkpoints_only(world):
    run = world.home / 'damaged'
    run.mkdir()
    (run / 'iter_5.pth').write_bytes(b'PK\x03\x04 cut short')
    argv = ['--demo', f'--data_path={world.data}', *CPU, '--resume=1', f'--work_dir={run}']
    world.refuses(lambda: world.launch(*argv), 'iter_5.pth is cut short or damaged')


@pytest.fixture
def checkout(world):
    """A checkout to spoil, put back afterwards."""
    path, aside = world.sandbox.root / 'mmsegmentation', world.sandbox.root / 'aside'
    shutil.copytree(path, aside, symlinks=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def test_edited_checkout(world, checkout):
    with open(checkout / 'mmseg' / 'version.py', 'a') as file:
        file.write('# mine\n')
    argv = ['--demo', f'--data_path={world.data}', *CPU]
    world.refuses(lambda: world.launch(*argv), f'{checkout}: local edits in mmseg/version.py')


def test_unpatched_checkout(world, checkout):
    git = ['git', '-C', str(checkout)]
    subprocess.run([*git, 'reset', '-q', '--hard', 'refs/recipe/base'], check=True, capture_output=True)
    world.refuses(lambda: world.launch('--demo', f'--data_path={world.data}', *CPU), 'upstream.py apply mmsegmentation')


def test_missing_checkout(world, checkout):
    shutil.rmtree(checkout)
    world.refuses(lambda: world.launch('--demo', f'--data_path={world.data}', *CPU), f'{checkout} is missing')


def test_good_inputs_are_not_refused(world):
    """The twin of all of the above: the same inputs, unspoilt, get as far as the training."""
    # Names that a shell, a config file, a formatter and a markup would all read something into.
    odd = 'a "good" one, it\'s\n[bold]%s {0} $HOME `touch ran` $(touch ran) ünï 中文\\'
    data = world.copy_of_data(odd)
    run = world.home / 'runs' / odd
    argv = [*TINY, f'--data_path={data}', *CPU, f'--work_dir={run}', '--resume=auto', '--max_iters=2', '--seed=1']
    answer = world.launch(*argv, *TINY_OVERRIDES)
    assert not list(world.home.rglob('ran')), answer
    assert 'doctor   ' in answer.out, answer
    assert (run / 'config.py').is_file(), answer
    assert list(run.glob('logs/*/*/attempt_0/0/stdout.log')), answer
