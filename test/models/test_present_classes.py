"""The data preprocessor notes which values a label map holds while it is on the host."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample

from recipe.models import adopt
from recipe.models.preprocessor import FastSegDataPreProcessor
from recipe.models.present_classes import KEY, count_values, present_classes


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.bool])
def test_values_of_every_type(dtype):
    label_map = torch.tensor([[3, 0, 3], [1, 1, 0]]).to(dtype)
    assert count_values(label_map) == torch.unique(label_map).tolist()


@pytest.mark.parametrize('values', [[], [-1, 5], [7, 2**40]])
def test_values_of_any_size(values):
    assert count_values(torch.tensor(values, dtype=torch.int64)) == sorted(values)


def preprocess(label_map, training=True, **options):
    """Return the label map as the model sees it."""
    sample = SegDataSample(gt_sem_seg=PixelData(data=label_map), metainfo=dict(img_shape=label_map.shape[1:]))
    preprocessor = SegDataPreProcessor(size=(4, 4), **options)
    adopt(preprocessor, FastSegDataPreProcessor)
    data = dict(inputs=[torch.zeros(3, *label_map.shape[1:])], data_samples=[sample])
    return preprocessor(data, training)['data_samples'][0].gt_sem_seg


def test_the_note_tells_what_the_map_holds():
    label_map = preprocess(torch.tensor([[[2, 2, 0, 255]] * 4]))
    assert label_map.metainfo[KEY] == (0, 2, 255)
    assert present_classes(label_map, ignore_index=255) == [0, 2]
    assert present_classes(label_map, ignore_index=0) == [2, 255]


@pytest.mark.parametrize('pad', [255, 1])
def test_padding_counts(pad):
    label_map = preprocess(torch.tensor([[[2, 0]] * 4]), seg_pad_val=pad)
    assert label_map.shape == (4, 4)
    assert list(label_map.metainfo[KEY]) == count_values(label_map.data)


def test_what_changes_a_map_leaves_no_note():
    def augment(inputs, samples):
        samples[0].gt_sem_seg.data.fill_(4)
        return inputs, samples

    label_map = preprocess(torch.zeros(1, 4, 4, dtype=torch.long), batch_augments=augment)
    assert KEY not in label_map.metainfo
    assert present_classes(label_map, 255) == [4]


def test_a_new_map_has_no_note():
    sample = SegDataSample(gt_sem_seg=preprocess(torch.zeros(1, 4, 4, dtype=torch.long)))
    sample.gt_sem_seg = PixelData(data=torch.ones(1, 4, 4, dtype=torch.long))
    assert present_classes(sample.gt_sem_seg, 255) == [1]


def test_nothing_is_counted_for_evaluation():
    assert KEY not in preprocess(torch.zeros(1, 4, 4, dtype=torch.long), training=False).metainfo


@pytest.mark.parametrize(
    'options', [{}, {'bgr_to_rgb': True}, {'bgr_to_rgb': True, 'mean': [1.0, 2, 3], 'std': [4.0] * 3}]
)
@pytest.mark.parametrize('channels', [1, 3])
def test_a_batch_is_that_of_upstream(options, channels):
    if channels == 1 and 'mean' in options:
        options = {**options, 'mean': [1.0], 'std': [4.0]}
    images = [torch.rand(channels, 4, 3) for _ in range(2)]

    def samples():
        return [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 4, 3, dtype=torch.long))) for _ in images]

    plain, fast = (SegDataPreProcessor(size=(4, 4), **options) for _ in range(2))
    adopt(fast, FastSegDataPreProcessor)
    theirs, ours = (one(dict(inputs=images, data_samples=samples()), True) for one in (plain, fast))
    assert torch.equal(theirs['inputs'], ours['inputs'])
    theirs, ours = (one(dict(inputs=images, data_samples=None), False) for one in (plain, fast))
    assert torch.equal(theirs['inputs'], ours['inputs'])
