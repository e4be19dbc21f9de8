"""Each tensor has one counterpart in the other code bases, and comes back as it was."""

from __future__ import annotations

import pytest
import torch

from recipe.export import names


@pytest.mark.parametrize('style', [names.FACEBOOK, names.HUGGINGFACE])
def test_all_tensors_there_and_back(model, style):
    ours = model.state_dict()
    theirs = names.to_foreign(ours, style)
    assert names.style_of(theirs) == style
    back, unknown = names.from_foreign(theirs, style)
    assert unknown == []
    learned = dict(model.named_parameters())
    assert back.keys() == learned.keys()
    assert all(torch.equal(back[name], ours[name]) for name in back)
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in learned.values())


def test_merged_patches_are_reordered():
    # Theirs holds, for each output, [row 0 column 0, row 1 column 0, row 0 column 1, row 1 column 1] of all channels.
    theirs = {'backbone.layers.0.downsample.norm.weight': torch.tensor([0.0, 1, 20, 21, 2, 3, 22, 23])}
    (ours,) = names.from_foreign({'sem_seg_head.x': theirs['backbone.layers.0.downsample.norm.weight'], **theirs},
                                 names.FACEBOOK).weights.values()  # fmt: skip
    # nn.Unfold: channel 0 at (0, 0), (0, 1), (1, 0), (1, 1), then channel 1
    assert ours.tolist() == [0, 2, 20, 22, 1, 3, 21, 23]
    unfolded = torch.nn.Unfold(2, stride=2)(torch.arange(4.0).view(1, 1, 2, 2))  # rows of one channel
    assert unfolded.flatten().tolist() == [0, 1, 2, 3]


def test_what_has_no_counterpart_is_named(model):
    with pytest.raises(KeyError, match=r'decode_head\.more'):
        names.to_foreign({**model.state_dict(), 'decode_head.more': torch.zeros(1)}, names.HUGGINGFACE)
    theirs = names.to_foreign(model.state_dict(), names.HUGGINGFACE)
    query = next(name for name in theirs if name.endswith('.query.weight'))
    left = {name: value for name, value in theirs.items() if name != query}
    _, unknown = names.from_foreign({**left, 'model.more': torch.zeros(1)}, names.HUGGINGFACE)
    # Without the query, key and value are no projection of ours.
    assert unknown == [query.replace('query', 'key'), query.replace('query', 'value'), 'model.more']


def test_the_older_name_of_the_queries():
    found = names.from_foreign({'sem_seg_head.predictor.static_query.weight': torch.ones(2, 3)}, names.FACEBOOK)
    assert list(found.weights) == ['decode_head.query_feat.weight']
