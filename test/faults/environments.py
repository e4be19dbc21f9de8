"""Launches the recipe in environments drawn from a seed: each launch trains, or is refused in one line.

    python test/faults/environments.py [--seed=0] [--count=100] [--jobs=2] [--first=N] [--out=DIR]

An environment has some variables of shells, Python, pip, git, torch, OpenMP, clusters and notebooks, a locale, a umask,
a shell, a way to name the script, a terminal, and folders for temporary files and the home. Each launch is a demo of
one iteration on small pictures. Afterwards no file may be left in TMPDIR. Exit status 1: at least one launch did
neither.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pty
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

HACKED = '() { echo this function was called; return 3; }'
NOTHING = '/dev/null/nothing'  # no user can make it, not even root
# Values by variable; {folder} is a folder of this launch.
VARIABLES: Dict[str, Tuple[str, ...]] = {
    # shells
    'BASH_ENV': ('{folder}/bash_env', NOTHING),
    'ENV': ('{folder}/bash_env', NOTHING),
    'CDPATH': ('/:/tmp', '.:{folder}'),
    'IFS': (':', '/'),
    'GREP_OPTIONS': ('--color=always', '--nonsense'),
    'POSIXLY_CORRECT': ('1', ''),
    'SHELLOPTS': ('noglob', 'noclobber:nounset', 'xtrace'),
    'BASHOPTS': ('failglob', 'nocaseglob:xpg_echo'),
    'GLOBIGNORE': ('*',),
    'PS4': ('$(touch {folder}/ran)',),
    'PROMPT_COMMAND': ('exit 7',),
    **{f'BASH_FUNC_{name}%%': (HACKED,) for name in ('cd', 'dirname', 'source', 'python3', 'printf', 'env', 'grep')},
    # environment modules export functions of this kind
    **{f'BASH_FUNC_{name}%%': ('() { eval "$(modulecmd bash "$@")"; }',) for name in ('module', 'ml')},
    'LOADEDMODULES': ('cuda/12.1:gcc/12',),
    'MODULEPATH': (NOTHING,),
    # Python
    'PYTHONHOME': (NOTHING,),
    'PYTHONPATH': ('', ':', NOTHING, '{folder}'),
    'PYTHONSTARTUP': (NOTHING,),
    'PYTHONINSPECT': ('1',),
    'PYTHONSAFEPATH': ('1',),
    'PYTHONOPTIMIZE': ('1', '2'),
    'PYTHONDONTWRITEBYTECODE': ('1',),
    'PYTHONVERBOSE': ('1',),
    'PYTHONWARNINGS': ('error', 'nonsense'),
    'PYTHONIOENCODING': ('ascii', 'nonsense'),
    'PYTHONUTF8': ('0', '1', '7'),
    'PYTHONCOERCECLOCALE': ('0', 'warn'),
    'PYTHONHASHSEED': ('0', 'x'),
    'PYTHONPLATLIBDIR': ('nonsense',),
    'PYTHONUSERBASE': (NOTHING,),
    'PYTHONNOUSERSITE': ('1',),
    'PYTHONMALLOC': ('debug', 'nonsense'),
    'PYTHONDEVMODE': ('1',),
    'PYTHONPYCACHEPREFIX': ('{folder}/pyc',),
    'PYTHONINTMAXSTRDIGITS': ('5',),
    'PYTHON_GIL': ('0',),
    'PYTHONCASEOK': ('1',),
    'PYTHONUNBUFFERED': ('1',),
    # conda, pyenv, virtual environments, notebooks
    'VIRTUAL_ENV': (NOTHING,),
    'CONDA_PREFIX': (NOTHING,),
    'CONDA_DEFAULT_ENV': ('base',),
    'PYENV_VERSION': ('3.6.15', 'nonsense'),
    '__PYVENV_LAUNCHER__': (NOTHING,),
    'MPLBACKEND': ('module://matplotlib_inline.backend_inline', 'nonsense'),
    'MPLCONFIGDIR': (NOTHING, '{folder}/mpl'),
    'JPY_PARENT_PID': ('1',),
    # pip and git
    'PIP_TARGET': (NOTHING,),
    'PIP_DRY_RUN': ('1',),
    'PIP_CONFIG_FILE': (NOTHING,),
    'PIP_REQUIRE_VIRTUALENV': ('1',),
    'GIT_DIR': (NOTHING, '{folder}'),
    'GIT_WORK_TREE': ('/', '{folder}'),
    'GIT_INDEX_FILE': (f'{NOTHING}/index',),
    'GIT_OBJECT_DIRECTORY': (NOTHING,),
    'GIT_CONFIG_COUNT': ('1', 'x'),
    'GIT_CONFIG_GLOBAL': (NOTHING,),
    'GIT_CONFIG_PARAMETERS': ("'core.autocrlf=true'", 'nonsense'),
    'GIT_TRACE': ('1',),
    'GIT_CEILING_DIRECTORIES': ('/',),
    'GIT_LITERAL_PATHSPECS': ('1',),
    # torch and what it starts
    'TORCH_HOME': ('{folder}/torch', NOTHING),
    'TORCH_LOGS': ('+dynamo', 'nonsense'),
    'TORCH_DISTRIBUTED_DEBUG': ('DETAIL', 'nonsense'),
    'TORCH_CPP_LOG_LEVEL': ('INFO', 'nonsense'),
    'TORCH_SHOW_CPP_STACKTRACES': ('1',),
    'TORCH_DEVICE_BACKEND_AUTOLOAD': ('0', '1'),
    'TORCH_FORCE_WEIGHTS_ONLY_LOAD': ('1',),
    'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': ('1',),
    'TORCHELASTIC_RESTART_COUNT': ('3', 'x'),
    'TORCHELASTIC_ERROR_FILE': (f'{NOTHING}/error.json',),
    'TORCHELASTIC_RUN_ID': ('other',),
    'TORCHELASTIC_USE_AGENT_STORE': ('True', 'False'),
    'PYTORCH_JIT': ('0',),
    'PYTORCH_CUDA_ALLOC_CONF': ('nonsense',),
    'ATEN_CPU_CAPABILITY': ('default', 'nonsense'),
    'CUDA_VISIBLE_DEVICES': ('7', ''),
    'NCCL_SOCKET_IFNAME': ('nosuch0',),
    'GLOO_SOCKET_IFNAME': ('lo', 'nosuch0'),
    # OpenMP
    'OMP_NUM_THREADS': ('0', '-1', 'x', '1,2', '64', ''),
    'OMP_PROC_BIND': ('true', 'nonsense'),
    'OMP_THREAD_LIMIT': ('1',),
    'OMP_DYNAMIC': ('true',),
    'OMP_MAX_ACTIVE_LEVELS': ('0', '1'),
    'OMP_STACKSIZE': ('1', 'x'),
    'OMP_DISPLAY_ENV': ('true',),
    'OMP_WAIT_POLICY': ('passive',),
    'GOMP_CPU_AFFINITY': ('0-99', 'x'),
    'KMP_AFFINITY': ('compact', 'nonsense'),
    'MKL_NUM_THREADS': ('0', 'x'),
    'MKL_THREADING_LAYER': ('INTEL', 'nonsense'),
    # Kubeflow
    'PET_NNODES': ('2', 'x'),
    'PET_NPROC_PER_NODE': ('8',),
    'PET_NODE_RANK': ('1',),
    'PET_RDZV_BACKEND': ('c10d',),
    'PET_RDZV_ENDPOINT': ('nowhere.invalid:1',),
    'PET_STANDALONE': ('1',),
    'PET_MAX_RESTARTS': ('5',),
    'PET_MODULE': ('1',),
    'PET_RUN_PATH': ('1',),
    'PET_NO_PYTHON': ('1',),
    'PET_TEE': ('3',),
    'PET_LOG_DIR': (NOTHING,),
    # Slurm, MPI, an outer torchrun
    'SLURM_PROCID': ('0', '3'),
    'SLURM_NTASKS': ('8',),
    'SLURM_JOB_ID': ('123',),
    'SLURM_LOCALID': ('3',),
    'SLURM_JOB_NODELIST': ('host[3,7]',),
    'OMPI_COMM_WORLD_RANK': ('3',),
    'OMPI_COMM_WORLD_SIZE': ('8',),
    'OMPI_COMM_WORLD_LOCAL_RANK': ('3',),
    'PMI_RANK': ('3',),
    'PMI_SIZE': ('8',),
    'PMIX_RANK': ('3',),
    'MPI_LOCALRANKID': ('3',),
    'RANK': ('5', 'x'),
    'LOCAL_RANK': ('5', 'x'),
    'WORLD_SIZE': ('8',),
    'LOCAL_WORLD_SIZE': ('8',),
    'GROUP_RANK': ('1',),
    'GROUP_WORLD_SIZE': ('x',),
    'MASTER_ADDR': ('nowhere.invalid',),
    'MASTER_PORT': ('1', 'x'),
    # the recipe's own, from an outer launcher
    'RECIPE_LAUNCHER_PID': ('1',),
    'RECIPE_AGENT_PID': ('1',),
    'RECIPE_HANG_TIMEOUT_S': ('1', 'x'),
    'RECIPE_SOCKETS': (NOTHING,),
    # terminals, libraries, time zones, proxies
    'TERM': ('dumb', 'nonsense', ''),
    'COLUMNS': ('0', '1', 'x'),
    'LINES': ('0', 'x'),
    'NO_COLOR': ('1',),
    'FORCE_COLOR': ('1',),
    'TZ': ('Nowhere/Nothing', ''),
    'XDG_CACHE_HOME': (NOTHING, '{folder}/cache'),
    'DISPLAY': (':99',),
    'LD_PRELOAD': ('/nonexistent.so',),
    'LD_BIND_NOW': ('1',),
    'MALLOC_ARENA_MAX': ('1',),
    'https_proxy': ('http://nowhere.invalid:1',),
    'SSL_CERT_FILE': (NOTHING,),
}
LOCALES = ('', 'C', 'POSIX', 'C.UTF-8', 'en_US.UTF-8', 'zh_CN.GBK', 'tr_TR.UTF-8', 'nonsense')
UMASKS = (0o022, 0o000, 0o027, 0o077, 0o777)
SHELLS = (('bash',), ('bash',), ('sh',), ('dash',), ('bash', '--posix'), ('bash', '-eu'), ('env', '-i', 'bash'))
PLACES = ('absolute', 'relative', 'link to the script', 'link to the folder', 'folder with spaces', 'deleted folder')
STREAMS = ('pipes', 'terminal', 'closed stdin', 'closed stdout', 'closed stderr')
TEMPORARY = ('short', 'long', 'missing', 'spaces', 'not set')
HOMES = ('usual', 'missing', 'not set', 'relative')
CLONES = ('as it is', 'as it is', 'as it is', 'as it is', 'CRLF')
ARGUMENTS = ['--demo', '--max_iters=1', '--nproc=1', '--num_workers=1', '--device=cpu']


@dataclass
class Environment:
    """One environment.

    Attributes:
        number: Its number in the campaign.
        variables: With ``{folder}`` not filled in yet.
    """

    number: int
    locale: str
    umask: int
    shell: Tuple[str, ...]
    place: str
    streams: str
    temporary: str
    home: str
    clone: str
    variables: Dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        unusual = [
            *([f'LC_ALL={self.locale}'] if self.locale else []),
            *([f'umask {self.umask:03o}'] if self.umask != UMASKS[0] else []),
            *([' '.join(self.shell)] if self.shell != SHELLS[0] else []),
            *([self.place] if self.place != PLACES[0] else []),
            *([self.streams] if self.streams != STREAMS[0] else []),
            *([f'TMPDIR {self.temporary}'] if self.temporary != TEMPORARY[0] else []),
            *([f'HOME {self.home}'] if self.home != HOMES[0] else []),
            *([self.clone] if self.clone != CLONES[0] else []),
            *(f'{name}={value}' for name, value in self.variables.items()),
        ]
        return ', '.join(unusual)


def draw(seed: int, count: int) -> List[Environment]:
    """Environments; the same for the same seed."""
    random = Random(seed)
    drawn = []
    # Each variable is drawn once before any is drawn again.
    names: List[str] = []

    def usually(values: Sequence[Any]) -> Any:
        """The first value half of the time, which is the usual one."""
        return random.choice(values) if random.random() < 0.5 else values[0]

    for number in range(1, count + 1):
        if len(names) < 8:
            names += random.sample(sorted(VARIABLES), len(VARIABLES))
        chosen = [names.pop(0) for _ in range(random.randint(2, 8))]
        drawn.append(
            Environment(
                number,
                locale=usually(LOCALES),
                umask=usually(UMASKS),
                shell=usually(SHELLS),
                place=usually(PLACES),
                streams=usually(STREAMS),
                temporary=usually(TEMPORARY),
                home=usually(HOMES),
                clone=usually(CLONES),
                variables={name: random.choice(VARIABLES[name]) for name in dict.fromkeys(chosen)},
            )
        )
    return drawn


class Prepared(NamedTuple):
    """How to start a launch.

    Attributes:
        command: The script and what runs it, without the script's arguments.
        env: All variables.
        cwd: Where to start; None for a folder that is deleted.
        temporary: The folder for temporary files, in which nothing may be left.
    """

    command: List[str]
    env: Dict[str, str]
    cwd: Optional[Path]
    temporary: Path


def prepare(one: Environment, folder: Path, root: Path, usual: Dict[str, str], script: str) -> Prepared:
    """Make the folders of an environment.

    Args:
        one: The environment.
        folder: An empty folder for it.
        root: The recipe.
        usual: Variables without which nothing can run here.
        script: Relative to ``root``.
    """
    # bash reads the file before it opens a script; after a `cd` it would not find a relative one.
    elsewhere = '' if one.place == 'relative' else 'cd /\n'
    (folder / 'bash_env').write_text(f'echo this file was read\n{elsewhere}alias cd=false\n')
    temporary = {'long': folder / ('long_' * 24), 'spaces': folder / 'with spaces'}.get(one.temporary, folder / 'tmp')
    if one.temporary != 'missing':
        temporary.mkdir()
    (folder / 'home').mkdir()
    env = {**usual, **{name: value.replace('{folder}', str(folder)) for name, value in one.variables.items()}}
    if '--posix' in one.shell:  # over a function with the name of a special builtin it ends, and reads no script
        env.pop('BASH_FUNC_source%%', None)
    env['HOME'] = {'missing': NOTHING, 'relative': 'home'}.get(one.home, str(folder / 'home'))
    env['TMPDIR'] = str(temporary)
    if one.home == 'not set':
        del env['HOME']
    if one.temporary == 'not set':
        del env['TMPDIR']
    if one.locale:
        env.update(LC_ALL=one.locale, LANG=one.locale)
    if one.clone == 'CRLF':
        shutil.copytree(root / 'test', folder / 'clone' / 'test', ignore=shutil.ignore_patterns('output', '*.py'))
        for path in (folder / 'clone').rglob('*.sh'):
            path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
        root = folder / 'clone'
    named, cwd = root / script, folder
    if one.place == 'relative':
        named, cwd = Path(script), root
    elif one.place == 'link to the script':
        named = folder / 'train'
        named.symlink_to(root / script)
    elif one.place in ('link to the folder', 'folder with spaces'):
        (folder / 'a link').symlink_to(root)
        named = folder / 'a link' / script
    shell = [*one.shell]
    if shell[0] == 'env':  # only what is needed
        shell = ['env', '-i', *(f'{name}={value}' for name, value in usual.items()), 'bash']
    return Prepared([*shell, str(named)], env, None if one.place == 'deleted folder' else cwd, temporary)


class Answer(NamedTuple):
    """What a launch did."""

    status: int
    out: str
    err: str


def launch(one: Environment, prepared: Prepared, arguments: List[str], folder: Path) -> Answer:
    """Run a launch to its end."""
    out, err = folder / 'out.txt', folder / 'err.txt'
    closed = {'closed stdin': 0, 'closed stdout': 1, 'closed stderr': 2}.get(one.streams)
    gone = folder / 'gone'
    gone.mkdir()

    def before() -> None:
        os.umask(one.umask)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if prepared.cwd is None:
            gone.rmdir()
        if closed is not None:
            os.close(closed)

    terminal = pty.openpty() if one.streams == 'terminal' else None
    with out.open('wb') as to_out, err.open('wb') as to_err:
        process = subprocess.Popen(
            [*prepared.command, *arguments],
            stdin=subprocess.DEVNULL if terminal is None else terminal[1],
            stdout=to_out if terminal is None else terminal[1],
            stderr=to_err,
            env=prepared.env,
            cwd=str(gone if prepared.cwd is None else prepared.cwd),
            preexec_fn=before,
        )
        if terminal is not None:
            os.close(terminal[1])
            while True:
                try:
                    block = os.read(terminal[0], 1 << 16)
                except OSError:  # nobody holds the other end any more
                    break
                to_out.write(block)
            os.close(terminal[0])
        status = process.wait(timeout=1200)
    return Answer(status, out.read_text(errors='replace'), err.read_text(errors='replace'))


def judge(one: Environment, answer: Answer, result: Optional[Path], left: List[str]) -> Tuple[str, str]:
    """What became of a launch, ``trained``, ``refused`` or ``FAULT``, and in what words.

    Args:
        one: The environment.
        answer: What the launch did.
        result: The run's result.json; None if there is none.
        left: What it left in TMPDIR.
    """
    text = answer.out + answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith('error: ')]
    faults = []
    if 'Traceback' in text or 'SyntaxError' in text or 'command not found' in text:
        faults.append('a traceback or a syntax error')
    if 'this function was called' in text or 'was read' in answer.out.replace('this file was read\n', '', 1):
        faults.append("the caller's functions or files were used")
    if left:
        faults.append(f'left in TMPDIR: {", ".join(left)}')
    if answer.status == 0 and (result is None or not json.loads(result.read_text())['complete']):
        faults.append('status 0 without a complete training')
    if answer.status != 0 and one.streams != 'closed stderr' and len(errors) != 1:
        faults.append(f'status {answer.status} with {len(errors)} error lines')
    if answer.status < 0 or (answer.status > 2 and not errors):
        faults.append(f'status {answer.status}')
    if faults:
        return 'FAULT', '; '.join(faults) + f': {text[-300:]!r}'
    return ('trained', '') if answer.status == 0 else ('refused', (errors or ['stderr is closed'])[0])


class Campaign:
    """A copy of the recipe with a small data set.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        from launch_sandbox import TINY_OVERRIDES, Sandbox

        self.folder = folder
        self.sandbox = Sandbox(folder)
        data = self.sandbox.make_data('data', train=4, val=2)
        self.arguments = [*ARGUMENTS, f'--data_path={data}']
        self.overrides = [text for text in TINY_OVERRIDES if not text.startswith('default_hooks.logger.')]
        keep = ('PATH', 'PYTHONPATH')
        self.usual = {name: self.sandbox.env[name] for name in keep}

    def run(self, one: Environment) -> Tuple[Environment, str, str, float]:
        """Launch in an environment and judge what it did."""
        began = time.monotonic()
        folder = self.folder / f'environment {one.number}'
        folder.mkdir()
        # The copy's checkouts have to be imported, not those of the environment's own installation.
        if 'PYTHONPATH' in one.variables:
            one.variables['PYTHONPATH'] = f'{self.usual["PYTHONPATH"]}:{one.variables["PYTHONPATH"]}'
        prepared = prepare(one, folder, self.sandbox.root, self.usual, 'test/train_full_8p.sh')
        run = folder / 'run'
        answer = launch(one, prepared, [*self.arguments, f'--work_dir={run}', *self.overrides], folder)
        result = run / 'result.json'
        left = sorted(path.name for path in prepared.temporary.iterdir()) if prepared.temporary.is_dir() else []
        # torch and matplotlib keep caches there if there is no home.
        left = [name for name in left if not re.match(r'torchinductor_|matplotlib-', name)]
        outcome, words = judge(one, answer, result if result.is_file() else None, left)
        if outcome == 'refused' and run.exists():
            outcome, words = 'FAULT', f'refused, and {run} was made: {words}'
        if outcome != 'FAULT':
            shutil.rmtree(folder, ignore_errors=True)
        return one, outcome, words, time.monotonic() - began


