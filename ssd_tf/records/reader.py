"""Records directories: verified before anything reads them, and read back as Examples."""

import collections
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.records import schema
from ssd_tf.records.writer import FORMAT_VERSION, LABEL_MAP, MANIFEST
from ssd_tf.structures import Example, LabelMap

# What TensorFlow says of bytes that are no image, or of a size that is not the image's.
_UNDECODABLE = re.compile(r"JPEG|PNG|decode|crop window|Slice index|Expected size", re.IGNORECASE)


@dataclass(frozen=True)
class RecordSet:
    """Shards that were found complete.

    Attributes:
      files: paths, in order.
      num_examples: images in all of them.
      label_map: LabelMap of their classes.
    """

    files: tuple[str, ...]
    num_examples: int
    label_map: LabelMap


def open_records(where):
    """Finds and verifies records.

    Args:
      where: a records directory, a glob of TFRecord files of other tools, or several separated by commas.

    Returns:
      RecordSet.

    Raises:
      DataError: missing, incomplete, damaged or of different classes; names the place and the cure.
      ConfigError: a glob that matches nothing.
    """
    sets = [_open_one(part) for part in str(where).split(",") if part]
    if not sets:
        raise ConfigError("no records given")
    for part in sets[1:]:
        sets[0].label_map.check_same(part.label_map, "the first set has", "another has")
    files = tuple(file for part in sets for file in part.files)
    return RecordSet(files, sum(part.num_examples for part in sets), sets[0].label_map)


def _open_one(where):
    path = Path(where)
    if path.is_dir():
        return _open_directory(path)
    files = sorted(glob.glob(str(where)))
    if not files:
        if not glob.has_magic(str(where)):
            raise DataError(f"no such records directory: {shown(where)}")
        raise ConfigError(f"no file matches {shown(where)!r} (working directory {os.getcwd()})")
    return _scan(files)


