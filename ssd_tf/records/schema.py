"""The keys of a record: the only place that spells them (the TF Object Detection API's names).

Writing needs the message tf.train.Example, not TensorFlow: it is declared here again, in a pool of its own.
"""

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

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
_FLAG_NAMES = {CROWD: "crowd", DIFFICULT: "difficult", TRUNCATED: "truncated"}


def encode(picture, boxes, labels, names, source_id, filename, sha256, area, flags):
    """Serializes one image and its boxes.

    Args:
      picture: object with data (bytes), format, height, width.
      boxes: float32 [N, 4], yxyx normalised to [0, 1].
      labels: N ints, 1..C.
      names: N class names.
      source_id: id of the image in its data set, text.
      filename: base name of the image file, text.
      sha256: hexadecimal digest of the file's bytes.
      area: float array [N], pixels.
      flags: {"crowd" | "difficult" | "truncated": bool array [N]}.

    Returns:
      (head, data, tail): bytes that joined are a tf.train.Example; the middle part is the picture's data.
      Equal input gives equal bytes.
    """
    bytes_lists = {
        FORMAT: (picture.format.encode(),),
        FILENAME: (filename.encode("utf-8", "surrogateescape"),),
        SOURCE_ID: (source_id.encode("utf-8", "surrogateescape"),),
        SHA256: (sha256.encode(),),
        TEXT: [name.encode() for name in names],
    }
    int64_lists = {HEIGHT: (picture.height,), WIDTH: (picture.width,), LABEL: labels}
    int64_lists.update((key, flags[name].view("int8").tolist()) for key, name in _FLAG_NAMES.items())
    float_lists = {AREA: area.tolist(), **dict(zip(CORNERS, boxes.T.tolist(), strict=True))}
    example = _example_message()()
    feature = example.features.feature
    for kind, lists in (("bytes_list", bytes_lists), ("int64_list", int64_lists), ("float_list", float_lists)):
        for key, values in lists.items():
            target = getattr(feature[key], kind)
            target.SetInParent()  # even where empty, so that a reader sees which type the list has
            target.value.extend(values)
    tail = example.features.SerializeToString(deterministic=True)
    return _image_head(len(picture.data), len(tail)), picture.data, tail


def _image_head(size, tail_size):
    """The bytes before the image's, whose key sorts before all others: it is copied once, into its file."""
    key = ENCODED.encode()
    head, length = b"", size
    for before in (b"", b"", b"\n" + _varint(len(key)) + key):  # bytes_list.value, bytes_list, then key and value
        tag = b"\x12" if before else b"\n"
        head = before + tag + _varint(length) + head
        length = size + len(head)
    head = b"\n" + _varint(length) + head  # an entry of the map
    return b"\n" + _varint(len(head) + size + tail_size) + head  # Example.features


def _varint(value):
    """Protocol buffers' form of a number."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def read_texts(serialized, keys):
    """Reads single texts of a record, without TensorFlow.

    Args:
      serialized: bytes of a tf.train.Example; a DecodeError if they are none.
      keys: keys of bytes lists.

    Returns:
      list of str, "" where the record has none.
    """
    feature = _example_message().FromString(serialized).features.feature
    values = [feature[key].bytes_list.value if key in feature else () for key in keys]
    return [found[0].decode("utf-8", "surrogateescape") if found else "" for found in values]


def split(serialized):
    """Returns (head, data, tail) of a record that `encode` made; DecodeError or ValueError if it is none."""
    (data,) = _example_message().FromString(serialized).features.feature[ENCODED].bytes_list.value
    at = serialized.index(data)
    return serialized[:at], data, serialized[at + len(data) :]


@functools.cache
def _example_message():
    """The class of tf.train.Example, as tensorflow/core/example/{example,feature}.proto declare it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    kinds = (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64))
    for number, (name, kind) in enumerate(kinds, 1):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, label=field.LABEL_REPEATED, type=kind)
        _add_message_field(feature, name.replace("List", "_list").lower(), number, name, oneof_index=0)
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    _add_message_field(entry, "value", 2, "Feature")
    _add_message_field(features, "feature", 1, "Features.FeatureEntry", label=field.LABEL_REPEATED)
    _add_message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _add_message_field(message, name, number, type_name, **options):
    field = descriptor_pb2.FieldDescriptorProto
    options = {"label": field.LABEL_OPTIONAL, **options}
    message.field.add(
        name=name, number=number, type=field.TYPE_MESSAGE, type_name=f".tensorflow.{type_name}", **options
    )


def parse(serialized):
    """Reads one record as graph ops.

    Args:
      serialized: string scalar tensor.

    Returns:
      dict: image (string), source_id (string), height, width (int32), boxes (float32 [N, 4] yxyx normalised),
      classes (int32 [N], 1..C), names (string [N]), area (float32 [N] pixels or [0]), crowd, difficult,
      truncated (bool [N]). Crowd includes OpenImages' group-of.
    """
    import tensorflow as tf

    values = tf.io.parse_single_example(serialized, _features())
    num_boxes = tf.size(values[CORNERS[0]])
    flags = {key: _flag(values[key], num_boxes) for key in (CROWD, GROUP_OF, DIFFICULT, TRUNCATED)}
    return {
        "image": values[ENCODED],
        "source_id": values[SOURCE_ID],
        "height": tf.saturate_cast(values[HEIGHT], tf.int32),
        "width": tf.saturate_cast(values[WIDTH], tf.int32),
        "boxes": tf.stack([values[key] for key in CORNERS], axis=-1),
        "classes": tf.saturate_cast(values[LABEL], tf.int32),
        "names": values[TEXT],
        "area": values[AREA],
        "crowd": flags[CROWD] | flags[GROUP_OF],
        "difficult": flags[DIFFICULT],
        "truncated": flags[TRUNCATED],
    }


def _features():
    import tensorflow as tf

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
    import tensorflow as tf

    lists = {tf.string: "bytes_list", tf.int64: "int64_list", tf.float32: "float_list"}
    return {key: lists[feature.dtype] for key, feature in _features().items()}


def _flag(values, num_boxes):
    """bool [num_boxes]; records of others may lack a flag, which means False."""
    import tensorflow as tf

    missing = tf.maximum(num_boxes - tf.size(values), 0)
    return tf.pad(values, [[0, missing]]) > 0
