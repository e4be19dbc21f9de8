"""Writes a trained model in each format, and reads it back as its users would."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from recipe.export.parity import Predict
from recipe.export.portable import STRIDE, Segmentor
from recipe.predict.trained_model import TrainedModel

INPUT, SCORES, LABELS = 'images', 'scores', 'labels'
_TORCH = tuple(map(int, torch.__version__.split('+')[0].split('.')[:2]))


@dataclass(frozen=True)
class Shape:
    """What an exported model takes and gives.

    Attributes:
        size: Height and width; None: any.
        preprocess: Whether it takes pictures, (B, H, W, 3), RGB, uint8. Otherwise normalised images, (B, 3, H, W).
        postprocess: Whether it gives labels beside the scores.
        opset: Version of ONNX's operators.
    """

    size: Optional[Tuple[int, int]] = None
    preprocess: bool = True
    postprocess: bool = True
    opset: int = 17

    @property
    def outputs(self) -> Tuple[str, ...]:
        """Names of the outputs."""
        return (SCORES, LABELS) if self.postprocess else (SCORES,)


def normalised(model: Any, picture: np.ndarray) -> Tensor:
    """Normalise and pad a picture as the model's validation does.

    Args:
        model: mmseg's segmentor.
        picture: RGB, uint8, (H, W, 3).

    Returns:
        (1, 3, H, W), H and W multiples of 32.
    """
    from mmseg.structures import SegDataSample

    data = {'inputs': [_bgr(picture)], 'data_samples': [SegDataSample()]}
    images: Tensor = model.data_preprocessor(data, False)['inputs']
    return images


def scores_of(trained: TrainedModel, picture: np.ndarray) -> np.ndarray:
    """Class scores of a picture, RGB, uint8, (H, W, 3), as the recipe predicts them; (C, H, W)."""
    scores: np.ndarray = trained.scores(_bgr(picture)[None])[0].numpy()
    return scores


def _bgr(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)


def write_pt2(trained: TrainedModel, path: Path, shape: Shape) -> None:
    """Write a file of torch.export for one image of a fixed size. The model's modules become the portable ones.

    Args:
        trained: A model of upstream's classes, on the CPU.
        path: The file.
        shape: What the file shall take and give; has a size.
    """
    segmentor, example = _to_trace(trained, shape)
    with torch.no_grad():
        program = torch.export.export(segmentor, (example,), strict=False)
    torch.export.save(program, str(path))


def read_pt2(trained: TrainedModel, path: Path, shape: Shape) -> Predict:
    """Load a file of torch.export."""
    program = torch.export.load(str(path)).module()

    def run(images: Tensor) -> Dict[str, np.ndarray]:
        with torch.no_grad():
            return dict(zip(shape.outputs, (output.numpy() for output in program(images))))

    return _predictor(trained, shape, run)


def write_onnx(trained: TrainedModel, path: Path, shape: Shape) -> None:
    """Write an ONNX file for any number of images, weights included. The model's modules become the portable ones.

    torch's older exporter writes it. The newer one cannot keep height and width free: it turns relations of sizes into
    conditions, some of which do not hold for all sizes.

    Args:
        trained: A model of upstream's classes, on the CPU.
        path: The file.
        shape: What the file shall take and give.
    """
    segmentor, example = _to_trace(trained, shape)
    batch, height, width = 'batch', 'height', 'width'
    axes: Dict[str, Dict[int, str]] = {name: {0: batch} for name in (INPUT, *shape.outputs)}
    if shape.size is None:
        axes[INPUT].update({1: height, 2: width} if shape.preprocess else {2: height, 3: width})
        axes[SCORES].update({2: height, 3: width})
        if shape.postprocess:
            axes[LABELS].update({1: height, 2: width})
    exporter: Dict[str, Any] = {'dynamo': False} if _TORCH >= (2, 5) else {}
    with torch.no_grad():
        torch.onnx.export(
            segmentor,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=list(shape.outputs),
            dynamic_axes=axes,
            opset_version=shape.opset,
            **exporter,
        )


def _to_trace(trained: TrainedModel, shape: Shape) -> Tuple[Segmentor, Tensor]:
    """The portable model, and an input of it."""
    height, width = shape.size or (3 * STRIDE, 5 * STRIDE)
    if shape.preprocess:
        example = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(1, 3, height, width)
    return Segmentor(trained.model, shape.preprocess, shape.postprocess).eval(), example


def read_onnx(trained: TrainedModel, path: Path, shape: Shape) -> Predict:
    """Load an ONNX file with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    def run(images: Tensor) -> Dict[str, np.ndarray]:
        return dict(zip(shape.outputs, session.run(list(shape.outputs), {INPUT: images.numpy()})))

    return _predictor(trained, shape, run)


def _predictor(trained: TrainedModel, shape: Shape, run: Callable[[Tensor], Dict[str, np.ndarray]]) -> Predict:
    def predict(picture: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        images = torch.from_numpy(picture[None]) if shape.preprocess else normalised(trained.model, picture)
        found = run(images)
        height, width = picture.shape[:2]  # without padding
        scores = found[SCORES][0, :, :height, :width]
        return scores, found[LABELS][0, :height, :width] if shape.postprocess else scores.argmax(0)

    return predict


def write_safetensors(trained: TrainedModel, path: Path, shape: Shape) -> None:
    """Write all tensors, with config and classes as metadata."""
    from safetensors.torch import save_file

    metadata = {
        'format': 'pt',
        'config': trained.config_text,
        'classes': json.dumps(trained.classes),
        'palette': json.dumps(trained.palette.tolist()),
    }
    save_file({name: value.contiguous() for name, value in trained.model.state_dict().items()}, str(path), metadata)


def read_safetensors(trained: TrainedModel, path: Path, shape: Shape) -> Predict:
    """Load a file of safetensors into a model that is built from the config in it."""
    from mmengine.config import Config
    from safetensors import safe_open

    from recipe.core import config_text
    from recipe.engine.config import build_model

    with safe_open(str(path), 'pt') as file:
        config = Config({'model': config_text.read_config(file.metadata()['config'])['model']})
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    model = build_model(config).eval()
    model.load_state_dict(weights)
    read_back = replace(trained, model=model)

    def predict(picture: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        scores = scores_of(read_back, picture)
        return scores, scores.argmax(0)

    return predict
