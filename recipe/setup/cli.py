"""Sets up everything that training needs, in the folder of the recipe. Run it as ``bash tools/setup.sh``.

    bash tools/setup.sh                      # picks the stack from the machine, builds .venv
    bash tools/setup.sh --stack npu-2.1      # npu-2.1, npu-2.7, npu-2.8, cuda or cpu
    bash tools/setup.sh --no_venv            # installs into the active environment
    bash tools/setup.sh --with_ops           # compiles mmcv's operators too (20 minutes on two cores; not needed)

Finished steps are not repeated. After a failure, the same command continues where it stopped. Each call checks the
results: a package that is gone or damaged is installed again. Choices are kept in .setup/recipe.json, so later calls
need no options; to start over, remove .setup and .venv. The shell's settings of package sources (PIP_INDEX_URL,
pip.conf, ...) are used; PYTHONPATH and settings that would install elsewhere are not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import locale
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from recipe.core import clean_environment, console, files, json_files, paths, tied_process
from recipe.setup import stack
from recipe.setup.commands import Caller
from recipe.setup.stack import STACKS, Python
from recipe.upstream import pins
from recipe.upstream import state as upstream_state

# Disk space of a stack, including the archives that pip unpacks.
FREE_GB = {'npu-2.1': 8, 'npu-2.7': 12, 'npu-2.8': 12, 'cuda': 14, 'cpu': 3}
OLDEST_PIP = (22, 2)  # the first with --config-settings; also knows manylinux_2_28 and editable wheels

# Steps that must be repeated after a step, whatever the stamps say: a new checkout is not patched. The last step, which
# imports all packages together, is repeated after every step.
_UNDOES = {'sources': ('patches',)}
_LAST = 'imports'

_CANN = '/usr/local/Ascend/ascend-toolkit/set_env.sh'
_MARK = '.made_by_setup'

_OF_A_TRAINING = ('torch.distributed.run', 'mmseg.datasets', 'recipe.engine.components', 'recipe.launch.cli')
# Imports each name. The device package may fail if its driver's libraries are not on the path yet.
_IMPORTS = """
import contextlib, importlib, json, os, sys
os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
needed, compiled, device, elsewhere = json.loads(sys.argv[1])
versions = {}
for name in needed:
    module = importlib.import_module(name)
    if '.' not in name:
        versions[name] = str(getattr(module, '__version__', ''))
for name in compiled:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
failure = None
if device:
    sys.path += elsewhere
    try:
        versions[device] = importlib.import_module(device).__version__
    except Exception as error:
        failure = ' '.join(f'{type(error).__name__}: {error}'.split())
print(json.dumps({'versions': versions, 'failure': failure}))
"""


class Step(NamedTuple):
    """One step of the set-up.

    Attributes:
        name: Name of its stamp and its log.
        key: Gives the hash of its inputs; the step is done while the stamp holds the same hash.
        run: Does the step.
        faults: Results of the step that are missing, one text each.
    """

    name: str
    key: Callable[[], str]
    run: Callable[[], None]
    faults: Callable[[], List[str]] = list


def digest(*parts: object) -> str:
    """A hash of some inputs; a path is hashed by its content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes() if part.is_file() else b'missing'
        total.update(part if isinstance(part, bytes) else str(part).encode())
        total.update(b'\0')
    return total.hexdigest()


def requirement_files(path: Path) -> List[Path]:
    """A requirements file and those that it includes with ``-r``."""
    files = [path]
    for line in path.read_text('utf-8').splitlines():
        included = re.match(r'-r\s+(\S+)', line)
        if included:
            files += requirement_files(path.parent / included.group(1))
    return files


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _load(path: Path) -> Dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        record = json_files.read(path, dict)
        if isinstance(record.get('steps'), dict):
            return record
    return {'steps': {}}


