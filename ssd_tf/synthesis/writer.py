"""A folder of drawn images with COCO annotations.

Image i depends on (seed, i) alone: not on the number of images, nor on how many threads draw. The annotations
are written last, so a folder without them is an interrupted one.
"""

import collections
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from ssd_tf import fileio
from ssd_tf.annotations import coco
from ssd_tf.errors import ConfigError, suggest
from ssd_tf.structures import Example, LabelMap
from ssd_tf.synthesis.scene import draw_scene
from ssd_tf.synthesis.shapes import DEFAULT_CLASSES, SHAPES

IMAGES, ANNOTATIONS = "images", "annotations.json"
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 64, 4096
_QUALITY = 90
_THREADS = 2  # one draws while the other waits for the disk; more only fight for the interpreter


def synthesize(
    output,
    num_images,
    image_size=256,
    classes=DEFAULT_CLASSES,
    seed=0,
    progress=None,
    overwrite=False,
    workers=0,
):
    """Writes `output`/images/000000.jpg ... and `output`/annotations.json (COCO instances).

    Args:
      output: directory, new or empty.
      num_images: 1 or more.
      image_size: side of each image, 64..4096 pixels.
      classes: names out of shapes.SHAPES; their order is that of the ids.
      seed: 0 or more; the same seed gives the same bytes.
      progress: called with (images written, num_images) after each image, or None.
      overwrite: replace what an earlier call wrote.
      workers: threads; 0 for two.

    Returns:
      dict: "images" and "boxes" (counts), "per_class" {name: boxes}, "output" (text).

    Raises:
      ConfigError: a wrong option, or `output` is not empty; nothing has been written.
      EnvironmentFault: disk full or not writable.
    """
    classes = tuple(classes)
    _check_options(num_images, image_size, classes, seed, workers)
    with fileio.claim_output(output, (IMAGES, ANNOTATIONS), overwrite=overwrite) as output:
        folder = fileio.make_directory(output / IMAGES)

        def write(number):
            return write_image(folder / f"{number:06d}.jpg", number, image_size, classes, seed)

        examples = []
        # A fault leaves the loop, which drops `map`'s iterator and so calls off what was not started.
        with ThreadPoolExecutor(workers or _THREADS) as pool:
            for example in pool.map(write, range(num_images)):
                examples.append(example)
                if progress is not None:
                    progress(len(examples), num_images)
        coco.write(output / ANNOTATIONS, examples, LabelMap(classes))
    return _summarise(examples, classes, output)


def write_image(path, number, image_size, classes, seed):
    """Draws image `number` of a seed and writes it as a JPEG.

    Args:
      path: the file.
      number: index of the image, 0 or more.
      image_size, classes, seed: as for `synthesize`.

    Returns:
      Example with pixel boxes.

    Raises:
      EnvironmentFault: disk full or not writable.
    """
    pixels, boxes, names = draw_scene(np.random.default_rng([seed, number]), image_size, classes)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
    with fileio.atomic_write(path) as file:
        file.write(encoded.getvalue())
    return Example(str(number), str(path), boxes, tuple(names), size=pixels.shape[:2])


def _summarise(examples, classes, output):
    counts = collections.Counter(name for example in examples for name in example.names)
    return {
        "images": len(examples),
        "boxes": counts.total(),
        "per_class": {name: counts[name] for name in classes},
        "output": str(output),
    }


def _check_options(num_images, image_size, classes, seed, workers):
    _check_integer("num_images", num_images, 1)
    _check_integer("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    _check_integer("seed", seed, 0)
    _check_integer("workers", workers, 0)
    if not classes:
        raise ConfigError(f"classes: name at least one of {', '.join(SHAPES)}")
    for name in classes:
        if name not in SHAPES:
            raise ConfigError(f"unknown class {name!r}{suggest(name, SHAPES)}; there are: {', '.join(SHAPES)}")
        if classes.count(name) > 1:
            raise ConfigError(f"class {name!r} is named twice")


def _check_integer(name, value, low, high=None):
    if type(value) is not int:
        raise ConfigError(f"{name}: expected integer, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ConfigError(f"{name}: {value} is outside {low}..{'' if high is None else high}")
