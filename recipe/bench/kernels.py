"""Records the kernels of a training step: where they come from, the bytes that they move and their FLOPs.

Each operator that reaches the device and is no view counts as one kernel. It reads each input once and writes each
output once. An axis that is expanded (stride 0) counts once. What is only overwritten is not read. A gather reads as
much as it returns. Caches are not modelled. Some operators are several kernels in truth (sums over columns, topk,
foreach operators of more tensors than one launch takes), so the number of kernels is a lower bound.

A kernel of the forward pass belongs to the innermost module that runs. One of the backward pass belongs to the module
whose forward pass made the node of autograd, which the node's sequence number tells.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

FORWARD, BACKWARD, OPTIMIZER = 'forward', 'backward', 'optimizer'
_NO_KERNEL = {
    '_has_same_storage_numel', '_local_scalar_dense', '_unsafe_view', 'empty', 'empty_like', 'empty_strided',
    'is_same_size', 'lift_fresh', 'new_empty', 'new_empty_strided', 'record_stream', 'resize_', 'set_',
}  # fmt: skip
_OVERWRITING = {'_foreach_copy_', 'copy_', 'fill_', 'normal_', 'random_', 'uniform_', 'zero_', '_foreach_zero_'}
_GATHERS = {'_index_select', 'embedding', 'gather', 'grid_sampler_2d', 'index', 'index_select'}
# Kernels of libraries, into which a compiler fuses nothing.
_LIBRARY = {
    '_addmm_activation', '_efficient_attention_forward', '_scaled_dot_product_efficient_attention',
    '_scaled_dot_product_efficient_attention_backward', 'addmm', 'addmm_', 'baddbmm', 'bmm', 'convolution',
    'convolution_backward', 'col2im', 'embedding_dense_backward', 'grid_sampler_2d_backward', 'im2col', 'index_add',
    'index_copy', 'index_copy_', 'index_put', 'index_put_', 'mm', 'native_group_norm', 'native_group_norm_backward',
    'native_layer_norm_backward', 'scatter_add', 'sort', 'topk', 'uniform_', 'deformable_attention',
    'deformable_attention_backward', 'fused_attention', 'fused_attention_backward', 'add_norm', 'add_norm_backward',
    'window_attention_forward', 'window_attention_backward_queries', 'window_attention_backward_keys', 'window_softmax',
}  # fmt: skip
_LOSS = re.compile(r'/(loss|static_loss|matching|points|\w*assigner|match_cost|\w*sampler|\w*_loss|point_sample)\.py$')
_LOSS_FUNCTIONS = {'loss_by_feat', '_loss_by_feat_single', 'get_targets', 'parse_losses'}
_OURS = re.compile(r'/(recipe/(models|engine)|mmcv|mmdet|mmseg|mmengine)/')
_STAGE = re.compile(r'backbone\.stages\.(\d)')
# Prefixes of module names, and what a table calls them.
_PARTS = (
    ('backbone.patch_embed', 'Swin patch embedding'),
    ('backbone', 'Swin output norms'),
    ('decode_head.pixel_decoder.encoder', 'pixel encoder'),
    ('decode_head.pixel_decoder', 'pixel decoder'),
    ('decode_head', 'transformer decoder'),
    ('data_preprocessor', 'preprocessing'),
)


@dataclass
class Kernel:
    """One kernel.

    Attributes:
        phase: ``forward`` (with the losses), ``backward`` or ``optimizer`` (with clipping).
        part: Part of the model.
        place: ``file:function`` of the code that called it, or whose backward pass did.
        name: Name of the operator.
        read: Bytes read.
        written: Bytes written.
        flops: Floating-point operations of products, attention and convolutions; 0 for other kernels.
        dtype: Dtype of the first output.
        numel: Elements of the largest tensor.
        inputs: Storages that it reads, with their bytes.
        outputs: Storages that it writes, with their bytes.
    """

    phase: str
    part: str
    place: str
    name: str
    read: int
    written: int
    flops: int
    dtype: torch.dtype
    numel: int
    inputs: Dict[int, int] = field(default_factory=dict)
    outputs: Dict[int, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class Kernels(TorchDispatchMode):
    """Records the kernels of the block.

    Args:
        names: Name of each module of the model by its ``id``.
        device: Type of the device whose kernels count.

    Attributes:
        found: The kernels in order.
        phase: Set by the caller.
        copies: Copies between host and device: ``to host``, ``to device``; and ``read``, one value for Python.
    """

    def __init__(self, names: Dict[int, str], device: str = 'meta') -> None:
        super().__init__()
        self._names, self._device = names, device
        self.found: List[Kernel] = []
        self.copies: Counter = Counter()
        self.phase = FORWARD
        self._places: Dict[int, Tuple[str, str]] = {}
        self._seen = torch.autograd._get_sequence_nr()
        self._last = ('other', '')
        self._kept: Dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == 'native_layer_norm_backward' and self._device == 'meta':
            # On meta it is composed of others and takes over strides; kernels of accelerators return plain tensors.
            result = tuple(
                x if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in result
            )
        part, place = self._place(name)
        if self._counts_copy(name, args, result) or func.namespace in ('c10d', 'profiler', 'prim'):
            return result
        if name in _NO_KERNEL or _is_view(func):
            return result
        self._record(func, name, part, place, args, kwargs, result)
        return result

    def _counts_copy(self, name: str, args: Any, result: Any) -> bool:
        """Count a copy between host and device; return whether it was one."""
        if name == '_local_scalar_dense':
            self.copies['read'] += args[0].device.type == self._device
        if name not in ('_to_copy', 'copy_'):
            return False
        source, target = (args[1], args[0]) if name == 'copy_' else (args[0], result)
        if source.device.type == target.device.type:
            return source.device.type != self._device
        self.copies['to device' if target.device.type == self._device else 'to host'] += 1
        return True

    def _on_device(self, tree: Any) -> List[torch.Tensor]:
        return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.device.type == self._device]

    def _record(self, func: Any, name: str, part: str, place: str, args: Any, kwargs: Any, result: Any) -> None:
        reads: List[torch.Tensor] = []
        writes: List[torch.Tensor] = []
        for number, argument in enumerate(func._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            changed = argument.alias_info is not None and argument.alias_info.is_write
            if changed:
                writes += self._on_device(value)
            if not changed or not (name in _OVERWRITING or argument.is_out):
                reads += self._on_device(value)
        given = {id(x) for x in writes}
        writes += [x for x in self._on_device(result) if id(x) not in given]
        if not reads and not writes:
            return
        written = sum(map(_bytes, writes))
        read = 0
        for number, x in enumerate(reads):
            limit = {'grid_sampler_2d': 4 * written}.get(name, written) if name in _GATHERS and not number else None
            read += _bytes(x) if limit is None else min(_bytes(x), limit)
        flops = 0
        # torch counts no FLOPs for a product with an activation. They are those of the product alone.
        counted = torch.ops.aten.addmm if name == '_addmm_activation' else func.overloadpacket
        if counted in flop_registry:
            flops = int(flop_registry[counted](*args, **kwargs, out_val=result))
        self.found.append(
            Kernel(
                self.phase, part, place, name, read, written, flops, (writes or reads)[0].dtype,
                max(x.numel() for x in (*reads, *writes)),
                {self._storage(x): _bytes(x) for x in reads}, {self._storage(x): _bytes(x) for x in writes},
            )
        )  # fmt: skip

    def _storage(self, x: torch.Tensor) -> int:
        storage = x.untyped_storage()
        self._kept[storage._cdata] = storage  # kept alive, so that no other storage gets its address
        return storage._cdata

    def _place(self, name: str) -> Tuple[str, str]:
        """Part of the model and place in the code of the operator that runs."""
        node = torch._C._current_autograd_node() if self.phase == BACKWARD else None
        if self.phase == BACKWARD:
            if node is None and name == 'copy_':
                return 'gradients', 'DDP'  # out of its buckets
            if node is None:
                return self._last  # a gradient that several nodes add to
            if 'AccumulateGrad' in node.name():
                return 'gradients', 'AccumulateGrad'
            self._last = self._places.get(node._sequence_nr(), ('other', node.name()))
            return self._last
        if self.phase == OPTIMIZER:
            return 'optimizer', _innermost(sys._getframe(2))
        place = self._forward_place(sys._getframe(2))
        now = torch.autograd._get_sequence_nr()
        for number in range(self._seen, now):
            self._places[number] = place
        self._seen = now
        return place

    def _forward_place(self, frame: Optional[FrameType]) -> Tuple[str, str]:
        module, place, in_loss = '', '', False
        while frame is not None:
            code = frame.f_code
            if _OURS.search(code.co_filename):
                place = place or _name_of(frame)
                in_loss = in_loss or code.co_name in _LOSS_FUNCTIONS or bool(_LOSS.search(code.co_filename))
            if not module and 'self' in code.co_varnames[: code.co_argcount] + code.co_freevars:
                module = self._names.get(id(frame.f_locals.get('self')), '')
            frame = frame.f_back
        return ('loss' if in_loss else part_of(module)), place


def part_of(module: str) -> str:
    """Part of the model that a module belongs to, by its name."""
    stage = _STAGE.match(module)
    if stage:
        return f'Swin stage {int(stage[1]) + 1}'
    return next((part for prefix, part in _PARTS if module.startswith(prefix)), 'other')


def _innermost(frame: Optional[FrameType]) -> str:
    while frame is not None and not _OURS.search(frame.f_code.co_filename):
        frame = frame.f_back
    return _name_of(frame) if frame is not None else ''


def _name_of(frame: FrameType) -> str:
    return f'{frame.f_code.co_filename.rpartition("/")[2]}:{frame.f_code.co_name}'


def _is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


def _bytes(x: torch.Tensor) -> int:
    """Bytes of a tensor; an expanded axis counts once."""
    numel = 1
    for size, stride in zip(x.shape, x.stride()):
        numel *= size if stride else 1
    return numel * x.element_size()


def fused(kernels: Sequence[Kernel]) -> List[Kernel]:
    """Estimate what is left if all kernels but those of libraries were fused, as a compiler does.

    A kernel joins the group that made one of its inputs, if both work on the same number of elements in the same phase.
    A group reads what comes from outside once, and writes what later kernels read.

    Args:
        kernels: In order.

    Returns:
        One kernel for each group.
    """
    groups: List[List[Kernel]] = []
    maker: Dict[int, int] = {}
    group_of: List[int] = []
    for one in kernels:
        group = None
        if one.name not in _LIBRARY:
            made = [maker[key] for key in one.inputs if key in maker]
            if made:
                first = groups[max(made)][0]
                if first.name not in _LIBRARY and (first.phase, first.numel) == (one.phase, one.numel):
                    group = max(made)
        if group is None:
            group = len(groups)
            groups.append([])
        groups[group].append(one)
        group_of.append(group)
        maker.update(dict.fromkeys(one.outputs, group))
    readers: Dict[int, set] = {}
    for one, group in zip(kernels, group_of):
        for key in one.inputs:
            readers.setdefault(key, set()).add(group)
    return [_merged(members, number, readers) for number, members in enumerate(groups)]


def _merged(members: List[Kernel], number: int, readers: Dict[int, set]) -> Kernel:
    first = members[0]
    if len(members) == 1:
        return first
    read: Dict[int, int] = {}
    written: Dict[int, int] = {}
    for one in members:
        share = one.read / max(sum(one.inputs.values()), 1)
        for key, size in one.inputs.items():
            if key not in written:
                read[key] = max(read.get(key, 0), int(size * share))
        written.update(one.outputs)
    kept = {key: size for key, size in written.items() if readers.get(key, set()) != {number}}
    return Kernel(
        first.phase, first.part, first.place, first.name, sum(read.values()), sum(kept.values()),
        sum(one.flops for one in members), first.dtype, first.numel, read, kept,
    )  # fmt: skip
