"""The keys of a record: the only place that spells them (the TF Object Detection API's names)."""

import functools

import numpy as np
import tensorflow as tf

ENCODED = "image/encoded"
FORMAT = "image/format"
FILENAME = "image/filename"
SOURCE_ID = "image/source_id"
SHA256 = "image/key/sha256"
HEIGHT = "image/height"
WIDTH = "image/width"
CORNERS = tuple(f"image/object/bbox/{corner}" for corner in ("ymin", "xmin", "ymax", "xmax"))
LABEL = "image/object/class/label"
TEXT = "image/object/class/text"
AREA = "image/object/area"
CROWD = "image/object/is_crowd"
DIFFICULT = "image/object/difficult"
TRUNCATED = "image/object/truncated"
GROUP_OF = "image/object/group_of"

REQUIRED = (ENCODED, HEIGHT, WIDTH)


def encode(picture, boxes, labels, names, source_id, filename, sha256, area, flags):
    """Serializes one image and its boxes.

    Args:
      picture: object with data (bytes), format, height, width.
      boxes: float32 [N, 4], yxyx normalised to [0, 1].
      labels: int [N], 1..C.
      names: N class names.
      source_id: id of the image in its data set, text.
      filename: base name of the image file, text.
      sha256: hexadecimal digest of the file's bytes.
      area: float [N], pixels.
      flags: {"crowd" | "difficult" | "truncated": bool [N]}.

    Returns:
      bytes of a tf.train.Example; equal input gives equal bytes.
    """
    features = {
        ENCODED: _bytes([picture.data]),
        FORMAT: _bytes([picture.format.encode()]),
        FILENAME: _bytes([filename.encode("utf-8", "surrogateescape")]),
        SOURCE_ID: _bytes([source_id.encode("utf-8", "surrogateescape")]),
        SHA256: _bytes([sha256.encode()]),
        HEIGHT: _ints([picture.height]),
        WIDTH: _ints([picture.width]),
        LABEL: _ints(labels),
        TEXT: _bytes([name.encode() for name in names]),
        AREA: _floats(area),
        CROWD: _ints(flags["crowd"]),
        DIFFICULT: _ints(flags["difficult"]),
        TRUNCATED: _ints(flags["truncated"]),
    }
    features.update({key: _floats(boxes[:, axis]) for axis, key in enumerate(CORNERS)})
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _bytes(values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, np.int64)))


def _floats(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=np.asarray(values, np.float32)))


def parse(serialized):
    """Reads one record as graph ops.

    Args:
      serialized: string scalar tensor.

    Returns:
      dict: image (string), source_id (string), height, width (int32), boxes (float32 [N, 4] yxyx normalised),
      classes (int32 [N], 1..C), names (string [N]), area (float32 [N] pixels or [0]), crowd, difficult,
      truncated (bool [N]). Crowd includes OpenImages' group-of.
    """
    values = tf.io.parse_single_example(serialized, _features())
    num_boxes = tf.size(values[CORNERS[0]])
    flags = {key: _flag(values[key], num_boxes) for key in (CROWD, GROUP_OF, DIFFICULT, TRUNCATED)}
    return {
        "image": values[ENCODED],
        "source_id": values[SOURCE_ID],
        "height": tf.cast(values[HEIGHT], tf.int32),
        "width": tf.cast(values[WIDTH], tf.int32),
        "boxes": tf.stack([values[key] for key in CORNERS], axis=-1),
        "classes": tf.cast(values[LABEL], tf.int32),
        "names": values[TEXT],
        "area": values[AREA],
        "crowd": flags[CROWD] | flags[GROUP_OF],
        "difficult": flags[DIFFICULT],
        "truncated": flags[TRUNCATED],
    }


def _features():
    features = {
        ENCODED: tf.io.FixedLenFeature([], tf.string),
        SOURCE_ID: tf.io.FixedLenFeature([], tf.string, ""),
        HEIGHT: tf.io.FixedLenFeature([], tf.int64),
        WIDTH: tf.io.FixedLenFeature([], tf.int64),
        TEXT: tf.io.RaggedFeature(tf.string),
        AREA: tf.io.RaggedFeature(tf.float32),
    }
    features.update({key: tf.io.RaggedFeature(tf.float32) for key in CORNERS})
    ints = (LABEL, CROWD, DIFFICULT, TRUNCATED, GROUP_OF)
    features.update({key: tf.io.RaggedFeature(tf.int64) for key in ints})
    return features


@functools.cache
def kinds():
    """Returns {key: name of its list in tf.train.Feature} for every key that `parse` reads."""
    lists = {tf.string: "bytes_list", tf.int64: "int64_list", tf.float32: "float_list"}
    return {key: lists[feature.dtype] for key, feature in _features().items()}


def _flag(values, num_boxes):
    """bool [num_boxes]; records of others may lack a flag, which means False."""
    missing = tf.maximum(num_boxes - tf.size(values), 0)
    return tf.pad(values, [[0, missing]]) > 0
