"""The IoU metric that counts on the device: upstream's figures, and one read at the end."""

import pytest
import torch
from mmseg.evaluation.metrics import IoUMetric
from mmseg.registry import METRICS
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.engine import metric


@pytest.mark.parametrize('count', [metric._count_on_host, metric._count_on_device])
@pytest.mark.parametrize(('num_classes', 'ignore_index'), [(19, 255), (5, 2), (2, 255)])
def test_areas_are_upstreams(count, num_classes, ignore_index, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    pred = torch.randint(0, num_classes, (60, 70), generator=generator)
    label = torch.randint(0, num_classes + 2, (60, 70), generator=generator)  # stray values, too
    label[:9] = 255
    monkeypatch.setattr(metric, '_count_on_host', count)
    ours = metric.read_areas([metric.confusion(pred, label.byte(), num_classes, ignore_index)])[0]
    theirs = IoUMetric.intersect_and_union(pred, label, num_classes, ignore_index)
    for one, other in zip(ours, theirs):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_the_host_reads_nothing_before_the_end(monkeypatch):
    """On the path of an accelerator, no batch makes the host wait: neither a number nor a size is read."""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.__name__.split('.')[0])
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(metric, '_count_on_host', metric._count_on_device)
    called = []
    counting = METRICS.build(dict(type='DeviceIoUMetric'))
    counting.dataset_meta = {'classes': list('abc')}
    sample = {
        'pred_sem_seg': {'data': torch.randint(0, 3, (1, 8, 8))},
        'gt_sem_seg': {'data': torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8)},
    }
    with Calls():
        counting.process({}, [sample, sample])
    assert 'histc' in called
    assert not {'_local_scalar_dense', 'nonzero', 'index', 'masked_select', 'unique', '_unique2'} & set(called)
    plain = IoUMetric()
    plain.dataset_meta = counting.dataset_meta
    plain.process({}, [sample, sample])
    assert counting.evaluate(2) == plain.evaluate(2)


def test_pictures_are_written_without_ground_truth(tmp_path):
    counting = METRICS.build(dict(type='DeviceIoUMetric', output_dir=str(tmp_path), format_only=True))
    counting.dataset_meta = {'classes': list('abc')}
    counting.process({}, [{'pred_sem_seg': {'data': torch.ones(1, 8, 8, dtype=torch.long)}, 'img_path': 'one.png'}])
    assert counting.evaluate(1) == {}
    assert [path.name for path in tmp_path.iterdir()] == ['one.png']
