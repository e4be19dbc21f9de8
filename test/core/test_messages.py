"""Every command that a page or a message names is one that its tool takes, as far as parsing goes."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence

import pytest

from recipe.bench import cli as bench_cli
from recipe.bench import precision
from recipe.core import console, paths
from recipe.core.run_options import SCRIPTS
from recipe.data import cli as data_cli
from recipe.engine import devices, replay
from recipe.export import cli as export_cli
from recipe.launch import examine, options, stages
from recipe.report import metrics
from recipe.setup import cli as setup_cli
from recipe.upstream import cli as upstream_cli

PAGES = sorted(
    ['README.md', 'README.zh-CN.md', 'CHANGELOG.md', *(f'docs/{p.name}' for p in paths.ROOT.glob('docs/*.md'))]
)
MODULES = sorted(str(path.relative_to(paths.ROOT)) for path in paths.ROOT.glob('recipe/**/*.py'))
# For what an f-string fills in, and for words in capitals such as NAME: one of these fits the option.
HOLE = 'PLACEHOLDER'
FILL_INS = ('X', '1', 'mmcv', 'npu-2.1')
COMMAND = re.compile(
    r'(?:\bpython3? |\bbash |/python )(?P<script>(?:tools|test)/[\w./-]+\.(?:py|sh))\b(?P<rest>.*?)'
    r'(?=[;,)`\n#|>、。;,()"]|  | \(| && |\Z)'
)


class Command(NamedTuple):
    """A command as somebody would type it.

    Attributes:
        script: Its file, relative to the repository.
        words: What follows.
    """

    script: str
    words: List[str]


def commands_in(text: str) -> Iterator[Command]:
    """Find the commands of a text. A command goes on behind a backslash at the end of a line."""
    for found in COMMAND.finditer(re.sub(r'\\\n\s*', '', text)):
        rest = re.sub(r'(?<=\w)[.:?]$', '', re.sub(r'[\[\]]', '', found['rest']).strip())
        yield Command(found['script'], [re.sub(r'<\w+>', HOLE, word) for word in shlex.split(rest)])


def texts_of_module(source: str) -> Iterator[str]:
    """The string literals of a module, docstrings too; what is added or put together is one text."""
    inner = set()
    for node in ast.walk(ast.parse(source)):
        if id(node) in inner:
            continue
        text = text_of(node)
        if text is not None:
            inner.update(id(part) for part in ast.walk(node))
            yield text


def text_of(node: ast.AST):
    """The text of an expression, ``HOLE`` in it for what is not constant; None if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(HOLE if isinstance(part, ast.FormattedValue) else str(text_of(part)) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [text_of(side) for side in (node.left, node.right)]
        return None if sides == [None, None] else ''.join(HOLE if side is None else side for side in sides)
    return None


def parse_launch(argv: Sequence[str]) -> None:
    """``tools/launch.py``."""
    if len(argv) < 2 or argv[0] not in stages.STAGES or argv[1] not in SCRIPTS:
        raise console.UserError(f'no such stage: {argv}')
    options.parse(argv[1], [word for word in argv[2:] if word != 'OPTIONS'])


def parse_shell(script: str, argv: Sequence[str]) -> None:
    """The options that a shell script names in its head; what follows ``--`` is another program's."""
    usage = (paths.ROOT / script).read_text().partition('\nset -')[0]
    for word in argv[: argv.index('--')] if '--' in argv else argv:
        name, value, _ = word.partition('=')
        if not re.search(
            rf'\[[^]]*{re.escape(name + value)}(?![\w=-])' if not value else rf'\[{re.escape(name)}=', usage
        ):
            raise console.UserError(f'{script} has no option {word}')


def parse_at_most(most: int, argv: Sequence[str], least: int = 0) -> None:
    """A tool without options."""
    if not least <= len(argv) <= most:
        raise console.UserError(f'{least} to {most} arguments, not {argv}')


PARSERS: Dict[str, Callable[[Sequence[str]], object]] = {
    'tools/bench.py': bench_cli.parse,
    'tools/bench_gpu.sh': functools.partial(parse_at_most, 2),
    'tools/cityscapes.py': lambda argv: data_cli.parse_args(list(argv)),
    'tools/compare_precision.py': precision.parse,
    'tools/doctor.py': examine.parse,
    'tools/launch.py': parse_launch,
    'tools/export.py': export_cli.parse,
    'tools/metrics.py': metrics.parse,
    'tools/pristine_imports.py': functools.partial(parse_at_most, 99, least=1),
    'tools/replay_step.py': replay.parse,
    'tools/setup.sh': setup_cli.parse,
    'tools/upstream.py': upstream_cli.parse,
    'test/faults/fuzz_checkpoints.py': functools.partial(parse_at_most, 0),  # its options are in its own text
    'test/faults/run.sh': functools.partial(parse_shell, 'test/faults/run.sh'),
    'test/npu/run.sh': functools.partial(parse_shell, 'test/npu/run.sh'),
    'test/run_tests.sh': functools.partial(parse_shell, 'test/run_tests.sh'),
    'test/train_full_8p.sh': functools.partial(options.parse, 'full'),
    'test/train_performance_8p.sh': functools.partial(options.parse, 'performance'),
}


def fault_of(command: Command) -> str:
    """Why a command would not be taken; empty if it would."""
    if HOLE in command.script:
        return ''
    if not (paths.ROOT / command.script).is_file():
        return f'there is no {command.script}'
    if command.script not in PARSERS:
        return f'no parser is known for {command.script}'
    faults = []
    for fill_in in (None, *FILL_INS):
        words = command.words if fill_in is None else [filled(word, fill_in) for word in command.words]
        try:
            PARSERS[command.script](words)
        except (console.UserError, argparse.ArgumentError) as error:
            faults.append(str(error))
        except SystemExit as end:
            if not end.code:
                return ''
            faults.append(f'exit status {end.code}')
        else:
            return ''
    return f'{shlex.join([command.script, *command.words])}: {faults[0]}'


def filled(word: str, fill_in: str) -> str:
    """A word with its placeholders filled in."""
    return re.sub(rf'{HOLE}|(?<![\w-])[A-Z][A-Z_]*(?![\w-])', fill_in, word)


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Some options are refused on some devices."""
    monkeypatch.setattr(devices, 'likely_device', lambda asked: 'cpu')


@pytest.mark.parametrize('page', PAGES)
def test_commands_of_a_page(page):
    found = list(commands_in((paths.ROOT / page).read_text(encoding='utf-8')))
    assert found or page == 'docs/schedulers.md'  # its commands are sbatch's; see test/launch/test_schedulers.py
    assert [fault for fault in map(fault_of, found) if fault] == []


def test_commands_of_messages():
    found, faults = set(), []
    for module in MODULES:
        for text in texts_of_module((paths.ROOT / module).read_text(encoding='utf-8')):
            for command in commands_in(text):
                found.add(command.script)
                faults += [f'{module}: {fault}' for fault in [fault_of(command)] if fault]
    assert faults == []
    assert {'tools/setup.sh', 'tools/upstream.py', 'tools/cityscapes.py', 'tools/doctor.py'} <= found


@pytest.mark.parametrize(
    'text',
    [
        'run: python tools/cityscapes.py prepare /data',
        'bring it again (python tools/cityscapes.py verify names all that are damaged)',
        'use `bash tools/setup.sh --stack=tpu`',
        'use `bash test/train_full_8p.sh --batch_sise=2`, or',
        'use `bash test/train_full_8p.sh --device=gpu`',
        'bash test/run_tests.sh --fast   # soon',
        'bash test/npu/run.sh --ranks',
        'python tools/nothing.py',
        'python tools/upstream.py export mmcv --hard',
        'python tools/bench.py \\\n  steps',
        'python tools/metrics.py',
        'python tools/doctor.py --jsn',
        'python tools/launch.py go full',
        'torch is missing; run: .venv/bin/python tools/replay_step.py',
    ],
)
def test_a_wrong_command_is_noticed(text):
    assert [fault_of(command) for command in commands_in(text)] not in ([], [''])


def test_a_wrong_command_in_a_message_is_noticed():
    planted = (
        "def f(x):\n    raise ValueError(f'no {x}; run ' 'python tools/cityscapes.py ' + f'clean --data_path {x}')\n"
    )
    (command,) = [one for text in texts_of_module(planted) for one in commands_in(text)]
    assert command == Command('tools/cityscapes.py', ['clean', '--data_path', HOLE])
    assert 'exit status 2' in fault_of(command)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('run: python tools/upstream.py apply mmcv; then', ['apply', 'mmcv']),
        ('`python tools/upstream.py apply mmcv` and', ['apply', 'mmcv']),
        ('(python tools/upstream.py apply mmcv) and', ['apply', 'mmcv']),
        ('python tools/upstream.py apply mmcv, and', ['apply', 'mmcv']),
        ('python tools/upstream.py apply mmcv   # puts it on', ['apply', 'mmcv']),
        ('python tools/upstream.py apply \\\n    mmcv\nand', ['apply', 'mmcv']),
        ('python tools/upstream.py apply mmcv', ['apply', 'mmcv']),
    ],
)
def test_where_a_command_ends(text, words):
    (command,) = commands_in(text)
    assert command.words == words
    assert fault_of(command) == ''