def row(one: Environment, outcome: str, words: str) -> str:
    """A launch as a line of text."""
    return f'{one.number:4d}  {outcome:7}  {one}' + (f'  ->  {words}' if words else '')


def write(folder: Path, command: str, rows: List[str], outcomes: List[str]) -> None:
    """Write command, versions and table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'command.txt').write_text(command + '\n')
    (folder / 'versions.txt').write_text(f'python {platform.python_version()}\nlinux {platform.release()}\n')
    (folder / 'table.txt').write_text('\n'.join([*rows, '', summary(outcomes), '']))


def summary(outcomes: List[str]) -> str:
    """How many launches there were and what became of them."""
    counts = ', '.join(f'{outcomes.count(name)} {name}' for name in ('trained', 'refused', 'FAULT'))
    return f'{len(outcomes)} environments: {counts}'


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, default=100)
    parser.add_argument('--first', type=int, default=1, help='leave out the environments before this one')
    parser.add_argument('--jobs', type=int, default=2, help='launches at a time')
    parser.add_argument('--out', type=Path, help='folder for the command, versions and the table')
    parser.add_argument('--keep', type=Path, help='an empty folder to work in, which stays')
    return parser.parse_args(argv)


def main() -> int:
    """Entry point; see the module's docstring."""
    asked = parse()
    drawn = draw(asked.seed, asked.count)[asked.first - 1 :]
    rows, outcomes = [], []
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(asked.keep or Path(scratch))
        with ThreadPoolExecutor(asked.jobs) as pool:
            for one, outcome, words, seconds in pool.map(campaign.run, drawn):
                rows.append(row(one, outcome, words).replace(str(campaign.folder), 'FOLDER'))
                outcomes.append(outcome)
                print(f'{rows[-1]}  ({seconds:.0f} s)', flush=True)
                if asked.out:
                    command = f'python test/faults/environments.py --seed={asked.seed} --count={asked.count}'
                    write(asked.out, command, rows, outcomes)
    print(summary(outcomes))
    return int('FAULT' in outcomes)


if __name__ == '__main__':
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parents[2]), str(here.parents[1] / 'support')]
    sys.exit(main())
