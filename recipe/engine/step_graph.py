"""Forward and backward pass of a training as one CUDA graph.

A GPU runs the kernels of an iteration faster than Python can launch them. A graph launches all of them at once. It
repeats what was captured, so nothing in it may depend on the host: inputs lie in tensors that stay where they are,
shapes are the same for all labels (``static_loss.Targets``), and no value is read. The optimizer runs after it, without
a graph.

No GPU has run this yet. The tests capture on a CPU with a stand-in that refuses what a capture refuses.
"""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipe.models import assignment
from recipe.models.present_classes import present_classes
from recipe.models.segmentor import FastEncoderDecoder
from recipe.models.stacked_losses import StackedScalars
from recipe.models.static_loss import Targets, can_be_static, targets_of

# Iterations without a graph, in which caches are filled, as many as in the examples of torch's documentation.
WARMUP = 3


class CudaGraphs:
    """How a GPU captures, see https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Context on the stream of the capture."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, function: Callable[[], Any]) -> Tuple[Callable[[], None], Any]:
        """Capture what a function launches, without running it.

        Returns:
            Runs what was captured; and what the function returned: tensors that each run overwrites.
        """
        graph = torch.cuda.CUDAGraph()
        # Threads of the loader and of NCCL may use the GPU meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode='thread_local'):
            result = function()
        return graph.replay, result


class StepGraph:
    """Computes losses and gradients of a batch, by a graph after some iterations.

    Gradients are made anew in each call, so the optimizer's ``zero_grad`` is not needed.

    Args:
        model: The segmentor; it may be wrapped for distributed training.
        optim_wrapper: Its precision and its ``backward`` are used.
        graphs: How to capture; by default as a GPU does.
        warmup: Iterations without a graph.

    Raises:
        ValueError: The model cannot be captured.
    """

    def __init__(self, model: nn.Module, optim_wrapper: Any, graphs: Any = None, warmup: int = WARMUP) -> None:
        if isinstance(model, DistributedDataParallel):  # it would need more iterations before, and a stream of its own
            raise ValueError(
                '--graph=1: the config asks for DDP (find_unused_parameters or other options in model_wrapper_cfg), '
                'which is not captured; leave these out'
            )
        self._model, self._optim_wrapper = model, optim_wrapper
        self._segmentor: Any = model.module if is_model_wrapper(model) else model
        require_capturable(self._segmentor)
        self._graphs = graphs or CudaGraphs()
        self._left = warmup
        self._inputs: Optional[Tuple[Tensor, Targets]] = None
        self._replay: Optional[Callable[[], None]] = None
        self._scalars: Any = None

    def __call__(self, data_batch: Any) -> Dict[str, Tensor]:
        """Compute losses and gradients.

        Args:
            data_batch: A batch of the loader. All batches need the same shapes.

        Returns:
            Scalars for the log. The gradients are in the parameters.

        Raises:
            ValueError: A batch has another shape than the first one, or a class that the head does not have.
        """
        self._take(*self._prepared(data_batch))
        if self._left:
            self._left -= 1
            with self._graphs.beside():
                return self._step()
        if self._replay is None:
            self._replay, self._scalars = self._graphs.capture(self._step)
        self._replay()
        return StackedScalars.of(self._scalars, self._scalars.stacked.clone())

    def _prepared(self, data_batch: Any) -> Tuple[Tensor, Targets]:
        data = self._segmentor.data_preprocessor(data_batch, True)
        head = self._segmentor.decode_head
        maps = [sample.gt_sem_seg for sample in data['data_samples']]
        labels = [present_classes(label_map, head.ignore_index) for label_map in maps]
        return data['inputs'], targets_of(head, torch.cat([label_map.data for label_map in maps]), labels)

    def _take(self, images: Tensor, targets: Targets) -> None:
        """Copy a batch to where the graph reads it."""
        if self._inputs is None:
            self._inputs = images.clone(), Targets(*(part.clone() for part in targets))
            return
        for place, part in zip((self._inputs[0], *self._inputs[1]), (images, *targets)):
            if place.shape != part.shape:
                raise ValueError(
                    f'--graph=1: a batch has the shape {tuple(part.shape)}, the first one had {tuple(place.shape)}; '
                    'all batches of a graph need one shape'
                )
            place.copy_(part)

    def _step(self) -> Dict[str, Tensor]:
        for parameter in self._segmentor.parameters():
            parameter.grad = None
        assert self._inputs is not None
        images, targets = self._inputs
        with self._optim_wrapper.optim_context(self._model):
            losses = self._model(images, targets, mode='loss')
        loss, scalars = self._segmentor.parse_losses(losses)
        self._optim_wrapper.backward(loss)
        return scalars


def require_capturable(segmentor: Any) -> None:
    """Raise ValueError, with the reason, if a graph cannot compute what a segmentor computes."""
    head = segmentor.decode_head
    if not (
        isinstance(segmentor, FastEncoderDecoder)
        and getattr(head, 'batches_loss', False)
        and can_be_static(head)
        and not segmentor.with_auxiliary_head
    ):
        raise ValueError(
            f'--graph=1: {type(head).__name__} of this config cannot be captured: it takes the Mask2FormerHead of '
            'mmseg with the matching and losses of its configs, and --fast=1'
        )
    device = next(segmentor.parameters()).device
    if not assignment.solves_tables(device):
        raise ValueError(f'--graph=1: masks are assigned on the host, not on {device}; a graph needs Triton')
