from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.core import console, network, paths, run_folder
from recipe.core.run_options import SCRIPTS, Options
from recipe.launch import options

TOOL = [sys.executable, str(paths.TOOLS / 'launch.py'), 'check']
VALUES = {
    'batch_size': '3',
    'accumulate': '4',
    'freeze': 'stages:2',
    'memory': 'report',
    'ema': '0.9998',
    'early_stop': '3',
    'num_workers': '0',
    'data_path': 'some/folder',
    'work_dir': 'out',
    'nproc': '2',
    'device': 'cpu',
    'max_iters': '7',
    'val_interval': '5',
    'config': 'a.py',
    'pretrained': 'none',
    'init_from': 'a.pkl',
    'class_map': 'names',
    'backbone': 'swin-t',
    'seed': '0',
    'amp': 'bf16',
    'num_points': '3136',
    'keep_checkpoints': '5',
    'nnodes': '2',
    'node_rank': '1',
    'master_addr': 'localhost',
    'master_port': '29501',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ('leftImg8bit', 'gtFine'):
        (tmp_path / 'data' / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize('name', VALUES)
def test_both_forms_of_an_option_mean_the_same(name):
    value = VALUES[name]
    joined = options.parse('full', [f'--{name}={value}'])
    assert joined == options.parse('full', [f'--{name}', value])
    assert str(getattr(joined, name)) == value
    assert joined != options.parse('full', [])


def test_what_is_not_given_is_left_to_the_config():
    parsed = options.parse('full', [])
    assert parsed == Options(script='full')
    assert parsed.batch_size is None
    assert parsed.resume is False


def test_resume_and_demo():
    parsed = options.parse('full', ['--resume=1', '--demo'])
    assert parsed.resume
    assert parsed.demo
    assert not options.parse('full', ['--resume', '0']).resume


def test_tf32_is_on_off_or_not_said():
    assert [options.parse('full', given).tf32 for given in ([], ['--tf32=0'], ['--tf32', '1'])] == [None, False, True]
    with pytest.raises(console.UserError, match=r'--tf32: .* not one of 0, 1'):
        options.parse('full', ['--tf32=2'])


@pytest.mark.parametrize(('words', 'on'), [(('1', 'true', 'Yes', 'ON'), True), (('0', 'false', 'No', 'OFF'), False)])
def test_switches_take_the_usual_words(words, on):
    for word in words:
        given = [f'--{name}={word}' for name in ('resume', 'tf32', 'compile', 'fast', 'doctor')]
        read = options.parse('full', given)
        assert (read.resume, read.tf32, read.compile, read.fast, read.doctor) == (on,) * 5


@pytest.mark.parametrize('value', ['2', '-1', '01', 'y', 'wahr', 'True!', ''])
def test_a_switch_takes_no_other_word(value):
    """Ascend's scripts take each of them for a yes."""
    with pytest.raises(console.UserError, match=rf'--resume: {value!r} is not one of 0, 1, auto'):
        options.parse('full', [f'--resume={value}'])


@pytest.mark.parametrize(
    ('given', 'why'),
    [
        ('--accumulate=0', 'a whole number from 1 to 4096'),
        ('--freeze=head', "'head' is neither backbone nor stages:N"),
        ('--freeze=stages', "'' is not a whole number from 0"),
        ('--memory=1', 'not one of report'),
        ('--ema=2', "'2' is not a number from 0.5 to below 1"),
        ('--ema=nan', "'nan' is not a number from 0.5 to below 1"),
        ('--early_stop=0', 'a whole number from 1'),
    ],
)
def test_values_of_the_options_for_memory_and_for_watching(given, why):
    with pytest.raises(console.UserError, match=f'{given.partition("=")[0]}: .*{why}'):
        options.parse('full', [given])


def test_an_early_stop_needs_checkpoints_and_a_report_one_machine():
    for script, argv, why in (
        ('performance', ['--early_stop=3'], 'a performance run has a fixed length'),
        ('full', ['--memory=report', '--nnodes=2'], 'measures one card of one machine'),
    ):
        with pytest.raises(console.UserError, match=why):
            options.require_consistent(options.parse(script, argv))


def test_checkpoints_to_keep():
    assert options.parse('full', ['--keep_checkpoints=all']).keep_checkpoints == -1
    for value in ('1', '0', '-1', 'every'):
        with pytest.raises(console.UserError, match=r'--keep_checkpoints: .* a whole number from 2'):
            options.parse('full', [f'--keep_checkpoints={value}'])
    with pytest.raises(console.UserError, match='a performance run keeps no checkpoint'):
        options.require_consistent(options.parse('performance', ['--keep_checkpoints=all']))


def test_graphs_are_asked_for():
    assert [options.parse('full', given).compile for given in ([], ['--compile=0'], ['--compile', '1'])] == [0, 0, 1]


def test_fast_modules_are_used_unless_told_otherwise():
    assert [options.parse('full', given).fast for given in ([], ['--fast=0'], ['--fast', '1'])] == [1, 0, 1]
    with pytest.raises(console.UserError, match=r'--compile=1: .* --fast=0'):
        options.require_consistent(options.parse('full', ['--compile=1', '--fast=0']))


@pytest.mark.parametrize('other', ['--compile=1', '--fast=0', '--engine=upstream', '--accumulate=2'])
def test_what_a_whole_step_graph_does_not_go_with(other):
    options.require_consistent(options.parse('full', ['--graph=1']))
    with pytest.raises(console.UserError, match=f'--graph=1 and {other} do not go together'):
        options.require_consistent(options.parse('full', ['--graph=1', other]))


def test_the_doctor_is_asked_unless_told_otherwise():
    assert options.parse('full', []).doctor
    assert options.parse('full', ['--doctor=1']).doctor
    assert not options.parse('full', ['--doctor', '0']).doctor


@pytest.mark.parametrize('name', ['on_nan', 'on_bad_image'])
def test_what_may_be_skipped_is_a_number(name):
    assert getattr(options.parse('full', []), name) is None  # what the config says
    assert getattr(options.parse('full', [f'--{name}=stop']), name) == 0
    assert getattr(options.parse('full', [f'--{name}', 'skip:12']), name) == 12


def test_checkpoints_are_trusted_only_where_the_user_says_so():
    assert not options.parse('full', []).trust_checkpoint
    assert options.parse('full', ['--trust_checkpoint']).trust_checkpoint


def test_resume_auto_continues_where_there_is_a_checkpoint_and_begins_where_there_is_none(tmp_path):
    argv = ['--demo', '--resume=auto', f'--work_dir={tmp_path}']
    begun = options.read('full', argv)
    assert (begun.resume, begun.or_begin) == (False, True)
    for name in ('config.py', 'command.txt'):  # a start that ended before its first checkpoint
        (tmp_path / name).touch()
    assert not options.read('full', argv).resume
    with pytest.raises(console.UserError, match='already holds a run'):
        options.read('full', ['--demo', f'--work_dir={tmp_path}'])
    (tmp_path / 'iter_1.pth').touch()
    assert options.read('full', argv).resume
    with pytest.raises(console.UserError, match='--resume=auto needs --work_dir'):
        options.read('full', ['--demo', '--resume=auto'])
    with pytest.raises(console.UserError, match='--resume=auto: a performance run keeps no checkpoint'):
        options.read('performance', argv)


def test_everything_behind_the_lone_dashes_is_an_override():
    parsed = options.parse('full', ['--seed=1', '--', 'model.a=1', 'b.0.c=[1, (2,3)]', 'd==x'])
    assert parsed.overrides == ['model.a=1', 'b.0.c=[1, (2,3)]', 'd==x']
    assert parsed.seed == 1


def test_the_last_of_two_values_holds():
    assert options.parse('full', ['--seed=1', '--seed', '2']).seed == 2


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--batch_sise=2'], 'did you mean --batch_size?'),
        (['--batch-size', '2'], 'did you mean --batch_size?'),
        (['--qqqq'], 'unknown option --qqqq; --help lists the options'),
        (['-x'], 'unknown option -x'),
        (['full'], "unexpected argument 'full'"),
        (['--batch_size'], '--batch_size needs a value'),
        (['--work_dir', '--demo'], '--work_dir needs a value'),
        (['--work_dir='], '--work_dir: needs a value'),
        (['--work_dir=-x'], "'-x' looks like an option"),
        (['--batch_size', 'two'], "--batch_size: 'two' is not a whole number"),
        (['--batch_size=1.5'], 'not a whole number'),
        (['--batch_size=1e3'], 'not a whole number'),
        (['--batch_size=1_000'], 'not a whole number'),
        (['--batch_size=٣'], 'not a whole number'),
        (['--batch_size=0'], '--batch_size: 0 is out of range'),
        (['--batch_size', '-1'], '-1 is out of range'),
        (['--num_workers=-1'], 'out of range'),
        (['--nproc=0'], '--nproc: 0 is out of range'),
        (['--max_iters=0'], 'out of range'),
        (['--val_interval=0'], 'out of range'),
        (['--max_iters=99999999999999999999999'], 'not a whole number'),
        (['--seed=-1'], 'out of range'),
        (['--master_port=65536'], 'out of range'),
        (['--device=gpu'], "--device: 'gpu' is not one of auto, npu, cuda, cpu"),
        (['--amp=fp32'], 'is not one of off, bf16, fp16'),
        (['--on_nan=go'], "--on_nan: 'go' is neither stop nor skip:N"),
        (['--on_nan=skip'], "--on_nan: '' is not a whole number"),
        (['--on_bad_image=skip:0'], '--on_bad_image: 0 is out of range'),
        (['--resume'], '--resume needs a value'),
        (['--resume=2'], "--resume: '2' is not one of 0, 1"),
        (['--demo=1'], '--demo takes no value'),
        (['--', 'x'], "override 'x' is not key=value"),
        (['--', 'x='], 'is not key=value'),
        (['--', '=1'], 'is not key=value'),
        (['--', 'a..b=1'], 'is not key=value'),
        (['--', '--seed=1'], 'comes after the lone --'),
        (['--', 'a=[1,2'], 'unbalanced brackets'),
        (['--', 'work_dir=/tmp'], 'the launcher sets work_dir'),
    ],
)
def test_a_bad_option_is_named_with_what_it_takes(argv, said):
    with pytest.raises(console.UserError) as caught:
        options.parse('full', argv)
    assert said in str(caught.value)
    assert caught.value.status == console.EXIT_USAGE


