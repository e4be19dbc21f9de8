"""Imported by every interpreter that runs under emulate.py: loads the kernels right after torch_npu."""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder


class _AfterTorchNpu(MetaPathFinder, Loader):
    """Finds torch_npu as Python would, and loads the kernels when it has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != 'torch_npu':
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self.loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        kernels = os.environ['EMULATED_NPU_KERNELS']
        if os.path.exists(kernels):
            import torch

            torch.ops.load_library(kernels)


def _refuse_results(event, arguments):
    """Audit hook: what an emulated device computes is no result."""
    if event == 'open':
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else False
        targets = [path] if writes or (isinstance(mode, str) and mode.strip('rbtU')) else []
    elif event in ('os.rename', 'os.link', 'os.symlink', 'shutil.copyfile', 'shutil.move', 'shutil.copytree'):
        targets = [arguments[1]]
    elif event == 'os.mkdir':
        targets = [arguments[0]]
    else:
        return
    for path in targets:
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(path))
            if os.path.basename(os.path.dirname(path)) == 'results' or '/results/' in path:
                raise PermissionError(f'emulated NPU: nothing of it may be written into results/ ({path})')


if 'EMULATED_NPU_STARTER' in os.environ:
    sys.meta_path.insert(0, _AfterTorchNpu())
    sys.addaudithook(_refuse_results)
