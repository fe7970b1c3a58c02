"""Inception V4 filled from a file with timm's names computes what timm's does."""

import keras
import numpy as np
import pytest
from golden_cases import assert_near, read_shapes, read_values, seeded
from safetensors.numpy import save_file

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import DataError
from ssd_tf.models import inception
from ssd_tf.pretrained import importers, timm

MODULES = [*(f"Conv2d_{name}" for name, *_ in inception.STEM), *inception.MODULES]


@pytest.fixture(scope="module")
def arrays(golden):
    return {key: seeded(key, shape) for key, shape in read_shapes(golden, "timm_inception_v4").items()}


@pytest.fixture(scope="module")
def model_file(arrays, tmp_path_factory):
    """What timm's model.safetensors holds: classifier included."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file({**arrays, "features.0.bn.num_batches_tracked": np.array(7)}, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def network(model_file):
    """Inception V4 for images of any size: uint8 to the outputs of its 22 modules, by name."""
    model = inception.inception_v4((None, None, 3), None)
    importers.load_backbone(importers.find_importer(settings_of(model_file)), model_file, model)
    outputs = {name: model.get_layer(name if "Mixed" in name else f"{name}_relu").output for name in MODULES}
    return keras.Model(model.inputs[0], outputs)


def test_file_of_another_network(network, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"features.0.conv.weight": np.zeros((64, 3, 3, 3), np.float32), "conv1.weight": np.zeros(1)}, path)
    with pytest.raises(DataError) as caught:
        importers.load_backbone(importers.find_importer(settings_of(path)), path, network)
    # 149 convolutions of 5 tensors each, all wrong, and one that is not known.
    assert str(caught.value) == (
        "weights do not fit: features.0.conv.weight is 64x3x3x3 in the file, expected 32x3x3x3; "
        f"features.0.bn.weight is missing; features.0.bn.bias is missing; and {149 * 5 + 1 - 3} more: {path}"
    )


def settings_of(path):
    return configs.ModelConfig(backbone="inception_v4", weights=str(path))


def picture(side):
    return np.random.default_rng(7).integers(0, 256, (1, side, side, 3), np.uint8)


def run(network, side):
    return {name: np.asarray(value)[0] for name, value in network(picture(side) / np.float32(127.5) - 1).items()}


@pytest.fixture(scope="module")
def reference(golden):
    return read_values(golden, "timm_inception_v4")


def test_every_tensor_has_a_place_of_its_own(arrays):
    places = timm.inception_v4_places()
    assert (
        set(arrays) - set(places)
        == {"last_linear.weight", "last_linear.bias"}
        == set(filter(timm.is_unused, arrays))
    )
    assert set(places) <= set(arrays)
    assert len({(place.layer, place.weight) for place in places.values()}) == len(places) == 745


@pytest.mark.parametrize("side", [299, 300, 320])
def test_modules_compute_what_timms_do(network, reference, arrays, side):
    outputs = run(network, side)
    for name, value in outputs.items():
        assert_near(value.mean((0, 1), dtype=np.float64), reference[f"mean_{side}_{name}"], f"mean of {name}")
        assert_near(value.std((0, 1), dtype=np.float64), reference[f"std_{side}_{name}"], f"deviation of {name}")
    maps = {
        "Mixed_5e": outputs["Mixed_5e"][::2, ::2],
        **{name: outputs[name] for name in ("Mixed_6h", "Mixed_7d")},
    }
    compared = [name for name in maps if f"features_{side}_{name}" in reference]
    assert len(compared) == (3 if side == 300 else 0)
    for name in compared:
        assert_near(maps[name], reference[f"features_{side}_{name}"], name, 1e-5)
    if side == 299:
        logits = arrays["last_linear.weight"] @ outputs["Mixed_7d"].mean((0, 1)) + arrays["last_linear.bias"]
        assert_near(logits, reference["logits_299"], "logits", 1e-5)


def test_detector_built_with_the_file(network, model_file):
    """model.weights names it; the network ends at the last tap, here before the modules 7, and eats pixels."""
    overrides = ["model.backbone=inception_v4", "model.taps=Mixed_5e,Mixed_6h", "model.levels=2"]
    overrides += [f"model.weights={model_file}", "model.image_size=299", "model.num_classes=1"]
    model = build.build(configs.load_config(None, overrides)).model
    body = model.get_layer("backbone")
    assert not [layer for layer in body.layers if layer.name.startswith("Mixed_7")]
    pixels = model.get_layer("preprocess")(picture(299))
    expected = run(network, 299)
    for name, value in zip(("Mixed_5e", "Mixed_6h"), body(pixels), strict=True):
        assert_near(np.asarray(value)[0], expected[name], name, 1e-5)