@given(name=st.sampled_from(sorted(VALUES)), text=st.text(max_size=8), joined=st.booleans())
def test_no_text_of_a_value_breaks_the_parser(name, text, joined):
    argv = [f'--{name}={text}'] if joined else [f'--{name}', text]
    try:
        parsed = options.parse('full', argv)
    except console.UserError as error:
        assert '\n' not in str(error)
    else:
        assert getattr(parsed, name) is not None or text == '--'


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--nnodes=2'], 'needs --node_rank, --master_addr, --master_port, --work_dir'),
        (['--nnodes=2', '--node_rank=0', '--master_addr=h', '--master_port=1'], 'needs --work_dir'),
        (
            ['--nnodes=2', '--node_rank=2', '--master_addr=h', '--master_port=1', '--work_dir=w'],
            'give a number from 0 to 1',
        ),
        (['--node_rank=1'], '--node_rank=1 is out of range'),
    ],
)
def test_options_of_several_machines_are_checked_together(argv, said):
    with pytest.raises(console.UserError, match='--'):
        options.require_consistent(options.parse('full', argv))
    with pytest.raises(console.UserError) as caught:
        options.require_consistent(options.parse('full', argv))
    assert said in str(caught.value)


def test_a_performance_run_cannot_be_resumed():
    with pytest.raises(console.UserError, match='--resume=1'):
        options.require_consistent(options.parse('performance', ['--resume=1']))
    options.require_consistent(options.parse('performance', ['--resume=0']))


