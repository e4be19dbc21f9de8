"""Every command, option and config key that a page or a message names is one that its tool takes."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import re
import shlex
from typing import Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Sequence

import pytest

import environments
from recipe.bench import cli as bench_cli
from recipe.bench import precision
from recipe.core import console, paths
from recipe.core.run_options import SCRIPTS
from recipe.data import cli as data_cli
from recipe.data.sets import cli as dataset_cli
from recipe.engine import devices, overrides, replay
from recipe.export import cli as export_cli
from recipe.launch import examine, options, stages
from recipe.predict import cli as predict_cli
from recipe.predict import publish
from recipe.report import metrics
from recipe.setup import cli as setup_cli
from recipe.upstream import cli as upstream_cli

PAGES = sorted(
    ['README.md', 'README.zh-CN.md', 'CHANGELOG.md', *(f'docs/{p.name}' for p in paths.ROOT.glob('docs/*.md'))]
)
MODULES = sorted(
    str(path.relative_to(paths.ROOT)) for place in ('recipe', 'tools') for path in paths.ROOT.glob(f'{place}/**/*.py')
)
SCRIPTS_AND_EXAMPLES = sorted(
    str(path.relative_to(paths.ROOT))
    for pattern in ('tools/*.sh', 'test/*.sh', 'test/npu/*.sh', 'test/faults/*.sh', 'examples/**/*', '.ci/run')
    for path in paths.ROOT.glob(pattern)
    if path.is_file()
)
# For what an f-string fills in, and for words in capitals such as NAME: one of these fits the option.
HOLE = 'PLACEHOLDER'
FILL_INS = ('X', '1', 'mmcv', 'npu-2.1')
COMMAND = re.compile(
    r'(?:\bpython3? |\bbash |/python )(?P<script>(?:tools|test)/[\w./-]+\.(?:py|sh))\b(?P<rest>.*?)'
    r'(?=[;,)`\n#|>、。;,()"]|  | \(| && |\Z)'
)
# The same without the interpreter: the name of a tool, then an option or the name of one of its parts.
BARE = re.compile(
    r'(?<![\w/.-])(?<!python )(?<!python3 )(?<!bash )'
    r'(?:(?:\./)?(?P<folder>tools|test)/)?(?P<name>[a-z_0-9]+\.(?:py|sh)) '
    r'(?P<rest>(?:-|[a-z]+\b).*?)(?=[;,)`\n#|>、。;,()":]|  | \(| && |\Z)'
)
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*(?:=[^]\s;,)`\'"]+)?')
OVERRIDE = re.compile(r'(?<= -- )(?:[\w.]+=\S+ ?)+')
# Options of other programs that our texts name.
OTHER_PROGRAMS = {
    *('--opt', '--no-deps', '--hash'),  # any option; pip's
    *('--launcher', '--work-dir', '--cfg-options', '--resume-from', '--nproc_per_node', '--log_dir'),  # of the ranks
    *('--git', '--format', '--onto'),  # git's
    *('--ipc', '--shm-size', '--query-gpu', '--query-compute-apps'),  # docker's and nvidia-smi's
}


class Command(NamedTuple):
    """A command as somebody would type it.

    Attributes:
        script: Its file, relative to the repository.
        words: What follows.
    """

    script: str
    words: List[str]


def commands_in(text: str, bare: bool = True) -> Iterator[Command]:
    """Find the commands of a text. A command goes on behind a backslash at the end of a line.

    Args:
        text: Of a page, message or script.
        bare: Also find those without their interpreter.
    """
    text = re.sub(r'\\\n\s*', '', text)
    for found in COMMAND.finditer(text):
        rest = re.sub(r'(?<=\w)[.:?]$', '', re.sub(r'[\[\]]', '', found['rest']).strip())
        yield Command(found['script'], [re.sub(r'<\w+>', HOLE, word) for word in shlex.split(rest)])
    for found in BARE.finditer(text) if bare else ():
        script = f'{found["folder"] or FOLDERS.get(found["name"])}/{found["name"]}'
        words = re.sub(r'[.?]$', '', found['rest'].strip()).split()
        if script in PARSERS and (words[0].startswith('-') or words[0] in parts_of(script)):
            # A part alone is its name, and no command that is complete.
            yield Command(script, [*words, '--help'] if len(words) == 1 else words)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let a parser refuse, and print nothing."""
    nowhere = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(SystemExit, console.UserError))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@functools.lru_cache(maxsize=None)
