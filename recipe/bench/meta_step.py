"""Runs training iterations on torch's ``meta`` device as an accelerator would run them, without one.

The trainer is real: mmengine's Runner with its hooks, buckets of gradients, clipping, the optimizer, the guards.
Tensors on ``meta`` have shapes and no values, so nothing is computed. Four things are replaced:

- kernels that exist on accelerators only (deformable attention; the assignment of masks; ``add_norm``,
  ``token_attention`` and ``scaled_dot_product_attention`` on CUDA; torch_npu's attention and AdamW) by operators that
  only return shapes;
- autocast, which ``meta`` does not have, by the lists of CUDA's;
- a copy to the host by random numbers;
- other values that the host reads (upstream's ``nonzero``, ``unique`` or ``item``) by those of an iteration on the CPU.

An operator that gets tensors of two devices is an error here, as on an accelerator.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from collections import deque
from typing import Any, Callable, ClassVar, Dict, Iterator, List, Mapping, Sequence, Tuple, Union
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from recipe.bench import kernels
from recipe.bench import model as bench_model
from recipe.bench.trainer import Trainer
from recipe.models.execution import meta_stands_for

RANKS = 8
Answer = Union[bool, int, float, List[Tuple[Tuple[int, ...], torch.dtype]]]
_VALUES = ('_local_scalar_dense', 'is_nonzero', 'equal')
_SHAPES = ('nonzero', '_unique', '_unique2', 'unique_dim', 'unique_consecutive', 'masked_select')


class TwoDevicesError(RuntimeError):
    """An operator got tensors of two devices."""


class Answers(TorchDispatchMode):
    """Answers what the host asks tensors on ``meta``, and refuses operators on tensors of two devices.

    Args:
        recorded: Answers by operator, from :func:`record`, in order; each is used once.
    """

    def __init__(self, recorded: Mapping[str, Sequence[Answer]]) -> None:
        super().__init__()
        self._recorded = {name: deque(answers) for name, answers in recorded.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_meta = any(x.is_meta for x in tensors)
        if asks(name, args):
            queue = self._recorded.get(name)
            answer: Any = queue.popleft() if queue else 1  # scalars that upstream reads to log them
            if not on_meta:  # the recording has an answer for it nevertheless
                return func(*args, **kwargs)
            if isinstance(answer, list):
                made = [torch.empty(shape, dtype=dtype, device='meta') for shape, dtype in answer]
                return made[0] if len(made) == 1 else tuple(made)
            return answer
        if not on_meta:
            return func(*args, **kwargs)
        device = kwargs.get('device')
        if name == '_to_copy' and device is not None and torch.device(device).type == 'cpu':
            return torch.rand(args[0].shape).to(kwargs.get('dtype') or args[0].dtype)
        if name == 'copy_' and not args[0].is_meta:
            return args[0]  # DDP's order of gradients, which it gets back as it sent it
        if name not in ('_to_copy', 'copy_'):
            require_one_device(func, tensors)
        return func(*args, **kwargs)


def require_one_device(func: Any, tensors: Sequence[Tensor]) -> None:
    """Raise :class:`TwoDevicesError` if tensors are on two devices; a CPU tensor without axes may join any."""
    devices = {x.device for x in tensors if x.dim() or x.device.type != 'cpu'}
    # Fused and foreach optimizers take their step counts from the CPU.
    if len(devices) > 1 and func.namespace == 'aten':
        raise TwoDevicesError(f'{func} got tensors on {" and ".join(sorted(map(str, devices)))}')


def asks(name: str, args: Any) -> bool:
    """Whether the result of an operator, or its shape, depends on values."""
    if name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
        return name == 'index' and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return name in _VALUES or name in _SHAPES


class Recording(TorchDispatchMode):
    """Records the answers to what the host asks in an iteration on the CPU.

    Attributes:
        answers: By operator, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: Dict[str, List[Answer]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if asks(name, args):
            shapes = [(tuple(x.shape), x.dtype) for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.answers.setdefault(name, []).append(shapes or result)
        return result


class _Autocast:
    """Stands in for ``torch.autocast``.

    Attributes:
        on: Whether operators cast their inputs to bfloat16.
        cast: Casts of parameters, which autocast keeps until the outermost context ends.
    """

    on = False
    cast: ClassVar[Dict[int, Tuple[Tensor, Tensor]]] = {}

    def __init__(self, device_type: str = '', dtype: Any = None, enabled: bool = True, **_: Any) -> None:
        self._enabled = enabled

    def __enter__(self) -> None:
        self._before, _Autocast.on = _Autocast.on, bool(self._enabled)

    def __exit__(self, *_: Any) -> None:
        _Autocast.on = self._before

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with _Autocast(enabled=self._enabled):
                return function(*args, **kwargs)

        return run


# Lists of at::autocast for CUDA, by the names of the functions in Python, as far as the models use them.
_HALF = {
    '__matmul__', '__rmatmul__', 'addmm', 'baddbmm', 'bmm', 'conv2d', 'einsum', 'linear', 'matmul', 'mm',
}  # fmt: skip
_FLOAT = {
    'binary_cross_entropy_with_logits', 'cross_entropy', 'exp', 'group_norm', 'interpolate', 'layer_norm', 'log',
    'log_softmax', 'nll_loss', 'norm', 'pow', 'rsqrt', 'softmax', 'softplus', 'sum',
}  # fmt: skip
_WIDEST = {'addcmul', 'cat', 'grid_sample', 'grid_sampler', 'index_put', 'stack'}


def _to(tree: Any, dtype: torch.dtype) -> Any:
    """Cast the floating tensors on ``meta`` as autocast does."""

    def cast(x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.dtype == dtype or not x.is_meta:
            return x
        if dtype == torch.bfloat16 and x.is_leaf and x.requires_grad:
            if id(x) not in _Autocast.cast:
                _Autocast.cast[id(x)] = x, x.to(dtype)
            return _Autocast.cast[id(x)][1]
        return x.to(dtype)

    return tree_map_only(Tensor, cast, tree)


class _AutocastMode(TorchFunctionMode):
    """Casts the inputs of functions as CUDA's autocast does."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, '__name__', '')
        dtype = None
        if not _Autocast.on:
            return function(*args, **kwargs)
        if name in _HALF:
            dtype = torch.bfloat16
        elif name in _FLOAT or (
            name in _WIDEST and any(isinstance(x, Tensor) and x.dtype == torch.float32 for x in tree_leaves(args))
        ):
            dtype = torch.float32
        if dtype is not None:
            args, kwargs = _to(args, dtype), _to(kwargs, dtype)
        return function(*args, **kwargs)


# Kernels of token_attention, and how many products of N x N x D each makes for a head of a window, one N being padded.
_PRODUCTS = {'window_attention_forward': 2, 'window_attention_backward_queries': 3, 'window_attention_backward_keys': 4}


def _attention_flops(products: int, inputs: Sequence[Any], **_: Any) -> int:
    from recipe.models import token_attention

    qkv, bias, rows = inputs[:3]
    return products * 2 * token_attention.block_sizes(bias.shape[1])[1] * len(rows) * (qkv.shape[1] // 3)


@functools.lru_cache(maxsize=None)
def _library() -> Any:
    """Operators that only return shapes."""
    library = torch.library.Library('recipe_bench', 'DEF')
    library.define('deformable_attention(Tensor value, Tensor locations, Tensor weights) -> Tensor')
    library.define(
        'deformable_attention_backward(Tensor grad, Tensor value, Tensor locations, Tensor weights, Tensor sums)'
        ' -> (Tensor, Tensor)'
    )
    for name in ('add_norm', 'add_norm_backward', 'window_softmax', *_PRODUCTS):
        library.define(f'{name}(Tensor?[] inputs, *, Tensor(a!)[] out) -> ()')
        library.impl(name, lambda inputs, out: None, 'CompositeExplicitAutograd')
    for name, products in _PRODUCTS.items():
        flop_registry[getattr(torch.ops.recipe_bench, name)] = functools.partial(_attention_flops, products)

    library.define('assign(Tensor costs, Tensor table, int size) -> (Tensor, Tensor, Tensor)')

    def assign(costs: Tensor, table: Tensor, size: int) -> Tuple:
        return table.new_empty(size), table.new_empty(size), table.new_empty(len(table), dtype=torch.bool)

    def forward(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    def backward(grad: Tensor, value: Tensor, locations: Tensor, weights: Tensor, sums: Tensor) -> Tuple:
        return torch.zeros_like(locations), torch.zeros_like(weights)

    kernels_by_name: Dict[str, Callable] = {
        'assign': assign, 'deformable_attention': forward, 'deformable_attention_backward': backward,
    }  # fmt: skip
    for name, function in kernels_by_name.items():
        library.impl(name, function, 'CompositeExplicitAutograd')
    return library


def _solve_table(costs: Tensor, table: Tensor, num_queries: int, most_masks: int, size: int) -> Tuple:
    """``assignment.solve_table`` without Triton."""
    _library()
    queries, masks, finite = torch.ops.recipe_bench.assign(costs, table, size)
    return queries, masks, finite.all()


class _DeformableAttention(torch.autograd.Function):
    """Deformable attention of shapes alone: one kernel each way, and one that clears the sums of a gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        _library()
        ctx.save_for_backward(value, locations, weights)
        return torch.ops.recipe_bench.deformable_attention(value, locations, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple:
        value, locations, weights = ctx.saved_tensors
        sums = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        grads = torch.ops.recipe_bench.deformable_attention_backward(grad.contiguous(), value, locations, weights, sums)
        return (sums.to(value.dtype), *grads)


def _deformable_attention(
    value: Tensor, shapes: Any, locations: Tensor, weights: Tensor, *_: Any, dtype: Any = None
) -> Tensor:
    """Takes the arguments of ``multi_scale_deformable_attn_pytorch``."""
    with _Autocast(enabled=False):
        return _DeformableAttention.apply(value.to(dtype or value.dtype), locations.float(), weights.float())


def _launch(name: str) -> Callable[..., None]:
    """Stands in for a launch of a kernel that writes into given tensors."""

    def launch(inputs: Sequence[Any], outputs: Sequence[Any], *_: Any) -> None:
        _library()
        getattr(torch.ops.recipe_bench, name)(inputs, out=[x for x in outputs if x is not None])

    return launch


def _attention(kind: str) -> Callable[..., Tensor]:
    """``scaled_dot_product_attention`` as a kind of device runs it.

    CUDA takes the memory-efficient kernel: the flash kernel takes no mask. torch_npu 2.1 composes it.
    """

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: Any = None, **_: Any,
    ) -> Tensor:  # fmt: skip
        if _Autocast.on:
            query, key, value, attn_mask = _to((query, key, value, attn_mask), torch.bfloat16)
        with _Autocast(enabled=False):
            if kind == 'npu':
                return torch._scaled_dot_product_attention_math(
                    query, key, value, attn_mask, dropout_p, is_causal, scale=scale
                )[0]
            if attn_mask is not None:
                if attn_mask.dtype == torch.bool:
                    attn_mask = torch.where(attn_mask, 0.0, float('-inf')).to(query.dtype)
                attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
            return torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
            )[0]

    return attention


def _npu_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Any = None) -> Tensor:
    """``npu_fusion_attention``, by an operator of torch with the same inputs and results."""
    rows = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    hidden = None if allowed is None else (~allowed).expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(*rows, hidden, torch.is_grad_enabled())[0]


def _npu_window_softmax(scores: Tensor, bias: Tensor, mask: Any, scale: float) -> Tensor:
    """``npu_masked_softmax_with_rel_pos_bias``, as one kernel."""
    out = torch.empty_like(scores)
    _launch('window_softmax')([scores, bias, mask], [out])
    return out


class _CombinedAdamW(torch.optim.Optimizer):
    """The storage of ``torch_npu.optim.NpuFusedAdamW``: parameters, gradients and states of a group in one tensor."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, {'amsgrad': False, 'betas': (0.9, 0.999), 'eps': 1e-8, 'weight_decay': 0.0, **kwargs})
        self.combined_params_indexed_by_group: List[List[Tensor]] = []
        self.combined_grads_indexed_by_group: List[List[Tensor]] = []
        self.combined_param_states_indexed_by_group: List[List[Dict[str, Any]]] = []
        self.grads_all_group_combined: List[Tensor] = []
        self.is_params_grads_combined = False

    def _maybe_init_combined_params_and_grads(self) -> None:
        sizes = [sum(x.numel() for x in group['params']) for group in self.param_groups]
        grads = torch.empty(sum(sizes), device='meta')
        self.grads_all_group_combined = [grads]
        for group, flat, size in zip(self.param_groups, grads.split(sizes), sizes):
            for x, part in zip(group['params'], flat.split([x.numel() for x in group['params']])):
                x.grad = part.view_as(x)
                self.state[x]['step'] = 0
            states = {'step': 0, **{name: torch.empty_like(flat) for name in ('exp_avg', 'exp_avg_sq')}}
            self.combined_params_indexed_by_group.append([torch.empty(size, device='meta')])
            self.combined_grads_indexed_by_group.append([flat])
            self.combined_param_states_indexed_by_group.append([states])
        self.is_params_grads_combined = True

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is used
        for index in range(len(self.param_groups)):
            self._group_step(index)  # type: ignore[attr-defined]  # of the guarded subclass


class _Finite:
    """Stands in for values on their way to the host."""

    def __init__(self, values: Tensor) -> None:
        assert values.is_meta

    def read(self) -> List[float]:
        return [1.0]


class _Ranks:
    """Stands in for ``torch.distributed``: no rank sends anything."""

    ReduceOp = torch.distributed.ReduceOp

    def __init__(self, backend: str) -> None:
        self.get_backend = lambda: backend
        self.get_world_size = lambda: RANKS
        self.broadcast = self.all_reduce = lambda *_, **__: self

    def wait(self) -> None:
        pass


@contextlib.contextmanager
def accelerator(kind: str) -> Iterator[None]:
    """Context in which ``meta`` stands for accelerators of one kind, and this process for one of RANKS ranks.

    Args:
        kind: ``cuda`` or ``npu``.
    """
    from mmcv.ops import multi_scale_deform_attn
    from mmengine.runner import runner
    from torch import distributed
    from torch.nn.parallel import distributed as data_parallel
    from torch.optim import optimizer
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils import _foreach_utils

    from recipe.data import random_state
    from recipe.engine import data_parallel as own_data_parallel
    from recipe.engine.hooks import nonfinite_guard_hook
    from recipe.models import add_norm, assignment, attention, deform_attn, static_loss, token_attention

    half = functools.partial(_deformable_attention)
    single = functools.partial(_deformable_attention, dtype=torch.float32)
    patches: List[Tuple[Any, str, Any]] = [
        (torch, 'autocast', _Autocast),
        (torch.amp, 'autocast', _Autocast),
        (torch, 'is_autocast_enabled', lambda *_: _Autocast.on),
        (torch, 'get_autocast_dtype', lambda *_: torch.bfloat16),
        (torch.nn.functional, 'scaled_dot_product_attention', _attention(kind)),
        (multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', single),
        (assignment, 'solve_table', _solve_table),
        (static_loss, 'solve_table', _solve_table),
        (attention, '_takes_operator', lambda device: True),
        (attention, 'npu_attention', _npu_attention),
        (attention, 'npu_window_softmax', _npu_window_softmax),
        (deform_attn, '_takes_triton', lambda value: True),
        (deform_attn, '_triton_attn', lambda value, shapes, starts, *rest: half(value, shapes, *rest)),
        (deform_attn, '_npu_attn', lambda value, shapes, starts, *rest: single(value, shapes, *rest)),
        (add_norm, '_triton_works', lambda device: True),
        (add_norm, '_run_forward', _launch('add_norm')),
        (add_norm, '_run_backward', _launch('add_norm_backward')),
        (token_attention, '_triton_works', lambda *_: True),
        (token_attention, '_run', lambda name, *rest: _launch(f'window_attention_{name}')(*rest)),
        (runner, 'get_device', lambda: 'meta'),
        (random_state, 'capture', lambda device=None: {}),
        (nonfinite_guard_hook, 'LateValues', _Finite),
        # torch's lists of devices with foreach and fused operators
        (_foreach_utils, '_get_foreach_kernels_supported_devices', lambda: ['meta']),
        (optimizer, '_get_foreach_kernels_supported_devices', lambda: ['meta']),
        (optimizer, '_get_fused_kernels_supported_devices', lambda: ['meta']),
        # what the ranks send each other
        (data_parallel, '_verify_param_shape_across_processes', lambda *_, **__: None),
        (data_parallel, '_sync_module_states', lambda *_, **__: None),
        (own_data_parallel, 'all_gather_object', lambda value: [value]),
        (own_data_parallel, 'dist', _Ranks('nccl' if kind == 'cuda' else 'hccl')),
    ]
    npu_optimizers: Any = types.ModuleType('torch_npu.optim')
    npu_optimizers.NpuFusedAdamW = _CombinedAdamW
    with contextlib.ExitStack() as stack:
        for target, name, value in patches:
            stack.enter_context(mock.patch.object(target, name, value))
        if kind == 'npu':
            # patch.dict would also forget what is imported meanwhile
            before = sys.modules.get('torch_npu.optim')
            sys.modules['torch_npu.optim'] = npu_optimizers
            stack.callback(
                lambda: (
                    sys.modules.update({'torch_npu.optim': before}) if before else sys.modules.pop('torch_npu.optim')
                )
            )
        deform_attn._implementation.cache_clear()
        stack.callback(deform_attn._implementation.cache_clear)
        stack.enter_context(meta_stands_for(kind))
        stack.enter_context(mock.patch.dict(os.environ, LOCAL_RANK='0'))
        distributed.init_process_group('fake', rank=0, world_size=RANKS, store=FakeStore())
        stack.callback(distributed.destroy_process_group)
        yield


def trace(
    kind: str,
    config: str,
    overrides: Dict[str, Any],
    batch: Dict[str, List[Tensor]],
    amp: str = 'off',
    upstream: bool = False,
    static: bool = False,
) -> kernels.Kernels:
    """Record the kernels of one iteration of a rank.

    Args:
        kind: Kind of accelerator, ``cuda`` or ``npu``.
        config: Path of a config, relative to the repository or absolute.
        overrides: Of the config, by dotted key.
        batch: From ``model.random_batch``.
        amp: ``off`` or ``bf16``; upstream under CUDA's autocast, as its AMP does.
        upstream: Whether to train as upstream does.
        static: Whether ours computes the loss of fixed shapes, as with ``--compile``.

    Returns:
        The record of the third iteration, after caches and optimizer states are made.
    """
    answers = record(config, overrides, batch) if upstream else {}
    overrides = {**overrides, 'launcher': 'pytorch'}
    if upstream:
        overrides['model_wrapper_cfg'] = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            gradient_as_bucket_view=kind != 'npu',
        )  # fmt: skip
    with accelerator(kind), _AutocastMode():
        with Answers({}):
            trainer = Trainer(config, overrides, amp='off' if upstream else amp, upstream=upstream)
        if upstream:
            trainer.runner.model.register_comm_hook(None, _no_communication)
        if static:
            _use_static_loss(trainer.model)
        wrapper = trainer.runner.optim_wrapper
        if upstream and amp != 'off':
            wrapper.optim_context = _under_autocast(wrapper.optim_context)
        for _ in range(3):
            _Autocast.cast = {}
            names = {id(module): name for name, module in trainer.model.named_modules()}
            with Answers(answers), kernels.Kernels(names) as found, _phases(wrapper, found):
                trainer.iterate(bench_model.samples(batch))
    _Autocast.cast = {}
    return found


def record(config: str, overrides: Dict[str, Any], batch: Dict[str, List[Tensor]]) -> Dict[str, List[Answer]]:
    """Answers to what upstream's host asks in an iteration: one on the CPU, with fewer blocks, points and channels."""
    from mmcv.ops import multi_scale_deform_attn

    head = 'model.decode_head'
    layer = 'layer_cfg.ffn_cfg.feedforward_channels'
    small = {
        'model.backbone.depths': [1, 1, 1, 1],
        f'{head}.train_cfg.num_points': 64,
        f'{head}.pixel_decoder.encoder.{layer}': 8,
        f'{head}.transformer_decoder.{layer}': 8,
    }
    with mock.patch.object(multi_scale_deform_attn, 'multi_scale_deformable_attn_pytorch', _deformable_attention):
        trainer = Trainer(config, {**overrides, **small}, upstream=True)
        with Recording() as recording:
            trainer.iterate(bench_model.samples(batch))
    return recording.answers


def _no_communication(state, bucket):  # DDP refuses annotations that are strings
    """Hook of DDP in place of the all-reduce."""
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def _under_autocast(context: Callable) -> Callable:
    @contextlib.contextmanager
    def both(model: Any) -> Iterator[None]:
        with context(model), _Autocast():
            yield

    return both


def _use_static_loss(model: Any) -> None:
    from recipe.models import compiled_parts, static_loss
    from recipe.models.decode import decode

    parts = compiled_parts.CompiledParts(
        compiled_parts._run, decode, static_loss.static_costs, static_loss.static_point_losses
    )
    model.compiled_parts = model.decode_head.compiled_parts = parts


@contextlib.contextmanager
def _phases(wrapper: Any, found: kernels.Kernels) -> Iterator[None]:
    """Tell the record when the backward pass and the optimizer run."""

    def during(phase: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            found.phase = phase
            try:
                return function(*args, **kwargs)
            finally:
                found.phase = kernels.FORWARD

        return call

    phases = {'backward': kernels.BACKWARD, 'step': kernels.OPTIMIZER, 'zero_grad': kernels.OPTIMIZER}
    with contextlib.ExitStack() as stack:
        for name, phase in phases.items():
            stack.enter_context(mock.patch.object(wrapper, name, during(phase, getattr(wrapper, name))))
        yield
