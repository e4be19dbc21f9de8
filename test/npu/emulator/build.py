"""Builds the emulated CANN and the boxed kernels with the compiler of this machine, against the installed torch_npu.

    python test/npu/emulator/build.py FOLDER    # leaves FOLDER/cann, laid out as CANN installs itself, and
                                                  # FOLDER/kernels.so

Run it with the interpreter of the NPU stack. What is newer than its sources is left as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, List, Set

HERE = Path(__file__).resolve().parent
# One library holds everything; CANN's names lead to it.
EMULATOR = 'libemulated_cann.so'
CANN_LIBRARIES = (
    'libascendcl.so',
    'libacl_op_compiler.so',
    'libacl_tdt_channel.so',
    'libascend_protobuf.so',
    'libatb.so',
    'libfmk_parser.so',
    'libge_runner.so',
    'libgraph.so',
    'libhccl.so',
    'libopapi.so',
)
CANN_VERSION = '8.1.RC1'  # what README names for the npu-2.1 stack
# Their owners in CANN; torch_npu needs each of them to be there when it is loaded.
PREFIXES = ('acl', 'Hccl', 'Msprof', 'rtDev', 'rtFunction', 'rtKernel', '_ZN3atb', '_ZN2ge', '_ZNK2ge')
WARNINGS = ('-Wall', '-Wextra', '-Werror', '-Wno-deprecated-declarations')


def package(name: str) -> Path:
    """Folder of an installed package, without importing it: torch_npu needs what is being built."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def _symbols(file: Path, kind: str) -> Set[str]:
    done = subprocess.run(['nm', '-D', f'--{kind}-only', str(file)], stdout=subprocess.PIPE, text=True, check=True)
    return {line.split()[-1].split('@')[0] for line in done.stdout.splitlines()}


def missing_symbols(users: Iterable[Path], provider: Path) -> List[str]:
    """Symbols of CANN that some libraries need and the emulator does not define."""
    users = list(users)
    needed = {name for user in users for name in _symbols(user, 'undefined') if name.startswith(PREFIXES)}
    return sorted(needed - {name for file in (*users, provider) for name in _symbols(file, 'defined')})


def stubs(names: Iterable[str]) -> str:
    """Source of functions that name themselves and end the process, for what no test may reach."""
    lines = ['#include <stdio.h>', '#include <stdlib.h>']
    for number, name in enumerate(names):
        lines.append(f'void stub_{number}(void) __asm__("{name}");')
        lines.append(
            f'void stub_{number}(void) {{ fputs("error: emulated NPU: {name} is not emulated (test/npu)\\n", stderr); '
            'abort(); }'
        )
    return '\n'.join(lines) + '\n'


def _compile(command: List[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f'error: {" ".join(command)}\n{done.stdout}')


def _objects(jobs: Dict[Path, List[str]], folder: Path) -> List[Path]:
    """Compile sources that changed; the name of an object says what it was made from."""
    headers = b''.join(path.read_bytes() for path in sorted(HERE.rglob('*.h')))
    objects, commands = [], []
    for source, options in jobs.items():
        key = hashlib.sha256(source.read_bytes() + headers + ' '.join(options).encode()).hexdigest()[:16]
        target = folder / f'{source.stem}.{key}.o'
        objects.append(target)
        if not target.is_file():
            beside = target.with_suffix('.new')
            commands.append((['g++', '-std=c++17', '-fPIC', '-c', *options, str(source), '-o', str(beside)], beside))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(lambda job: _compile(job[0]), commands))
    for _, beside in commands:
        beside.rename(beside.with_suffix('.o'))
    return objects