@pytest.mark.parametrize('script', sorted(SCRIPTS))
def test_help_lists_every_option_and_ends_with_its_own_status(script):
    done = subprocess.run([*TOOL, script, '--help'], capture_output=True, text=True, check=False)
    assert done.returncode == options.EXIT_HELP
    assert all(f'--{name}' in done.stdout for name in vars(options.make_parser(script).parse_args([])))
    assert not done.stderr


@pytest.mark.parametrize('page', ['README.md', 'README.zh-CN.md'])
def test_the_table_of_each_readme_has_every_option(page):
    rows = re.findall(r'^\| (`--[a-z].*?) \|', (paths.ROOT / page).read_text(encoding='utf-8'), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r'--([a-z]\w*)', row)]
    assert sorted(listed) == sorted(vars(options.make_parser('full').parse_args([])))


def test_the_page_on_the_evaluation_names_its_own_options():
    page = (paths.ROOT / 'docs' / 'after_training.md').read_text(encoding='utf-8')
    own = set(vars(options.make_parser('evaluate').parse_args([]))) - set(
        vars(options.make_parser('full').parse_args([]))
    )
    assert sorted(name for name in own if f'`--{name}' not in page) == []


def test_help_behind_the_lone_dashes_is_no_call_for_help():
    done = subprocess.run([*TOOL, 'full', '--demo', '--', '--help'], capture_output=True, text=True, check=False)
    assert done.returncode == console.EXIT_USAGE


