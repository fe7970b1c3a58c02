"""The networks behind the golden files: their seeded weights, and ours filled with them as an import does it."""

import json
import zlib

import numpy as np

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models import detector
from ssd_tf.pretrained import places
from ssd_tf.pretrained.classes import choose_classes

XY = [1, 0, 3, 2]  # between (x, y, w, h) and (y, x, h, w)


def seeded(key, shape):
    """The golden files' weights: a function of key and shape alone."""
    value = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key == "backbone.scale_weight":
        return 21 + np.float32(0.1) * value
    if key.endswith("running_var"):
        return np.abs(value) * np.float32(0.1) + 1
    if key.endswith("running_mean"):
        return value * np.float32(0.1)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * value if key.endswith("weight") else np.float32(0.05) * value
    return value * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def read_shapes(golden, name):
    """{key: shape} of a golden network's state dict."""
    text = (golden / f"{name}_state_dict_shapes.json").read_text()
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


def read_values(golden, name):
    with np.load(golden / f"{name}.npz") as values:
        return dict(values)


def import_seeded(source, shapes, classes=None, read=None):
    """(Config, api.build.Detector) of a source, with seeded weights; every weight of it is filled once.

    `classes` are by default those that the source is known to have.
    """
    classes = classes or choose_classes(source, source.count_columns(shapes))
    own = f"model.num_classes={len(classes.names)}", f"model.background_columns={len(classes.background)}"
    config = configs.load_config(None, [*source.settings(shapes), *own])
    built = build.build(config, load_weights=False)
    targets = source.places(shapes, classes)
    assert_fills(targets, built.model)
    places.fill(built.model, targets, shapes, read or (lambda name: seeded(name, shapes[name])))
    return config, built


def assert_fills(targets, model, but=frozenset()):
    """Every weight of the model, `but` for some, is the target of one place."""
    filled = [(place.layer, place.weight) for place in targets.values()]
    weights = {
        (layer.name, weight.path.split("/")[-1])
        for layer in detector.all_layers(model)
        for weight in layer.weights
    }
    assert len(set(filled)) == len(filled)
    assert set(filled) == weights - but


def assert_postprocess(config, score_threshold, nms_iou, topk_candidates, max_detections, clip):
    """The owner's own way from outputs to detections, and a training that needs nothing more to start."""
    expected = configs.PostprocessConfig(
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        topk_candidates=topk_candidates,
        max_detections=max_detections,
        clip=clip,
    )
    assert config.postprocess == expected
    assert configs.resolve_steps(config, 1000).train.steps > 1000


def assert_near(found, expected, what, tolerance=1e-4):
    """Both are of one shape and differ by no more than a share of the largest value."""
    assert found.shape == expected.shape, what
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=what)


def run(built, values):
    """(class logits, box deltas in the order of torch's files) of the golden image."""
    outputs = built.model(values["image_rgb_uint8"])
    return np.asarray(outputs["class_logits"]), np.asarray(outputs["box_deltas"])[..., XY]


def centre_size(boxes):
    """yxyx boxes as (cx, cy, w, h)."""
    lower, upper = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(lower + upper) / 2, upper - lower], axis=1)[:, XY]