def build_cann(folder: Path) -> Path:
    """Build the library that stands for CANN's, and the links to it.

    Args:
        folder: Where to.

    Returns:
        CANN's folder.
    """
    home = folder / 'cann'
    headers = package('torch_npu') / 'include/third_party'
    options = ['-O2', *WARNINGS, f'-DCANN_VERSION="{CANN_VERSION}"', f'-I{headers}/acl/inc', f'-I{headers}/hccl/inc']
    # What hccl.h itself includes, and torch's half-precision numbers.
    for name in ('torch_npu', 'torch'):
        options += ['-isystem', str(package(name) / 'include')]
    objects = _objects(dict.fromkeys(sorted(HERE.glob('*.cpp')), options), folder / 'objects')
    library = home / 'lib64' / EMULATOR
    linked = ['-shared', '-pthread', '-lrt', '-ldl', *map(str, objects)]
    stamp = folder / 'cann.stamp'
    users = sorted({*package('torch_npu').rglob('*.so'), *package('mx_driving').glob('*.so')})
    key = ' '.join([*PREFIXES, *map(str, objects), *(f'{user} {user.stat().st_size}' for user in users)])
    if not library.is_file() or not stamp.is_file() or stamp.read_text() != key:
        probe = folder / 'objects' / 'probe.so'
        _compile(['g++', '-o', str(probe), *linked])
        source = folder / 'objects' / 'stubs.c'
        source.write_text(stubs(missing_symbols(users, probe)))
        _compile(['gcc', '-fPIC', '-c', str(source), '-o', str(source.with_suffix('.o'))])
        _compile(['g++', '-o', str(library), *linked, str(source.with_suffix('.o')), '-Wl,-z,defs'])
        stamp.write_text(key)
    for name in CANN_LIBRARIES:
        link = library.with_name(name)
        if not link.is_symlink():
            link.symlink_to(EMULATOR)
    _write_cann_files(home)
    return home


def _write_cann_files(home: Path) -> None:
    """Write what torch_npu, the doctor and test/env_npu.sh look for in CANN's folder."""
    for name in ('opp', 'runtime', 'compiler', 'x86_64-linux'):
        (home / name).mkdir(exist_ok=True)
    for name in ('compiler', 'x86_64-linux'):
        (home / name / 'ascend_toolkit_install.info').write_text(f'version={CANN_VERSION}\n')
    (home / 'set_env.sh').write_text(
        f'export ASCEND_TOOLKIT_HOME="{home}"\n'
        'export ASCEND_HOME_PATH="${ASCEND_TOOLKIT_HOME}"\n'
        'export ASCEND_OPP_PATH="${ASCEND_TOOLKIT_HOME}/opp"\n'
        'export LD_LIBRARY_PATH="${ASCEND_TOOLKIT_HOME}/lib64:${LD_LIBRARY_PATH}"\n'
    )


def build_kernels(folder: Path) -> Path:
    """Build the CPU kernels that take the place of torch_npu's own.

    Args:
        folder: Where to.

    Returns:
        The library.
    """
    # torch from 2.5 on would import torch_npu, which cannot be imported before this build.
    os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
    import torch

    torch_npu = package('torch_npu')
    torch_include = package('torch') / 'include'
    includes = [str(torch_include), str(torch_include / 'torch/csrc/api/include'), str(torch_npu / 'include')]
    includes += [str(torch_npu / 'include/third_party' / name) for name in ('acl/inc', 'hccl/inc')]
    options = ['-O1', f'-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}', f'-I{HERE}']
    options += [part for path in includes for part in ('-isystem', path)]
    # GCC 12 sees an overflow in c10::IValue of torch 2.7, where none is.
    options += [*WARNINGS, '-Wno-stringop-overflow']
    # One unit: torch's headers take nearly all of the time.
    source = folder / 'objects' / 'kernels.cpp'
    sources = sorted((HERE / 'kernels').glob('*.cpp'))
    source.write_text(''.join(f'#line 1 "{path}"\n{path.read_text()}' for path in sources))
    objects = _objects({source: [*options, f'-I{HERE / "kernels"}']}, folder / 'objects')
    library = folder / 'kernels.so'
    if not library.is_file() or any(item.stat().st_mtime > library.stat().st_mtime for item in objects):
        folders = [str(package('torch') / 'lib'), str(torch_npu / 'lib'), str(folder / 'cann/lib64')]
        paths = [f'-L{path}' for path in folders]
        libraries = ['-ltorch', '-ltorch_cpu', '-lc10', '-ltorch_npu', f'-l:{EMULATOR}']
        _compile(['g++', '-shared', '-o', str(library), *map(str, objects), *paths, *libraries])
    return library


def build(folder: Path) -> None:
    """Build everything into a folder."""
    for name in ('cann/lib64', 'objects'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    build_cann(folder)
    build_kernels(folder)


if __name__ == '__main__':
    build(Path(sys.argv[1]).resolve())
