"""Compute with one upstream, the unpatched or the patched one, and leave all results in a file.

    python one_upstream.py pristine|patched swin-t|r50 FILE

Nothing of the recipe takes part in what is computed. test/parity/test_pristine.py compares the two files.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.modules['transformers'] = None  # for models that read text; to import it takes mmdet a third of its time
CONFIGS = 'mmsegmentation/configs/mask2former'
SMALLER = {
    'decode_head.pixel_decoder.encoder.num_layers': 1,
    'decode_head.transformer_decoder.num_layers': 3,
    'decode_head.train_cfg.num_points': 256,
    'data_preprocessor.size': (64, 128),
}
CLASSES = [[[0, 3, 18], list(range(19))], [[], [4]]]


def train(config, overrides):
    """Losses of some steps of upstream's own, the weights after them, and predictions."""
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    from recipe.bench import model as bench_model

    model = bench_model.build(config, overrides, seed=0)
    wrapper = build_optim_wrapper(model, Config.fromfile(bench_model.ROOT / config).optim_wrapper)
    logs = []
    for seed, classes in enumerate(CLASSES):
        batch = bench_model.random_batch(len(classes), 64, 128, seed=seed, classes=classes)
        torch.manual_seed(seed)
        logs.append(model.train_step(bench_model.samples(batch), wrapper))
    predictions = bench_model.predict(model, batch)
    return {'logs': logs, 'weights': model.state_dict(), 'predictions': predictions, 'drawn': torch.rand(1)}


def main():
    which, backbone, path = sys.argv[1:]
    torch.set_num_threads(1)
    if which == 'pristine':
        from recipe.bench import pristine_imports

        pristine_imports.activate()
    import mmseg

    results = train(f'{CONFIGS}/mask2former_{backbone}_8xb2-90k_cityscapes-512x1024.py', SMALLER)
    torch.save({'packages': mmseg.__file__, 'modules': sorted(sys.modules), 'results': results}, path)


if __name__ == '__main__':
    main()
