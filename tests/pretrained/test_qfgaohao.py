"""pytorch-ssd's networks, with seeded weights, compute what those compute."""

import contextlib

import numpy as np
import pytest
from golden_cases import (
    assert_near,
    assert_postprocess,
    centre_size,
    import_seeded,
    read_shapes,
    read_values,
    run,
    seeded,
)

from ssd_tf.pretrained import qfgaohao

FILES = {
    qfgaohao.MB1_SSD: "qfgaohao_mb1-ssd",
    qfgaohao.MB2_SSD_LITE: "qfgaohao_mb2-ssd-lite",
    qfgaohao.VGG16_SSD: "qfgaohao_vgg16-ssd",
}
MODULE = "classification_headers.0"


def open_file(monkeypatch, shapes, arrays=None):
    """The source's own `open` on a file of seeded arrays, or of the given ones."""

    @contextlib.contextmanager
    def open_tensors(path):
        yield shapes, lambda name: arrays[name] if arrays else seeded(name, shapes[name])

    monkeypatch.setattr(qfgaohao.torch_file, "open_tensors", open_tensors)
    return qfgaohao.MB2_SSD_LITE.open("mb2-ssd-lite.pth")


@pytest.fixture(scope="module", params=FILES, ids=lambda source: source.about.name)
def case(request, golden):
    """(api.build.Detector, golden values) of a source."""
    source = request.param
    shapes = read_shapes(golden, FILES[source])
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as stack:
        read = None
        if source is qfgaohao.MB2_SSD_LITE:
            shapes, read = stack.enter_context(open_file(monkeypatch, shapes))
        config, built = import_seeded(source, shapes, read=read)
    assert_postprocess(config, 0.01, 0.45, 200, 200, "after")
    return built, read_values(golden, FILES[source])


def test_outputs(case):
    detector, values = case
    logits, deltas = run(detector, values)
    assert_near(logits[:, ::2], values["cls_logits"], "class logits")
    assert_near(deltas, values["bbox_regression"], "box deltas")


def test_anchors(case):
    detector, values = case
    assert_near(centre_size(detector.anchors), values["priors_cxcywh"], "anchors", 1e-6)


def test_pixels(case):
    detector, values = case
    pixels = np.asarray(detector.model.get_layer("preprocess")(values["image_rgb_uint8"]))
    expected = (values["image_rgb_uint8"] - values["input_mean_rgb"]) / values.get("input_std", 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_bias_before_a_batch_norm(monkeypatch):
    """It goes into the mean, and is no array of its own any more; other arrays stay as they are."""
    arrays = {
        f"{MODULE}.0.bias": np.float32([1, np.inf]),
        f"{MODULE}.1.running_mean": np.float32([0.5, np.inf]),
        f"{MODULE}.1.bias": np.float32([7, 8]),
    }
    with open_file(monkeypatch, dict.fromkeys(arrays, (2,)), arrays) as (shapes, read):
        mean = f"{MODULE}.1.running_mean - {MODULE}.0.bias"
        assert shapes == {f"{MODULE}.1.bias": (2,), mean: (2,)}
        np.testing.assert_array_equal(read(mean), [-0.5, np.nan])
        np.testing.assert_array_equal(read(f"{MODULE}.1.bias"), [7, 8])


@pytest.mark.parametrize(
    "shapes",
    [
        {f"{MODULE}.0.bias": (2,)},
        {f"{MODULE}.1.running_mean": (2,)},
        {f"{MODULE}.0.bias": (2,), f"{MODULE}.1.running_mean": (3,)},
    ],
)
def test_bias_that_does_not_fit_its_mean(monkeypatch, shapes):
    """Nothing is made of it, so that what is left in the file is named as unknown."""
    with open_file(monkeypatch, shapes) as (found, _):
        assert found == shapes
