"""Four drawn images as records, and a small backbone that is forgotten after each test."""

import numpy as np
import pytest
import small_network
from PIL import Image

from ssd_tf.models import registry
from ssd_tf.records import encoding, writer
from ssd_tf.structures import Example, LabelMap

# Class, and yxyx pixels, of the objects of each 64 x 64 image.
OBJECTS = (
    [("red", (8, 8, 32, 32))],
    [("blue", (20, 24, 60, 44))],
    [("red", (4, 36, 24, 60)), ("blue", (36, 6, 58, 30))],
    [("blue", (6, 4, 26, 44)), ("red", (34, 30, 62, 58))],
)
COLORS = {"red": (220, 40, 30), "blue": (30, 60, 210)}


def draw(objects, seed):
    """uint8 [64, 64, 3]: rectangles on faint noise."""
    image = np.random.default_rng(seed).integers(110, 140, (64, 64, 3), np.uint8)
    for name, (top, left, bottom, right) in objects:
        image[top:bottom, left:right] = COLORS[name]
    return image


@pytest.fixture(scope="session")
def drawn_objects():
    """OBJECTS."""
    return OBJECTS


@pytest.fixture(scope="session")
def drawn_images():
    """The images, uint8 [64, 64, 3]."""
    return [draw(objects, seed) for seed, objects in enumerate(OBJECTS)]


@pytest.fixture(scope="session")
def drawn_records(tmp_path_factory, drawn_images):
    """A records directory of the four images."""
    return write_drawn(tmp_path_factory.mktemp("drawn"), drawn_images, ("red", "blue"))


@pytest.fixture(scope="session")
def drawn_records_of_more_classes(tmp_path_factory, drawn_images):
    """The same images; a third class, of which there is no object, has the first id."""
    return write_drawn(tmp_path_factory.mktemp("more"), drawn_images, ("green", "blue", "red"))


def write_drawn(folder, drawn_images, names_of_classes):
    """Writes the four images as records; returns their directory."""
    examples = []
    for index, (image, objects) in enumerate(zip(drawn_images, OBJECTS, strict=True)):
        path = folder / f"{index}.png"
        Image.fromarray(image).save(path)
        names, boxes = zip(*objects, strict=True)
        examples.append(Example(source_id=str(index), image=str(path), boxes=np.array(boxes), names=names))
    output = folder / "records"
    output.mkdir()
    writer.write_records(examples, LabelMap(names_of_classes), output, encoding.WriteOptions())
    return output


@pytest.fixture
def small_backbone(monkeypatch):
    """Registers the backbone "small" for one test."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    small_network.register()
    return "small"