def options_of(script: str) -> FrozenSet[str]:
    """The options of a tool and of its parts, as its parser makes them."""
    made = set()

    def noting(add):
        def noted(self, *names, **settings):
            made.update(name for name in names if name.startswith('--'))
            return add(self, *names, **settings)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse._ActionsContainer, 'add_argument', noting(argparse._ActionsContainer.add_argument))
        for words in (['--help'], []):
            with quiet():
                PARSERS[script](words)
    return frozenset(made)


@functools.lru_cache(maxsize=None)
def parts_of(script: str) -> FrozenSet[str]:
    """Names of a tool's parts, such as ``prepare`` of cityscapes.py."""
    made = {*stages.STAGES} if script == 'tools/launch.py' else {*SCRIPTS} if script == 'tools/doctor.py' else set()

    def noting(add):
        def noted(self, name, **settings):
            made.add(name)
            return add(self, name, **settings)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse._SubParsersAction, 'add_parser', noting(argparse._SubParsersAction.add_parser))
        with quiet():
            PARSERS[script](['--help'])
    return frozenset(made)


@functools.lru_cache(maxsize=None)
def known_options() -> FrozenSet[str]:
    """The options of all tools."""
    return frozenset(name for script in PARSERS for name in options_of(script))


def faults_of_options(text: str) -> Iterator[str]:
    """Options of a text that no tool has, or whose value the launchers do not take."""
    for found in OPTION.findall(text):
        known, launchers = known_options(), options_of('test/train_full_8p.sh')
        name, _, value = re.sub(r'[.:]+$', '', found).partition('=')
        if name in OTHER_PROGRAMS:
            continue
        if name not in known:
            yield f'no tool has the option {name}'
        elif name in launchers and value and '|' not in value and HOLE not in value and not value.isupper():
            command = Command('test/train_full_8p.sh', [f'{name}={value}'])
            yield from filter(None, [fault_of(command)])


@functools.lru_cache(maxsize=None)
def config():
    return pytest.importorskip('recipe.engine.config').load(paths.CONFIGS / 'mask2former_swin-b_cityscapes.py')


def faults_of_overrides(text: str) -> Iterator[str]:
    """Config keys behind `` -- `` that the recipe's config does not have."""
    for found in OVERRIDE.findall(text):
        for word in found.split():
            key, value = re.sub(r'[;,.]$', '', word).split('=', 1)
            try:
                overrides.require(config(), key, None if HOLE in value else ast.literal_eval(value))
            except (ValueError, SyntaxError):
                overrides.require(config(), key, None)
            except console.UserError as error:
                yield str(error)


def texts_of_module(source: str) -> Iterator[str]:
    """The texts of a module, docstrings too; what is added or put together is one text, and constants are filled in."""
    inner, tree = set(), ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        text = text_of(node, constants)
        if text is not None:
            inner.update(id(part) for part in ast.walk(node))
            yield text


