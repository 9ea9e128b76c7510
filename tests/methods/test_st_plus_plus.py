"""ST++: one mean over the pixels of both kinds of images, and the views that it asks for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.data.boxes import UniMatchBoxes
from allspark.data.pseudo import with_pseudo
from allspark.data.sets import open_source
from allspark.data.views import cut_out
from allspark.errors import DataError
from allspark.methods import build_method
from tests.conftest import TINY
from tests.helpers import batch_of, stream_of


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, "method.name=st++", *changes]), 5).double()


def test_the_loss_is_the_mean_over_all_labelled_pixels():
    method = build().eval()  # without dropout, and batch norm does not see the batch
    batch = batch_of(method.views, 2, 3, dtype=torch.float64, valid=torch.rand(3, 64, 96) < 0.6)
    batch.labeled.mask[:, :10] = IGNORE
    output = method(batch, Progress(0, 1, 1))
    logits = torch.cat([method.segmenter(batch.labeled.image), method.segmenter(batch.pseudo.image)])
    masks = torch.cat([batch.labeled.mask, batch.pseudo.mask])
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, masks, ignore_index=IGNORE), rtol=1e-12, atol=0)
    assert int(output.class_pixels["pseudo"].sum()) == int((batch.pseudo.mask != IGNORE).sum())


def test_hard_pixels_are_mined_among_the_labelled_ones_only():
    method = build("method.labeled_loss=ohem", "method.ohem_min_kept=7", "method.ohem_threshold=0").eval()
    batch = batch_of(method.views, dtype=torch.float64)
    terms = method(batch, Progress(0, 1, 1)).terms
    assert int(terms["labeled"].count) == 7 and terms["labeled"].weight == 0.5
    assert int(terms["pseudo"].count) == batch.labeled.mask.numel() + batch.pseudo.mask.numel()


def test_cutout_is_noise_and_ignored_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    view, mask = rng.integers(0, 255, (50, 60, 3), dtype=np.uint8), rng.integers(0, 5, (50, 60), dtype=np.uint8)
    before, holes = (view.copy(), mask.copy()), 0
    for seed in range(40):
        new_view, new_mask = cut_out(view, mask, UniMatchBoxes(0.5), np.random.default_rng(seed))
        hole = new_mask == IGNORE
        if hole.any():
            holes += 1
            rows, columns = np.nonzero(hole)
            assert hole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()  # one box
            assert 0.01 < hole.mean() <= 0.4
            assert new_view[hole].std() > 40 and (new_view[hole] != view[hole]).mean() > 0.9
        assert np.array_equal(new_view[~hole], view[~hole]) and np.array_equal(new_mask[~hole], mask[~hole])
    assert 10 <= holes <= 30
    assert np.array_equal(view, before[0]) and np.array_equal(mask, before[1])


def test_pseudo_labelled_crops_are_strong_labelled_ones_weak(tiny_folder):
    config = apply_overrides(Config(), [*TINY, "method.name=st++", f"data.root={tiny_folder}", "method.cutout=1"])
    source = with_pseudo(open_source(config.data), config.data.pseudo)
    method = build("method.cutout=1")
    with pytest.raises(DataError, match="no image with a pseudo mask"):
        stream_of(open_source(config.data), config, method.views)
    with pytest.raises(DataError, match="allspark label RUN --out DIR"):
        with_pseudo(source, None)
    stream = stream_of(source, config, method.views)
    batch = stream[3]
    assert batch.unlabeled is None and batch.pseudo.image.shape == (2, 3, 64, 64)
    assert set(batch.pseudo.ids) <= {sample.id for sample in source.unlabeled}
    assert (batch.pseudo.mask == IGNORE).flatten(1).any(1).all() and set(batch.pseudo.mask.unique().tolist()) > {0, 255}
    again = stream_of(source, config, method.views)[3]
    assert torch.equal(batch.pseudo.image, again.pseudo.image) and torch.equal(batch.pseudo.mask, again.pseudo.mask)
    weak = stream_of(
        source, apply_overrides(config, ["views.jitter_p=0", "views.grey_p=0", "views.blur_p=0"]), method.views
    )[3]
    assert torch.equal(weak.labeled.image, batch.labeled.image)
    assert not torch.equal(weak.pseudo.image, batch.pseudo.image)
    none = stream_of(source, config, build("method.cutout=0").views)[3]
    kept = batch.pseudo.mask != IGNORE
    assert torch.equal(none.pseudo.mask[kept], batch.pseudo.mask[kept])
    assert torch.equal(none.pseudo.image[:, 0][kept], batch.pseudo.image[:, 0][kept])
