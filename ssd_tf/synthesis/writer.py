"""A folder of drawn or pasted images with COCO annotations.

Image i depends on (seed, i), the options and the user's files alone: not on the number of images, nor on how many
threads draw. The annotations are written last, so a folder without them is an interrupted one.
"""

import collections
import functools
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_tf import fileio
from ssd_tf.annotations import coco
from ssd_tf.errors import ConfigError, shown, suggest
from ssd_tf.structures import Example, LabelMap
from ssd_tf.synthesis.cutouts import Pasting, check_num_objects, read_stock
from ssd_tf.synthesis.folders import find_classes, list_images
from ssd_tf.synthesis.layout import NUM_SHAPES
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
    classes=None,
    seed=0,
    objects=None,
    backgrounds=None,
    scale=Pasting.scale,
    num_objects=None,
    max_tilt=Pasting.max_tilt,
    mirror=Pasting.mirror,
    progress=None,
    overwrite=False,
    workers=0,
):
    """Writes `output`/images/000000.jpg ... and `output`/annotations.json (COCO instances).

    Args:
      output: directory, new or empty.
      num_images: 1 or more.
      image_size: side of each image, 64..4096 pixels.
      classes: names out of shapes.SHAPES, or of the classes in `objects`; their order is that of the ids. None:
        the default shapes, or all classes of `objects`, sorted.
      seed: 0 or more; the same seed gives the same bytes.
      objects: folder of cut-outs with transparency (see folders.find_classes), pasted instead of drawn shapes.
      backgrounds: folder of photographs, shown instead of drawn textures.
      num_objects: (fewest, most) objects in an image; None: 3 to 7 shapes, or 1 to 5 cut-outs.
      scale, max_tilt, mirror: how cut-outs are used, see cutouts.Pasting.
      progress: called with (images written, num_images) after each image, or None.
      overwrite: replace what an earlier call wrote.
      workers: threads; 0 for two.

    Returns:
      dict: "images" and "boxes" (counts), "per_class" {name: boxes}, "output" (text), "ignored" (what is no image
      in the folders).

    Raises:
      ConfigError: a wrong option, or `output` is not empty or an input; nothing has been written.
      DataError: a folder, cut-out or photograph that cannot be used.
      EnvironmentFault: disk full or not writable.
    """
    _check_options(num_images, image_size, seed, workers)
    inputs = [Path(folder) for folder in (objects, backgrounds) if folder is not None]
    _check_output(output, inputs)
    if num_objects is None:
        num_objects = NUM_SHAPES if objects is None else Pasting.num_objects
    check_num_objects(num_objects)
    pasting = Pasting(tuple(scale), tuple(num_objects), max_tilt, mirror)
    classes, stock, ignored = _read_objects(objects, classes, image_size, pasting)
    photos, more = ((), []) if backgrounds is None else list_images(backgrounds)
    draw = functools.partial(draw_scene, image_size=image_size, classes=classes, num_objects=pasting.num_objects)
    draw = functools.partial(draw, stock=stock, photos=photos)
    if inputs:
        draw(np.random.default_rng([seed, 0]))  # what no picture can be made of shows before anything is written
    with fileio.claim_output(output, (IMAGES, ANNOTATIONS), inputs, overwrite) as output:
        folder = fileio.make_directory(output / IMAGES)

        def write(number):
            return write_image(folder / f"{number:06d}.jpg", number, seed, draw)

        examples = []
        # A fault leaves the loop, which drops `map`'s iterator and so calls off what was not started.
        with ThreadPoolExecutor(workers or _THREADS) as pool:
            for example in pool.map(write, range(num_images)):
                examples.append(example)
                if progress is not None:
                    progress(len(examples), num_images)
        coco.write(output / ANNOTATIONS, examples, LabelMap(classes))
    return {**_summarise(examples, classes, output), "ignored": [str(path) for path in ignored + more]}


def write_image(path, number, seed, draw):
    """Draws image `number` of a seed and writes it as a JPEG.

    Args:
      path: the file.
      number: index of the image, 0 or more.
      seed: as for `synthesize`.
      draw: function (numpy.random.Generator) -> (pixels, boxes, names), see scene.draw_scene.

    Returns:
      Example with pixel boxes.

    Raises:
      EnvironmentFault: disk full or not writable.
    """
    pixels, boxes, names = draw(np.random.default_rng([seed, number]))
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


def _read_objects(objects, classes, image_size, pasting):
    """Returns (classes, Stock or None, paths of what is no image)."""
    classes = classes if classes is None else tuple(classes)
    _check_named(classes, SHAPES if objects is None else ("the sub-folders",))
    if objects is None:
        for name in classes or ():
            if name not in SHAPES:
                raise ConfigError(f"unknown class {name!r}{suggest(name, SHAPES)}; there are: {', '.join(SHAPES)}")
        return classes or DEFAULT_CLASSES, None, []
    pasting.check(image_size)
    paths, ignored = find_classes(objects, classes)
    return tuple(paths), read_stock(paths, image_size, pasting), ignored


def _check_named(classes, known):
    if classes is None:
        return
    if not classes:
        raise ConfigError(f"classes: name at least one of {', '.join(known)}")
    for name in classes:
        if classes.count(name) > 1:
            raise ConfigError(f"class {name!r} is named twice")


def _check_output(output, inputs):
    for source in inputs:
        if Path(output).resolve() != source.resolve() and Path(output).resolve().is_relative_to(source.resolve()):
            raise ConfigError(f"the output lies in the input: {shown(output)}")


def _check_options(num_images, image_size, seed, workers):
    _check_integer("num_images", num_images, 1)
    _check_integer("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    _check_integer("seed", seed, 0)
    _check_integer("workers", workers, 0)


def _check_integer(name, value, low, high=None):
    if type(value) is not int:
        raise ConfigError(f"{name}: expected integer, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ConfigError(f"{name}: {value} is outside {low}..{'' if high is None else high}")