def _open_directory(path):
    shards = sorted(path.glob("*.tfrecord"))
    if not (path / MANIFEST).exists():
        if shards:
            raise DataError(
                f"conversion was interrupted; run ssd_image_to_tf again with --overwrite: {shown(path)}"
            )
        raise DataError(f"no records in {shown(path)}; ssd_image_to_tf makes them")
    manifest = fileio.read_json(path / MANIFEST)
    label_map = LabelMap.from_json(fileio.read_json(path / LABEL_MAP), path / LABEL_MAP)
    try:
        if manifest["format_version"] != FORMAT_VERSION:
            raise DataError(f"{shown(path)}: made by {manifest.get('made_by')}; convert again")
        entries = [(str(s["file"]), int(s["bytes"]), int(s["examples"])) for s in manifest["shards"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{shown(path / MANIFEST)}: not a manifest of records") from None
    files = _check_shards(path, entries)
    return RecordSet(files, sum(entry[2] for entry in entries), label_map)


def _check_shards(path, entries):
    files = [fileio.safe_join(path, name) for name, _, _ in entries]
    missing = [str(index) for index, file in enumerate(files) if not file.exists()]
    if missing:
        raise DataError(f"missing shard(s): {', '.join(missing)} of {len(files)}: {shown(path)}")
    for index, (file, (_, size, _)) in enumerate(zip(files, entries)):
        if file.stat().st_size != size:
            raise DataError(
                f"shard {index} of {len(files)} is {file.stat().st_size:,} bytes, manifest says {size:,}: "
                f"re-convert: {shown(path)}"
            )
    return tuple(str(file) for file in files)


def _scan(files):
    """Counts the records of shards without a manifest, checks their keys and collects their classes."""
    names, count = {}, 0
    with record_errors(files):
        for index, file in enumerate(files):
            for position, serialized in enumerate(tf.data.TFRecordDataset(file)):
                _check_record(serialized.numpy(), f"record {position} of shard {index}", names)
                count += 1
    if not names:
        raise DataError(f"no objects in {count} records: {shown(files[0])}")
    label_map = LabelMap(tuple(names.get(i, f"class {i}") for i in range(1, max(names) + 1)))
    return RecordSet(tuple(files), count, label_map)


def _check_record(data, where, names):
    try:
        feature = tf.train.Example.FromString(data).features.feature
    except DecodeError:
        raise DataError(f"{where}: not a tf.train.Example") from None
    for key in schema.REQUIRED:
        if key not in feature:
            raise DataError(f"{where}: no {key}")
    for key, kind in schema.kinds().items():
        found = feature[key].WhichOneof("kind") if key in feature else None
        if found not in (None, kind):
            raise DataError(f"{where}: {key} is a {found}, expected a {kind}")
    lengths = {key: len(feature[key].float_list.value) for key in schema.CORNERS}
    labels = list(feature[schema.LABEL].int64_list.value)
    lengths[schema.LABEL] = len(labels)
    first, *others = lengths.items()
    for key, length in others:
        if length != first[1]:
            raise DataError(f"{where}: {first[0]} has {first[1]} values, {key.split('/')[-1]} {length}")
    if labels and min(labels) < 1:
        raise DataError(f"{where}: class id {min(labels)}, ids start at 1")
    texts = [text.decode("utf-8", "replace") for text in feature[schema.TEXT].bytes_list.value]
    for position, label in enumerate(labels):
        names.setdefault(label, texts[position] if position < len(texts) else f"class {label}")


class record_errors:
    """Context that turns TensorFlow's report of damaged records into a DataError naming the shard."""

    def __init__(self, files):
        self.files = files

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, tf.errors.DataLossError):
            raise _damage(error, self.files) from None
        if isinstance(error, tf.errors.InvalidArgumentError) and _UNDECODABLE.search(error.message):
            reason = error.message.splitlines()[0][:120]
            raise DataError(f"a record's image cannot be decoded: {reason}: {shown(self.files[0])}") from None
        return False


def _damage(error, files):
    for index, file in enumerate(files):
        with open(file, "rb") as opened:
            start = opened.read(2)
        if start == b"\x1f\x8b":
            return DataError(f"not a TFRecord (starts with 1f 8b: gzip): {shown(file)}")
        try:
            for _ in tf.data.TFRecordDataset(file):
                pass
        except tf.errors.DataLossError as found:
            place = re.search(r"at (\d+)", str(found))
            at = f" at byte {place.group(1)}" if place else ""
            return DataError(f"corrupted record in shard {index}{at} (crc): {shown(file)}")
    return DataError(f"corrupted record: {error.message.splitlines()[0]}")


def read_examples(records):
    """Reads the annotations of all records, without pixels.

    Args:
      records: RecordSet.

    Returns:
      list of Examples in record order: boxes in pixels, names by the label map's ids, `size` set.
    """
    dataset = tf.data.TFRecordDataset(list(records.files)).enumerate().map(_annotation, tf.data.AUTOTUNE)
    with record_errors(records.files):
        examples = [_to_example(row, records.label_map) for row in dataset.as_numpy_iterator()]
    counts = collections.Counter(example.source_id for example in examples)
    twice = next((source_id for source_id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"image id {shown(twice)} stands twice in the records: {shown(records.files[0])}")
    return examples


def _annotation(index, serialized):
    row = schema.parse(serialized)
    row.pop("image")
    return {**row, "source_id": image_id(row["source_id"], index)}


def image_id(source_id, index):
    """Returns the id that an image is scored under: its own, or where it has none its place in the records.

    Args:
      source_id: string scalar tensor.
      index: int64 scalar tensor, place in the records.
    """
    return tf.where(source_id == "", tf.strings.as_string(index), source_id)


def _restore(boxes, sides):
    """Gives annotated pixels back exactly: whole ones, or with two decimals as COCO's.

    Records hold normalised float32; without this an IoU of exactly .5 would turn into .4999999.
    """
    annotated = np.round(boxes, 2)
    return np.where(np.abs(boxes - annotated) <= sides * 2.0**-24, annotated, boxes)


def _to_example(row, label_map):
    height, width = int(row["height"]), int(row["width"])
    sides = np.array([height, width, height, width], np.float64)
    return Example(
        source_id=row["source_id"].decode("utf-8", "surrogateescape"),
        image="",
        boxes=_restore(row["boxes"].astype(np.float64) * sides, sides),
        names=tuple(label_map.name(class_id) for class_id in row["classes"]),
        size=(height, width),
        difficult=row["difficult"],
        crowd=row["crowd"],
        truncated=row["truncated"],
        area=row["area"].astype(np.float64) if len(row["area"]) == len(row["boxes"]) else None,
    )
