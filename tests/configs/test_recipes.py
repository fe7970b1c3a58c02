"""Every recipe that ships: loads, builds, and says in its header how it is used and what it gives."""

import re

import pytest

from ssd_tf import config as configs
from ssd_tf.api import build

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
    assert shapes == {"class_logits": (None, len(anchors), 4), "box_deltas": (None, len(anchors), 4)}
    assert all(output.dtype == "float32" for output in model.output.values())
    assert (anchors[:, 2:] > anchors[:, :2]).all()


def test_ssd300_has_the_anchors_of_the_paper():
    assert len(build.build_anchors(configs.load_config("ssd300_vgg16_voc"))) == 8732


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
