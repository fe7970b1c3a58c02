"""What is wrong with records, to the byte: shards of unknown origin are looked through before anything trusts
them, others only after TensorFlow has given up on one."""

import itertools
import os

import tensorflow as tf
from google.protobuf.message import DecodeError

from ssd_tf import images
from ssd_tf.errors import DataError, EnvironmentFault, is_text, shown
from ssd_tf.records import schema
from ssd_tf.records.framing import FOOTER, HEADER, masked_checksum

MAX_CLASSES = 100_000
_ANY_BOX = 2.0  # normalised corners may lie a little outside; pixels lie far outside
_CURE = "convert again (or ssd-train --skip_corrupt_records)"
_SINGLE = (schema.ENCODED, schema.SOURCE_ID, schema.HEIGHT, schema.WIDTH)
_CORNERS = (schema.CORNERS[1], schema.CORNERS[3], schema.CORNERS[0], schema.CORNERS[2])
_FLAGS = (schema.CROWD, schema.DIFFICULT, schema.TRUNCATED, schema.GROUP_OF)


class DamagedShard(DataError):
    """A record is damaged, and all that follow it in its shard are out of reach."""


def read_shard(file, index, foreign=False):
    """Yields the records of one shard as bytes, every one of them checked.

    TensorFlow would allocate whatever length a record claims, and take a file that ends inside a length for whole.

    Args:
      file: path of the shard.
      index: its number, for messages.
      foreign: it may be no TFRecord at all.

    Raises:
      DamagedShard: a record is damaged or cut off; names shard and byte.
      DataError: no TFRecord.
      EnvironmentFault: the shard cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            yield from _follow(opened, file, index, foreign)
    except OSError as error:
        raise EnvironmentFault(f"cannot read shard {index}: {_reason(error)}: {shown(file)}") from None


def _reason(error):
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _follow(opened, file, index, foreign):
    at, size = 0, os.fstat(opened.fileno()).st_size
    while header := opened.read(HEADER):
        whole = len(header) == HEADER
        sound = whole and masked_checksum(header[:8]) == header[8:]
        if foreign and at == 0 and not sound:
            kind = ": gzip" if header[:2] == b"\x1f\x8b" else ""
            raise DataError(f"not a TFRecord (starts with {header[:2].hex(' ')}{kind}): {shown(file)}")
        if whole and not sound:
            raise _broken("corrupted", index, at, file)
        length = int.from_bytes(header[:8], "little")
        if not whole or length > size - at - HEADER - FOOTER:
            raise _broken("truncated", index, at, file)
        content = opened.read(length)
        if masked_checksum(content) != opened.read(FOOTER):
            raise _broken("corrupted", index, at + HEADER, file)
        yield content
        at += HEADER + length + FOOTER


def _broken(kind, index, at, file):
    crc = " (crc)" if kind == "corrupted" else ""
    return DamagedShard(f"{kind} record in shard {index} at byte {at}{crc}: {_CURE}: {shown(file)}")


def check_record(data, where, num_classes=MAX_CLASSES):
    """Judges one record without decoding its image.

    Args:
      data: bytes of the record.
      where: its place, such as "record 12 of shard 0", for messages.
      num_classes: highest class id allowed.

    Returns:
      {class id: name, "" where the record has none} of its objects.

    Raises:
      DataError: not an example, or keys, kinds, lengths or values that cannot be.
    """
    try:
        feature = tf.train.Example.FromString(data).features.feature
    except DecodeError:
        raise DataError(f"{where}: not a tf.train.Example") from None
    for key, kind in schema.kinds().items():
        found = feature[key].WhichOneof("kind") if key in feature else None
        if found is None and key in schema.REQUIRED:
            raise DataError(f"{where}: no {key}")
        if found not in (None, kind):
            raise DataError(f"{where}: {key} is a {found}, expected a {kind}")
    values = {key: getattr(feature[key], kind).value for key, kind in schema.kinds().items() if key in feature}
    for key in _SINGLE:
        if key in values and len(values[key]) != 1:
            raise DataError(f"{where}: {key} has {len(values[key])} values, expected 1")
    _check_image(values, where)
    _check_lengths(values, where)
    _check_boxes(values, where)
    return _classes(values, where, num_classes)


def _check_image(values, where):
    height, width = values[schema.HEIGHT][0], values[schema.WIDTH][0]
    if not (0 < height <= images.MAX_PIXELS and 0 < width <= images.MAX_PIXELS // height):
        raise DataError(f"{where}: an image of {width}x{height} pixels cannot be")
    name = shown(values.get(schema.SOURCE_ID, [b""])[0].decode("utf-8", "replace")) or "no image/source_id"
    try:
        found = images.read_size(values[schema.ENCODED][0], name)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    _check_stated(where, found, (height, width))


def _check_stated(where, found, stated):
    if found != stated:
        raise DataError(
            f"{where}: the image is {found[1]}x{found[0]} pixels, the record says {stated[1]}x{stated[0]}"
        )


def _check_lengths(values, where):
    first, *others = (*_CORNERS, schema.LABEL)
    count = len(values.get(first, ()))
    for key in others:
        if len(values.get(key, ())) != count:
            raise DataError(f"{where}: {first} has {count} values, {_last(key)} {len(values.get(key, ()))}")
    for key in _FLAGS:  # shorter ones are filled up
        if len(values.get(key, ())) > count:
            raise DataError(f"{where}: {first} has {count} values, {_last(key)} {len(values[key])}")


def _last(key):
    return key.rpartition("/")[2]


def _check_boxes(values, where):
    for key in _CORNERS:
        for value in values.get(key, ()):
            if not abs(value) <= _ANY_BOX:  # not a number is not either
                raise DataError(f"{where}: {key} is {value:g}, expected 0..1")


def _classes(values, where, num_classes):
    labels = list(values.get(schema.LABEL, ()))
    for label in labels:
        if not 1 <= label <= num_classes:
            hint = "ids start at 1" if label < 1 else f"the highest is {num_classes}"
            raise DataError(f"{where}: class id {label}, {hint}")
    texts = [text.decode("utf-8", "replace") for text in values.get(schema.TEXT, ())]
    texts = [text if is_text(text) else "" for text in texts[: len(labels)]]
    return dict(zip(labels, texts + [""] * len(labels)))


def find_fault(records):
    """Looks for what made a pass through records fail.

    Args:
      records: reader.RecordSet.

    Raises:
      DataError, EnvironmentFault: what is wrong, with shard, record and file; nothing if all can be read.
    """
    num_classes = len(records.label_map)
    for judge in (lambda data, where: check_record(data, where, num_classes), _check_pixels):
        for index, (file, count) in enumerate(zip(records.files, records.counts)):
            shard = itertools.islice(read_shard(file, index), count if count >= 0 else None)
            for position, data in enumerate(shard):
                try:
                    judge(data, f"record {position} of shard {index}")
                except DataError as error:
                    raise DataError(f"{error}: {shown(file)}") from None


def _check_pixels(data, where):
    try:
        sample = schema.parse(tf.constant(data))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):  # its message holds the record's bytes
        raise DataError(f"{where}: TensorFlow cannot parse it as a tf.train.Example") from None
    name = sample["source_id"].numpy().decode("utf-8", "surrogateescape")
    where = f"{where} ({shown(name)})" if name else where
    try:
        found = tuple(images.decode(sample["image"]).shape[:2])
    except tf.errors.InvalidArgumentError as error:
        reason = error.message.partition("}} ")[2] or error.message
        raise DataError(f"{where}: the image cannot be decoded: {reason.split(' [Op:')[0][:120]}") from None
    _check_stated(where, found, (int(sample["height"]), int(sample["width"])))
