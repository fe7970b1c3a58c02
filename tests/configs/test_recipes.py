"""Every recipe that ships: loads, builds, and says in its header how it is used and what it gives."""

import math
import re

import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models.detector import all_layers

RECIPES = configs.list_recipes()


def text_of(repository, name):
    return (repository / "configs" / f"{name}.toml").read_text(encoding="utf-8")


def test_recipes_are_the_files_of_the_folder(repository):
    assert sorted(path.stem for path in (repository / "configs").glob("*.toml")) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_a_detector_whose_rows_are_its_anchors(name):
    config = configs.load_config(name, ["model.weights=none", "model.num_classes=3"])
    anchors = build.build_anchors(config)
    model = build.build_model(config)
    height, width = config.model.image_size
    assert model.input_shape == (None, height, width, 3)
    shapes = {key: output.shape for key, output in model.output.items()}
    columns = 3 + config.loss.has_background
    assert shapes == {"class_logits": (None, len(anchors), columns), "box_deltas": (None, len(anchors), 4)}
    assert all(output.dtype == "float32" for output in model.output.values())
    assert (anchors[:, 2:] > anchors[:, :2]).all()


def test_ssd300_has_the_anchors_of_the_paper():
    assert len(build.build_anchors(configs.load_config("ssd300_vgg16_voc"))) == 8732


def test_ssd512_has_the_anchors_of_the_paper():
    """Numbers and sums of caffe's prior boxes with sizes that are not rounded to whole pixels."""
    anchors = build.build_anchors(configs.load_config("ssd512_vgg16_voc")).astype(np.float64)
    assert len(anchors) == 16384 + 6144 + 1536 + 384 + 96 + 16 + 4 == 24564
    centres, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    np.testing.assert_allclose(centres.sum(axis=0), 12282.0, atol=1e-2)
    np.testing.assert_allclose(sides.sum(axis=0), 3146.1417, atol=1e-2)
    np.testing.assert_allclose(centres[0], 4 / 512, atol=1e-7)
    np.testing.assert_allclose(sides[:2, 0], (0.07, math.sqrt(0.07 * 0.15)), atol=1e-6)
    np.testing.assert_allclose(sides[-4:-2], [(0.9, 0.9), (math.sqrt(0.9 * 1.05),) * 2], atol=1e-6)


# caffe's layers behind fc7: name, channels in and out, kernel, stride, padding, cells of the map after it.
SSD512_EXTRAS = [
    ("extra_1_reduce", 1024, 256, 1, 1, 0, 32),
    ("extra_1", 256, 512, 3, 2, 1, 16),
    ("extra_2_reduce", 512, 128, 1, 1, 0, 16),
    ("extra_2", 128, 256, 3, 2, 1, 8),
    ("extra_3_reduce", 256, 128, 1, 1, 0, 8),
    ("extra_3", 128, 256, 3, 2, 1, 4),
    ("extra_4_reduce", 256, 128, 1, 1, 0, 4),
    ("extra_4", 128, 256, 3, 2, 1, 2),
    ("extra_5_reduce", 256, 128, 1, 1, 0, 2),
    ("extra_5", 128, 256, 4, 1, 1, 1),
]


@pytest.fixture(scope="module")
def ssd512():
    config = configs.load_config("ssd512_vgg16_voc", ["model.weights=none", "model.num_classes=20"])
    return build.build_model(config)


def test_ssd512_has_the_layers_of_caffe(ssd512):
    named = {layer.name: layer for layer in all_layers(ssd512)}
    extras = [name for name in named if name.startswith("extra_") and named[name].weights]
    assert extras == [row[0] for row in SSD512_EXTRAS]
    for name, inputs, outputs, kernel, stride, padding, cells in SSD512_EXTRAS:
        layer = named[name]
        assert layer.kernel.shape == (kernel, kernel, inputs, outputs), name
        assert (layer.strides, layer.padding) == ((stride, stride), "valid" if kernel > 1 else "same")
        assert layer.output.shape == (None, cells, cells, outputs)
        assert (named[f"{name}_pad"].padding if padding else ((0, 0),) * 2) == ((padding, padding),) * 2
    heads = ((512, 4), (1024, 6), (512, 6), (256, 6), (256, 6), (256, 4), (256, 4))
    for level, (channels, shapes) in enumerate(heads, 1):
        assert named[f"head_{level}_class_logits"].kernel.shape == (3, 3, channels, 21 * shapes)
        assert named[f"head_{level}_box_deltas"].kernel.shape == (3, 3, channels, 4 * shapes)


def test_ssd512_has_as_many_weights_as_counted_by_hand(ssd512):
    body = ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512))
    count = sum(9 * inputs * outputs + outputs for inputs, outputs in (*body, *((512, 512),) * 5))
    count += 9 * 512 * 1024 + 1024 + 1024 * 1024 + 1024 + 512  # fc6, fc7, the factors of the normalisation
    count += sum(kernel**2 * inputs * outputs + outputs for _, inputs, outputs, kernel, *_ in SSD512_EXTRAS)
    heads = 512 * 4 + (1024 + 512 + 256 + 256) * 6 + (256 + 256) * 4
    count += (9 * heads + 4 + 6 * 4 + 4 * 2) * (21 + 4)
    assert ssd512.count_params() == count == 27_188_676  # "27.2 M" where it is published


def test_ssd512_reads_the_cells_that_caffe_reads(ssd512):
    """Where a single bright cell arrives: one row and column of padding at the start, unlike "same"."""
    named = {layer.name: layer for layer in all_layers(ssd512)}
    cells, cell = 32, 22
    for level, (kernel, stride, after) in enumerate(((3, 2, 16), (3, 2, 8), (3, 2, 4), (3, 2, 2), (4, 1, 1)), 1):
        layer, pad = named[f"extra_{level}"], named[f"extra_{level}_pad"]
        image = np.zeros((1, cells, cells, layer.kernel.shape[2]), np.float32)
        image[0, cell, cell, 0] = 1
        found = np.asarray(layer(pad(image)))[0, :, :, 0]
        weights = np.asarray(layer.kernel)[:, :, 0, 0]
        expected = np.zeros((after, after), np.float32)
        for row in range(after):
            for column in range(after):
                at = cell + 1 - stride * row, cell + 1 - stride * column
                if all(0 <= place < kernel for place in at):
                    expected[row, column] = weights[at]
        assert np.any(expected)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        cells, cell = after, cell // 2


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_how_long_it_trains(name):
    config = configs.load_config(name)
    assert configs.resolve_steps(config, 1000).train.steps > 0


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_header_has_command_result_and_hardware(repository, name):
    lines = text_of(repository, name).splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    command = next((line for line in header.splitlines() if "ssd-train" in line), "")
    assert command, "the header comment shows the ssd-train command"
    if name != configs.DEFAULT_RECIPE:
        assert f"--config={name}" in command
    assert re.search(r"mAP|AP\b", header), "the header says what to expect"
    assert re.search(r"CPU|GPU|core|minute|hour", header), "the header says on what hardware"