def text_of(node: ast.AST, constants: Dict[str, str]):
    """The text of an expression, ``HOLE`` in it for what is not constant; None if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, constants) or HOLE
    if isinstance(node, ast.JoinedStr):
        return ''.join(str(text_of(part, constants)) for part in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ('format', 'join'):
        # 'run {}'.format(x), and ' '.join(['bash', 'tools/setup.sh', x])
        own = text_of(node.func.value, constants)
        if own is None or node.func.attr == 'format':
            return None if own is None else re.sub(r'\{\w*\}', HOLE, own)
        parts = node.args[0].elts if node.args and isinstance(node.args[0], (ast.List, ast.Tuple)) else None
        return None if parts is None else own.join(text_of(part, constants) or HOLE for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        left, right = (text_of(side, constants) for side in (node.left, node.right))
        if isinstance(node.op, ast.Mod):
            return None if left is None else re.sub(r'%[sdr]', HOLE, left)
        return None if left is right is None else (left or HOLE) + (right or HOLE)
    return None


def parse_launch(argv: Sequence[str]) -> None:
    """``tools/launch.py``."""
    if argv[1:] == ['--help'] and argv[0] in stages.STAGES:
        return
    if len(argv) < 2 or argv[0] not in stages.STAGES or argv[1] not in SCRIPTS:
        raise console.UserError(f'no such stage: {argv}')
    options.parse(argv[1], [word for word in argv[2:] if word != 'OPTIONS'])


def parse_shell(script: str, argv: Sequence[str]) -> None:
    """The options that a shell script names in its head; what follows ``--`` is another program's."""
    usage = (paths.ROOT / script).read_text().partition('\nset -')[0]
    for word in argv[: argv.index('--')] if '--' in argv else argv:
        if word == '--help':
            return
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
    'tools/dataset.py': lambda argv: dataset_cli.parse(list(argv)),
    'tools/doctor.py': examine.parse,
    'tools/launch.py': parse_launch,
    'tools/export.py': export_cli.parse,
    'tools/metrics.py': metrics.parse,
    'tools/predict.py': predict_cli.parse,
    'tools/publish.py': publish.parse,
    'tools/pristine_imports.py': functools.partial(parse_at_most, 99, least=1),
    'tools/replay_step.py': replay.parse,
    'tools/setup.sh': setup_cli.parse,
    'tools/upstream.py': upstream_cli.parse,
    'test/evaluate_8p.sh': functools.partial(options.parse, 'evaluate'),
    'test/faults/environments.py': lambda argv: environments.parse(list(argv)),
    'test/faults/fuzz_checkpoints.py': functools.partial(parse_at_most, 0),  # its options are in its own text
    'test/faults/run.sh': functools.partial(parse_shell, 'test/faults/run.sh'),
    'test/npu/run.sh': functools.partial(parse_shell, 'test/npu/run.sh'),
    'test/run_tests.sh': functools.partial(parse_shell, 'test/run_tests.sh'),
    'test/train_full_8p.sh': functools.partial(options.parse, 'full'),
    'test/train_performance_8p.sh': functools.partial(options.parse, 'performance'),
}
FOLDERS = {name: folder for folder, _, name in (script.rpartition('/') for script in PARSERS)}


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


def faults_of_text(text: str) -> List[str]:
    """Everything that a text names and that there is not."""
    commands = list(map(fault_of, commands_in(text)))
    # A text without a space is a part of a command or a key, and no message.
    sentences = [*faults_of_options(text), *faults_of_overrides(text)] if ' ' in text else []
    return [fault for fault in [*commands, *sentences] if fault]


def test_messages():
    found, faults = set(), []
    for module in MODULES:
        for text in texts_of_module((paths.ROOT / module).read_text(encoding='utf-8')):
            found.update(command.script for command in commands_in(text))
            faults += [f'{module}: {fault}' for fault in faults_of_text(text)]
    assert faults == []
    assert {'tools/setup.sh', 'tools/upstream.py', 'tools/cityscapes.py', 'tools/doctor.py'} <= found


@pytest.mark.parametrize('script', SCRIPTS_AND_EXAMPLES)
def test_scripts_and_examples(script):
    found = commands_in((paths.ROOT / script).read_text(), bare=False)
    # A variable of the shell was cut off.
    known = [Command(one.script, [word for word in one.words if not word.endswith('=')]) for one in found]
    assert [fault for fault in map(fault_of, known) if fault] == []


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


@pytest.mark.parametrize(
    'text',
    [
        'it has 5 classes: train with --num_clases 5',
        'give --amp=fp32, or leave it out',
        'go on with --resume-now, or',
        'then run cityscapes.py prepare DIR',
        'cityscapes.py verify names all that are damaged',
        'upstream.py export mmcv --hard does that',
        'to keep it: -- auto_scale_lr.enabled=False',
        'or bash test/train_full_8p.sh -- optim_wrapper.lr=1',
    ],
)
def test_a_wrong_part_of_a_message_is_noticed(text):
    assert faults_of_text(text)


@pytest.mark.parametrize(
    'source',
    [
        "TOOL = 'python tools/cityscapes.py'\nx = f'run: {TOOL} clean'",
        "x = 'run: python tools/cityscapes.py {}'.format('clean') + ' --to=x'",
        "x = ' '.join(['run: bash', 'tools/setup.sh', '--stack=tpu'])",
        "x = 'run: python tools/cityscapes.py prepare %s' % y",
        "def f(x):\n    raise ValueError('see ' + x, f'give --nproces={x} to ' 'train')",
    ],
)
def test_a_wrong_command_that_code_puts_together_is_noticed(source):
    assert [fault for text in texts_of_module(source) for fault in faults_of_text(text)]


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