class Setup:
    """A set-up of one recipe folder.

    Args:
        root: The recipe's folder.
        args: Options, see ``parse``.
        command: The command line, shown in messages as the way to try again.
    """

    def __init__(self, root: Path, args: argparse.Namespace, command: str) -> None:
        self.root = root
        self.args = args
        self.folder = root / '.setup'
        self.venv = root / '.venv'
        self.record_file = self.folder / 'recipe.json'
        self.pins = pins.load(root)
        self.stack = STACKS['cpu']  # set by ready() or choose(), as are the next two
        self.python = ''  # the interpreter that everything is installed into
        self._base: Optional[Python] = None  # interpreter to make .venv with; None keeps the existing one
        self._out = sys.stderr if args.print_python else sys.stdout
        self._found: Optional[Dict[str, Any]] = None  # result of ``check`` since pip ran last
        self._calls = Caller(root, self.folder / 'logs', command, self._out)
        self._recall()

    def _recall(self) -> None:
        """Read what earlier calls did and chose; the options of this call are added."""
        self.record = _load(self.record_file)
        self.with_ops = self.args.with_ops or bool(self.record.get('with_ops'))
        self.with_tests = self.args.with_tests or bool(self.record.get('with_tests'))
        self.use_venv = not self.args.no_venv and bool(self.record.get('venv', True))

    def _save(self) -> None:
        files.write_text(self.record_file, json.dumps(self.record, indent=2) + '\n')

    def say(self, text: str) -> None:
        """Print one line, to stderr if stdout is reserved for the interpreter's path."""
        print(console.printable(text), file=self._out, flush=True)

    # Current state

    def ready(self) -> bool:
        """Whether nothing is left to do. Cheap: no process is started."""
        record = self.record
        if self.args.python or not os.access(record.get('python', ''), os.X_OK) or record.get('stack') not in STACKS:
            return False
        self.stack, self.python = STACKS[record['stack']], record['python']
        wants = (self.args.stack in (None, self.stack.name), self.use_venv == bool(record.get('venv')))
        if not all(wants) or not all(self._done(step) for step in self.steps()):
            return False
        # Compares the installed packages, in the recipe's own environment only; the user's environment is left to the
        # user.
        return not self.use_venv or record.get('installed') == self._installed()

    def _done(self, step: Step) -> bool:
        return bool(self.record['steps'].get(step.name) == step.key())

    def by_hand(self) -> Optional[str]:
        """The active interpreter, if somebody installed everything into it without this tool."""
        if self.record['steps'] or self.venv.exists():
            return None
        python = stack.probe(self.args.python or 'python3')
        return python.path if python and not python.missing else None

    # Choice of stack and steps

    def choose(self) -> None:
        """Choose stack and interpreter.

        Raises:
            console.UserError: No interpreter fits, ``.venv`` is somebody else's, the disk is too full, or the locale
                cannot write the folder's name.
        """
        self._require_encoding()
        venv_python = stack.probe(str(self.venv / 'bin/python')) if self.use_venv else None
        active = venv_python or stack.probe(self.args.python or 'python3')
        if self.args.stack:
            self.stack, why = STACKS[self.args.stack], 'as asked for'
        elif self.record.get('stack') in STACKS:
            self.stack, why = STACKS[self.record['stack']], 'as set up before'
        else:
            self.stack, why = stack.pick(active)
        self.say(f'stack {self.stack.name}: {why}')
        self.record['stack'] = self.stack.name
        free = shutil.disk_usage(str(self.root)).free / 1e9
        if 'requirements' not in self.record['steps'] and free < FREE_GB[self.stack.name]:
            raise console.UserError(
                f'{self.root}: {free:.1f} GB free, stack {self.stack.name} needs {FREE_GB[self.stack.name]} GB'
            )
        if self.use_venv:
            self._choose_venv(venv_python)
        else:
            before = '' if self.args.no_venv or self.record.get('venv') else self.record.get('python')
            self.python = stack.find_python(self.stack, self.args.python or before or 'python3').path
        self.record.update(venv=self.use_venv, python=self.python, with_ops=self.with_ops, with_tests=self.with_tests)

    def _require_encoding(self) -> None:
        """Python before 3.13 reads the path of an editable package in the locale's encoding, at each start."""
        encoding = locale.nl_langinfo(locale.CODESET)
        try:
            str(self.root).encode(encoding)
        except (UnicodeEncodeError, LookupError):
            raise console.UserError(
                f'{self.root} holds letters that the locale of this shell ({encoding}) cannot write',
                'export LC_ALL=C.UTF-8, or move the recipe to a folder of ASCII letters',
            ) from None

    def _choose_venv(self, found: Optional[Python]) -> None:
        self.python = str(self.venv / 'bin/python')
        ours = (self.venv / _MARK).is_file()
        if os.path.lexists(str(self.venv)) and not ours and not _is_empty(self.venv):
            raise console.UserError(
                f'{self.venv} was not made by setup.sh',
                'move it away, or activate it and use --no_venv to install there',
            )
        whole = found is not None and self.stack.takes(found.minor) and self._done(self.steps()[0])
        wanted = stack.find_python(self.stack, self.args.python) if self.args.python or not whole else None
        if wanted and not (whole and wanted.path == self.record.get('base')):
            self._base = wanted
            self.record['base'] = wanted.path
            self.record['steps'].pop('venv', None)

    def steps(self) -> List[Step]:
        """All steps, in order."""
        first = [Step('venv', self._venv_key, self._make_venv)] if self.use_venv else []
        return [
            *first,
            Step('requirements', self._requirements_key, self._install_requirements, self._lacking_requirements),
            Step('sources', self._sources_key, lambda: self._upstream('fetch'), self._missing_checkouts),
            Step('patches', self._patches_key, lambda: self._upstream('apply'), self._unpatched),
            Step('packages', self._packages_key, self._install_packages, lambda: self._check()['misplaced']),
            Step(_LAST, lambda: digest(self._packages_key(), self._patches_key()), self._check_imports),
        ]

    def run(self) -> None:
        """Do every step that is not done.

        Raises:
            console.UserError: A step failed; names its log and how to try again.
        """
        started = time.monotonic()
        self.folder.mkdir(exist_ok=True)
        with self._lock():
            self._recall()
            self.choose()
            for step in self.steps():
                self._do(step)
            self.record['folders'] = self._check()['folders']
            self.record['installed'] = self._installed()
            self._save()
        self.say(f'ready in {time.monotonic() - started:.1f} s: {self.python}')

    def _do(self, step: Step) -> None:
        """Do a step unless it was done and its results are there.

        Its stamp is written after its results were checked.
        """
        self._calls.step = step.name
        if self._done(step):
            faults = step.faults()
            if not faults:
                self.say(f'  {step.name:<13} done before')
                return
            self.say(f'  {step.name:<13} done again: {upstream_state.some(faults)}')
        begun = time.monotonic()
        for undone in (step.name, *_UNDOES.get(step.name, ()), _LAST):
            if undone in self.record['steps']:
                self.record['steps'][undone] = ''
        self._save()  # before the first change: a killed step must not keep its stamp
        step.run()
        faults = step.faults()
        if faults:
            raise self._calls.failure(f'still lacks {upstream_state.some(faults)}')
        self.record['steps'][step.name] = step.key()
        self._save()
        self.say(f'  {step.name:<13} {time.monotonic() - begun:.1f} s')

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(str(self.folder / 'lock'), os.O_RDWR | os.O_CREAT, 0o666)
        with tied_process.lock(
            descriptor, lambda holder: self.say(f'waiting for another setup.sh in this folder: {holder}')
        ):
            yield

    # Checks

    def _check(self) -> Dict[str, Any]:
        """Result of ``check``; asked again after pip has run."""
        if self._found is None:
            asked = {
                'requirements': list(map(str, self._requirements())),
                'no_deps': list(map(str, self._no_deps())),
                'packages': {
                    **{pin.package: str(self.root / name) for name, pin in self.pins.items()},
                    'recipe': str(self.root),
                },
            }
            step, self._calls.step = self._calls.step, 'check'
            self._calls.run([self.python, '-B', str(paths.PACKAGE), 'check', json.dumps(asked)], self._clean())
            found: Dict[str, Any] = json.loads(self._calls.output()[-1])
            self._found = found
            self._calls.step = step
        return self._found

    def _lacking_requirements(self) -> List[str]:
        found = self._check()
        missing: List[str] = found['missing']
        return missing + [f'{file} of {name}' for name, file in found['damaged'].items()]

    def _missing_checkouts(self) -> List[str]:
        return [name for name in self.pins if not (self.root / name / '.git').exists()]

    def _unpatched(self) -> List[str]:
        """Checkouts without the current patches. A checkout with a developer's work is left as it is."""
        found = {name: upstream_state.inspect(self.root, pin).state for name, pin in self.pins.items()}
        unpatched = (upstream_state.MISSING, upstream_state.BASE, upstream_state.OUTDATED)
        return [f'{name} ({state})' for name, state in found.items() if state in unpatched]

    def _installed(self) -> str:
        """A hash of the names in the environment's folders of packages."""
        names: List[str] = []
        for folder in self.record.get('folders') or []:
            with contextlib.suppress(OSError):
                names += sorted(path.name for path in Path(folder).iterdir() if path.name[0] not in '_.~')
        return digest(*names)

    # Keys

    def _venv_key(self) -> str:
        mark = self.venv / _MARK
        return digest(self.root, self.python, mark if self.use_venv else '')

    def _requirements_key(self) -> str:
        return digest(self._venv_key(), self.record.get('stack'), *self._requirements(), *self._no_deps())

    def _sources_key(self) -> str:
        # A checkout that was deleted and made again by hand is a new one, and not patched yet.
        folders = [self.root / name / '.git' for name in self.pins]
        return digest(self.root / pins.TABLE, [path.exists() and path.stat().st_ino for path in folders])

    def _patches_key(self) -> str:
        return digest(self._sources_key(), *(self.root / pin.patch for pin in self.pins.values()))

    def _packages_key(self) -> str:
        builds = [*(self.root / name / 'setup.py' for name in self.pins), self.root / 'pyproject.toml']
        # Compiled operators depend on all sources. Without them, an editable package follows its folder by itself.
        return digest(self._requirements_key(), self.with_ops, self._patches_key() if self.with_ops else '', *builds)

    # Steps

    def _make_venv(self) -> None:
        if self._base is None:
            return
        if self.venv.exists():
            self.say(f'  {self.venv} is made anew with Python {self._base.text}')
            shutil.rmtree(str(self.venv))
        self.venv.mkdir()
        # The mark comes first: a .venv left by a killed call is then known to be the recipe's.
        (self.venv / _MARK).write_text(f'{uuid.uuid4()}\n')
        self._calls.run([self._base.path, '-m', 'venv', str(self.venv)], self._clean())

    def _clean(self) -> Dict[str, str]:
        return clean_environment.clean(user_site=not self.use_venv)

    def _pip(self, *arguments: str, **env: str) -> None:
        variables = clean_environment.for_pip(self.python, arguments[0], user_site=not self.use_venv)
        # The builds import torch, which since 2.5 imports torch_npu too, and that needs CANN's libraries on the path.
        variables['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
        options = ['--disable-pip-version-check', '--no-input']
        self._found = None
        self._calls.run([self.python, '-m', 'pip', *options, *arguments], {**variables, **env})

    def _requirements(self) -> List[Path]:
        folder = self.root / 'requirements'
        chosen = [f'{self.record.get("stack")}.txt']
        chosen += ['ops.txt'] if self.with_ops else []
        chosen += ['test.txt'] if self.with_tests else []
        # On an NPU they contradict what CANN needs.
        chosen += ['export.txt'] if self.with_tests and not self.stack.name.startswith('npu') else []
        return [file for name in chosen for file in requirement_files(folder / name)]

    def _no_deps(self) -> List[Path]:
        own = self.root / f'requirements/{self.record.get("stack")}.no-deps.txt'
        return requirement_files(own if own.is_file() else self.root / 'requirements/no-deps.txt')

    def _install_requirements(self) -> None:
        self._new_enough_pip()
        wanted = [part for file in self._requirements() for part in ('-r', str(file))]
        limits = stack.constraints(self.stack)
        for limit, why in limits.items():
            self.say(f'  {limit}: {why}')
        # Byte-compiling all of torch takes longer than unpacking it, and imported modules are compiled later anyway.
        self._pip('install', '--no-compile', *wanted, *limits)
        no_deps = [part for file in self._no_deps() for part in ('-r', str(file))]
        self._pip('install', '--no-compile', '--no-deps', *no_deps)
        damaged = list(self._check()['damaged'])
        if damaged:  # pip does not check files and would take them for installed
            self._pip('install', '--no-compile', '--no-deps', '--ignore-installed', *damaged)

    def _new_enough_pip(self) -> None:
        version = self._pip_version()
        if version is None and self.use_venv:
            self._calls.run([self.python, '-m', 'ensurepip'], self._clean())
            version = self._pip_version()
        if version is None:
            raise console.UserError(f'{self.python} has no pip', 'install it (Debian: python3-pip), then try again')
        if version < OLDEST_PIP:
            self._pip('install', '--upgrade', f'pip>={".".join(map(str, OLDEST_PIP))}')

    def _pip_version(self) -> Optional[Tuple[int, int]]:
        command = [self.python, '-m', 'pip', '--version']
        done = subprocess.run(command, env=self._clean(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found = re.match(r'pip (\d+)\.(\d+)', done.stdout)
        return (int(found.group(1)), int(found.group(2))) if found else None

    def _upstream(self, command: str) -> None:
        tool = self.root / 'tools' / 'upstream.py'
        # The command calls pip itself.
        env = clean_environment.for_pip(self.python, 'download', user_site=not self.use_venv)
        self._calls.run([self.python, str(tool), command, '--root', str(self.root)], env)
        for line in self._calls.output():
            self.say(f'    {line}')

    def _install_packages(self) -> None:
        folders = [*(self.root / name for name in self.pins), self.root]
        editable = [part for folder in folders for part in ('-e', str(folder))]
        env = {'MMCV_WITH_OPS': '1' if self.with_ops else '0'}
        if self.with_ops:
            jobs, why = stack.compile_jobs(os.environ.get('MAX_JOBS'))
            env['MAX_JOBS'] = str(jobs)
            self.say(f'    MAX_JOBS={jobs}: {why}')
        if self.with_ops and self.stack.name.startswith('npu'):
            env['FORCE_NPU'] = '1'
        elif self.with_ops and self.stack.name == 'cuda' and 'FORCE_CUDA' in os.environ:
            env['FORCE_CUDA'] = os.environ['FORCE_CUDA']  # builds for GPUs that this machine does not have
        # Editable as a plain .pth entry. With setuptools' import hook, Python takes the checkout's folder mmcv/ for an
        # empty package if the recipe's folder comes first in sys.path.
        options = ['--use-pep517', '--no-build-isolation', '--config-settings', 'editable_mode=compat', '--no-deps']
        self._pip('install', *options, *editable, **env)

    def _check_imports(self) -> None:
        packages = [pin.package for pin in self.pins.values()]
        needed = ['torch', 'mmengine', *packages, 'mmdet.models', 'mmseg.models', 'recipe']
        # CANN puts some of its own packages on PYTHONPATH; after the environment's packages they replace none of these.
        elsewhere = [place for place in os.environ.get('PYTHONPATH', '').split(os.pathsep) if place]
        # The first import of a module also compiles it. If a container image forbids that with PYTHONDONTWRITEBYTECODE,
        # which is not passed on here, each rank of each start would compile it again, which takes seconds.
        asked = json.dumps([needed, _OF_A_TRAINING, self.stack.device_package, elsewhere])
        self._calls.run([self.python, '-c', _IMPORTS, asked], self._clean())
        found = json.loads(self._calls.output()[-1])
        self.record['versions'] = found['versions']
        if found['failure']:
            console.warn(
                f'{self.stack.device_package} cannot be imported ({found["failure"]}); if the driver and CANN are '
                f'installed, run `source {_CANN}` first'
            )


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='bash tools/setup.sh',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--stack', choices=list(STACKS), help='default: picked from the machine')
    parser.add_argument('--python', metavar='PATH', help='interpreter to build .venv with (or, with --no_venv, to use)')
    parser.add_argument('--no_venv', action='store_true', help='install into the active environment')
    parser.add_argument('--with_ops', action='store_true', help="compile mmcv's operators")
    parser.add_argument('--with_tests', action='store_true', help='install what the tests need too')
    parser.add_argument('--quiet_if_ready', action='store_true', help='say nothing if nothing is to be done')
    parser.add_argument('--print_python', action='store_true', help="print only the interpreter's path to stdout")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; see the module's docstring."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = [
        word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith('--print_python')
    ]
    command = ' '.join(map(shlex.quote, ['bash', 'tools/setup.sh', *given]))
    setup = Setup(paths.ROOT, args, command)
    python = None
    if args.quiet_if_ready:
        python = setup.python if setup.ready() else setup.by_hand()
    if python is None:
        setup.run()
        python = setup.python
    if args.print_python:
        console.say(python)
    return 0