def test_good_options_are_silent(root):
    argv = ['full', f'--data_path={root / "data"}', '--work_dir', str(root / 'new' / 'run'), '--seed=1']
    done = subprocess.run([*TOOL, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert not (root / 'new').exists()


def test_a_wrong_data_root_is_named_with_the_right_one_nearby(root):
    with pytest.raises(console.UserError, match=f'give --data_path {root}/data'):
        options.read('full', [f'--data_path={root}'])
    with pytest.raises(console.UserError, match=f'give --data_path {root}/data'):
        options.read('full', [f'--data_path={root}/data/gtFine'])
    (root / 'data' / 'gtFine').rmdir()
    with pytest.raises(console.UserError, match='gtFine/: missing; unpack'):
        options.read('full', [f'--data_path={root}/data'])
    (root / 'data' / 'gtFine_trainvaltest.zip').touch()
    with pytest.raises(console.UserError, match=r'cityscapes.py prepare'):
        options.read('full', [f'--data_path={root}/data'])


@pytest.mark.parametrize('name', ['config', 'pretrained'])
def test_a_file_that_cannot_be_read_is_named(root, name):
    for path, said in ((root / 'no.py', 'there is no file'), (root, 'is a folder')):
        with pytest.raises(console.UserError, match=said):
            options.read('full', ['--demo', f'--{name}={path}'])
    empty = root / 'empty.py'
    empty.touch()
    with pytest.raises(console.UserError, match='is empty'):
        options.read('full', ['--demo', f'--{name}={empty}'])


def test_a_fresh_run_does_not_mix_with_another_one(root):
    for name in ('iter_5.pth', 'config.py', 'command.txt'):
        (root / name).touch()
        with pytest.raises(console.UserError, match='already holds a run'):
            options.read('full', ['--demo', f'--work_dir={root}'])
        (root / name).unlink()
    assert options.read('full', ['--demo', f'--work_dir={root}']).work_dir == str(root)


def test_a_resumed_run_takes_the_newest_folder_with_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, 'OUTPUT', tmp_path)
    runs = tmp_path / 'train_full_8p'
    with pytest.raises(console.UserError, match='there is no checkpoint in'):
        run_folder.choose('train_full_8p', False, None, True)
    for name, checkpoint in (('20260101_000000', True), ('20260102_000000', True), ('20260103_000000', False)):
        (runs / name).mkdir(parents=True)
        if checkpoint:
            (runs / name / 'iter_1.pth').touch()
    assert run_folder.choose('train_full_8p', False, None, True) == runs / '20260102_000000'
    assert run_folder.choose('train_full_8p', False, str(runs / '20260101_000000'), True) == runs / '20260101_000000'
    with pytest.raises(console.UserError, match='there is no checkpoint in'):
        run_folder.choose('train_full_8p', True, None, True)  # the demo has folders of its own


def test_each_fresh_run_has_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, 'OUTPUT', tmp_path)
    folders = set()
    for _ in range(3):
        folder = run_folder.choose('train_full_8p', False, None, False)
        folder.mkdir(parents=True)
        folders.add(folder)
    assert len(folders) == 3


@pytest.mark.parametrize('place', ['/proc/here', '/dev/null/here'])
def test_a_folder_that_cannot_be_made_is_refused(place):
    with pytest.raises(console.UserError, match='cannot'):
        options.read('full', ['--demo', f'--work_dir={place}'])


def test_space_is_asked_of_the_file_system_that_will_hold_the_folder(tmp_path):
    run_folder.require_space(tmp_path / 'a' / 'b', 1, 'logs')
    with pytest.raises(console.UserError, match=f'no space: {tmp_path} has'):
        run_folder.require_space(tmp_path / 'a' / 'b', 1 << 62, 'logs')


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(console.UserError, match=f'--master_port={port} is in use'):
            options.read('full', ['--demo', f'--master_port={port}'])
    options.read('full', ['--demo', f'--master_port={port}'])


def test_the_address_of_machine_0_has_to_be_its_own():
    network.require_port('127.0.0.1', None)
    with pytest.raises(console.UserError, match='is not an address of this machine'):
        network.require_port('192.0.2.1', 29500)  # reserved for documentation
    with pytest.raises(console.UserError, match='cannot be resolved'):
        network.require_port('x' * 300, 29500)  # no name server needs to be asked


def test_the_free_port_is_free():
    with socket.socket() as probe:
        probe.bind(('', network.free_port()))


def test_the_interface_is_the_one_that_leads_to_the_address():
    assert network.interface_towards('127.0.0.1') == 'lo'
