"""Annotated boxes against the decoded image."""

import numpy as np
import pytest

from ssd_tf.errors import DataError
from ssd_tf.records import normalise
from ssd_tf.structures import Example


def example(*boxes, **options):
    return Example("7", "dir/a.jpg", np.array(boxes), ("dog",) * len(boxes), **options)


def test_pixel_boxes_are_divided_by_the_size():
    fitted = normalise.fit_boxes(example([10, 20, 50, 100], [0, 0, 100, 200]), 100, 200)
    np.testing.assert_allclose(fitted.boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]], atol=1e-7)
    assert fitted.boxes.dtype == np.float32
    assert (fitted.kept.tolist(), fitted.clipped, fitted.dropped) == ([0, 1], (), ())


def test_normalised_boxes_stay():
    fitted = normalise.fit_boxes(example([0.1, 0.2, 0.3, 0.4], unit="normalised"), 100, 200)
    np.testing.assert_allclose(fitted.boxes, [[0.1, 0.2, 0.3, 0.4]], atol=1e-7)


def test_boxes_that_reach_out_are_clipped_and_named():
    fitted = normalise.fit_boxes(example([10, 20, 50, 100], [-5, 190.5, 40, 230]), 100, 200)
    np.testing.assert_allclose(fitted.boxes[1], [0, 190.5 / 200, 0.4, 1], atol=1e-6)
    assert fitted.clipped == ("box clipped to the image: object 2 'dog' 190.5 -5 230 40: dir/a.jpg",)
    assert fitted.dropped == ()


def test_a_pixel_beyond_the_border_is_clipped_silently():
    fitted = normalise.fit_boxes(example([-1, 0, 101, 201]), 100, 200)
    np.testing.assert_array_equal(fitted.boxes, [[0, 0, 1, 1]])
    assert (fitted.clipped, fitted.dropped) == ((), ())
    assert normalise.fit_boxes(example([0, 0, 101.01, 200]), 100, 200).clipped
    assert normalise.fit_boxes(example([0, 0, 1.02, 1], unit="normalised"), 100, 200).clipped
    assert not normalise.fit_boxes(example([0, 0, 1.0099, 1], unit="normalised"), 100, 200).clipped


def test_boxes_outside_are_dropped_and_named():
    fitted = normalise.fit_boxes(example([100, 0, 150, 50], [10, 20, 50, 100], [0, -60, 50, 0]), 100, 200)
    np.testing.assert_allclose(fitted.boxes, [[0.1, 0.1, 0.5, 0.5]], atol=1e-7)
    assert fitted.kept.tolist() == [1]
    assert fitted.dropped == (
        "box outside the image: object 1 'dog' 0 100 50 150: dir/a.jpg",
        "box outside the image: object 3 'dog' -60 0 0 50: dir/a.jpg",
    )
    assert fitted.clipped == ()


def test_no_boxes_are_fine():
    fitted = normalise.fit_boxes(example(), 100, 200)
    assert fitted.boxes.shape == (0, 4)
    assert (fitted.kept.tolist(), fitted.clipped, fitted.dropped) == ([], (), ())


def test_kept_boxes_have_an_extent_in_float32():
    fitted = normalise.fit_boxes(example([0.5, 0.5, 0.5 + 1e-9, 0.9], unit="normalised"), 100, 200)
    assert len(fitted.boxes) == 0 and len(fitted.dropped) == 1


def test_the_stated_size_must_be_the_images():
    normalise.check_size(example(), 100, 200)
    normalise.check_size(example(size=(100, 200)), 100, 200)
    with pytest.raises(DataError) as caught:
        normalise.check_size(example(size=(375, 500)), 100, 200)
    assert str(caught.value) == "size says 500x375, image is 200x100: dir/a.jpg"
    with pytest.raises(DataError) as caught:
        normalise.check_size(example(size=(200, 100)), 100, 200)
    assert str(caught.value) == "size says 100x200, image is 200x100 (rotated?): dir/a.jpg"
