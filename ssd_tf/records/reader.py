"""Records directories: verified before anything reads them, and read back as Examples."""

import collections
import glob
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault, shown
from ssd_tf.records import damage, schema
from ssd_tf.records.writer import FORMAT_VERSION, LABEL_MAP, MANIFEST, STAGING
from ssd_tf.structures import Example, LabelMap

_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})(.*)", re.DOTALL)
_READ_ERRORS = (
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)
_ALL = -1  # tf.data's word for every record of a shard


@dataclass(frozen=True)
class RecordSet:
    """Shards that were found complete.

    Attributes:
      files: paths, in order.
      num_examples: images in all of them that can be read.
      label_map: LabelMap of their classes.
      counts: how many records to read of each file, from its start; -1 for all.
      num_lost: images that are stored, but lie behind a damaged record.
      notes: lines for the user about what was found.
    """

    files: tuple[str, ...]
    num_examples: int
    label_map: LabelMap
    counts: tuple[int, ...]
    num_lost: int = 0
    notes: tuple[str, ...] = ()


def open_records(where, skip_corrupt=False):
    """Finds and verifies records.

    Args:
      where: a records directory, a glob of TFRecord files of other tools, or several separated by commas.
      skip_corrupt: reads every shard once and leaves out what follows a damaged record in it; `notes` count it.

    Returns:
      RecordSet.

    Raises:
      DataError: missing, incomplete, damaged or of different classes; names the place and the cure.
      ConfigError: a glob that matches nothing.
      EnvironmentFault: a shard cannot be read.
    """
    sets = [_open_one(part.strip(), skip_corrupt) for part in str(where).split(",") if part.strip()]
    if not sets:
        raise ConfigError("no records given")
    for part in sets[1:]:
        sets[0].label_map.check_same(part.label_map, "the first set has", "another has")
    return RecordSet(
        tuple(file for part in sets for file in part.files),
        sum(part.num_examples for part in sets),
        sets[0].label_map,
        tuple(count for part in sets for count in part.counts),
        sum(part.num_lost for part in sets),
        tuple(note for part in sets for note in part.notes),
    )


def _open_one(where, skip_corrupt):
    path = Path(where)
    if path.is_dir():
        return _open_directory(path, skip_corrupt)
    files = sorted(glob.glob(str(where)))
    if not files:
        if not glob.has_magic(str(where)):
            raise DataError(f"no such records directory: {shown(where)}")
        raise ConfigError(f"no file matches {shown(where)!r} (working directory {os.getcwd()})")
    return _scan(files, where, skip_corrupt)


def _open_directory(path, skip_corrupt):
    shards = sorted(path.glob("*.tfrecord"))
    if not (path / MANIFEST).exists():
        if shards or (path / STAGING).exists():
            raise DataError(
                f"conversion was interrupted; rerun ssd_image_to_tf with --resume or delete: {shown(path)}"
            )
        raise DataError(f"no records in {shown(path)}; ssd_image_to_tf makes them")
    entries = _read_manifest(path / MANIFEST)
    label_map = LabelMap.from_json(fileio.read_json(path / LABEL_MAP), path / LABEL_MAP)
    files = _check_shards(path, entries)
    _check_numbering([*files, *(str(shard) for shard in shards if str(shard) not in files)], path)
    stored = [examples for _, _, examples in entries]
    if not skip_corrupt:
        return RecordSet(files, sum(stored), label_map, (_ALL,) * len(files))
    counts, notes = _count_readable(files, stored)
    lost = sum(stored) - sum(counts)
    if lost:
        notes.append(f"{lost:,} of {sum(stored):,} records are left out of every epoch: {shown(path)}")
    if not sum(counts):
        raise DataError(f"no record can be read: {shown(path)}")
    return RecordSet(files, sum(counts), label_map, tuple(counts), lost, tuple(notes))


def _read_manifest(path):
    """Returns (file name, bytes, examples) of every shard."""
    manifest = fileio.read_json(path)
    malformed = DataError(f"{shown(path)}: not a manifest of records")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("shards"), list):
        raise malformed
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(f"{shown(path)}: made by {shown(str(manifest.get('made_by'))[:40])}; convert again")
    rows = [shard if isinstance(shard, dict) else {} for shard in manifest["shards"]]
    entries = [(row.get("file"), row.get("bytes"), row.get("examples")) for row in rows]
    for file, size, examples in entries:
        if not isinstance(file, str) or type(size) is not int or type(examples) is not int or examples < 0:
            raise malformed
    if not 0 < sum(examples for _, _, examples in entries) < 2**53:
        raise DataError(f"{shown(path)}: no examples")
    return entries


def _check_shards(path, entries):
    try:
        files = [fileio.safe_join(path, name) for name, _, _ in entries]
    except DataError as error:
        raise DataError(f"{error}: {shown(path / MANIFEST)}") from None
    missing = [str(index) for index, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        raise DataError(f"missing shard(s): {', '.join(missing)} of {len(files)}: {shown(path)}")
    for index, (file, (_, size, _)) in enumerate(zip(files, entries)):
        if file.stat().st_size != size:
            raise DataError(
                f"shard {index} of {len(files)} is {file.stat().st_size:,} bytes, manifest says {size:,}: "
                f"re-convert: {shown(path)}"
            )
    return tuple(str(file) for file in files)


def _check_numbering(files, where):
    """Raises DataError unless shards that count themselves, NAME-00003-of-00010, are all there and no more."""
    groups = {}
    for file in files:
        numbered = _NUMBERED.fullmatch(file)
        if numbered:
            name, index, total, end = numbered.groups()
            groups.setdefault((name, end), {}).setdefault(int(total), set()).add(int(index))
    for (name, _), totals in groups.items():
        if len(totals) > 1:
            found = " and ".join(f"{len(indices)} of {total}" for total, indices in sorted(totals.items()))
            raise DataError(f"shards of several conversions ({found}): {shown(Path(name).name)} in {shown(where)}")
        [(total, indices)] = totals.items()
        missing = sorted(set(range(total)) - indices)
        if missing:
            listed = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
            raise DataError(f"missing shard(s): {listed} of {total}: {shown(where)}")
        if len(indices) > total:
            raise DataError(f"shard {max(indices)} of {total} cannot be: {shown(where)}")


def _count_readable(files, stored):
    """Returns how many records of each shard come before a damaged one, and a line for each such shard."""
    counts, notes = [], []
    for index, (file, expected) in enumerate(zip(files, stored)):
        records = itertools.count()
        try:
            collections.deque(zip(damage.read_shard(file, index), records), maxlen=0)
        except damage.DamagedShard as error:
            notes.append(str(error))
        counts.append(min(next(records), expected))
    return counts, notes


def _scan(files, where, skip_corrupt):
    """Counts the records of shards without a manifest, checks them and collects their classes."""
    _check_numbering(files, where)
    names, counts, notes = {}, [], []
    for index, file in enumerate(files):
        counts.append(0)
        try:
            _scan_shard(file, index, names, counts)
        except damage.DamagedShard as error:
            if not skip_corrupt:
                raise
            notes.append(f"what follows is left out of every epoch: {error}")
    if not names:
        raise DataError(f"no objects in {sum(counts)} records: {shown(where)}")
    label_map = _label_map(names, where)
    notes.append(f"no manifest: {sum(counts):,} records with {len(label_map)} classes found: {shown(where)}")
    return RecordSet(tuple(files), sum(counts), label_map, tuple(counts), notes=tuple(notes))


def _scan_shard(file, index, names, counts):
    if not os.path.isfile(file):
        raise DataError(f"not a regular file: {shown(file)}")
    if not os.path.getsize(file):
        raise DataError(f"shard {index} is empty: {shown(file)}")
    for position, data in enumerate(damage.read_shard(file, index, foreign=True)):
        try:
            found = damage.check_record(data, f"record {position} of shard {index}")
        except DataError as error:
            raise DataError(f"{error}: {shown(file)}") from None
        for class_id, name in found.items():
            names[class_id] = names.get(class_id) or name
        counts[-1] += 1


def _label_map(names, where):
    """LabelMap of {class id: name or ""}."""
    try:
        return LabelMap(tuple(names.get(i) or f"class {i}" for i in range(1, max(names) + 1)))
    except DataError as error:  # one name for two ids
        raise DataError(f"{error}: {shown(where)}") from None


class record_errors:
    """Context that turns TensorFlow's report of unusable records into an error naming shard and record.

    Args:
      records: RecordSet that is read inside.
    """

    def __init__(self, records):
        self.records = records

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError, UnicodeDecodeError)):
            damage.find_fault(self.records)
        if isinstance(error, _READ_ERRORS):
            for index, file in enumerate(self.records.files):
                if file in error.message:
                    damage.find_fault(self.records)  # or it can be read again
                    raise EnvironmentFault(f"cannot read shard {index}: a passing fault: {shown(file)}") from None
        return False


def shard_records(file, count):
    """Returns the data set of one shard's serialized records, its first `count` or -1 for all of them."""
    return tf.data.TFRecordDataset(file).take(tf.cast(count, tf.int64))


def serialized_records(records):
    """Returns the data set of a RecordSet's serialized records, in order."""
    shards = tf.data.Dataset.from_tensor_slices((list(records.files), list(records.counts)))
    return shards.flat_map(shard_records)


def parse_checked(serialized, num_classes):
    """Reads one record as schema.parse does, and fails on objects that a training would take for others.

    Args:
      serialized: string scalar tensor.
      num_classes: highest class id.

    Returns:
      dict of schema.parse. A failing op is explained by `record_errors`.
    """
    sample = schema.parse(serialized)
    classes, boxes = sample["classes"], sample["boxes"]
    lengths = [tf.size(sample[key]) for key in ("classes", "crowd", "difficult")]
    sound = tf.reduce_all(tf.stack(lengths) == tf.shape(boxes)[0])
    sound &= tf.reduce_all((classes >= 1) & (classes <= num_classes))
    sound &= tf.reduce_all(tf.math.is_finite(boxes))
    with tf.control_dependencies([tf.debugging.Assert(sound, ["objects that cannot be"])]):
        return {**sample, "boxes": tf.identity(boxes), "classes": tf.identity(classes)}


def read_examples(records):
    """Reads the annotations of all records, without pixels.

    Args:
      records: RecordSet.

    Returns:
      list of Examples in record order: boxes in pixels, names by the label map's ids, `size` set.
    """
    num_classes = len(records.label_map)

    def annotation(index, serialized):
        row = parse_checked(serialized, num_classes)
        row.pop("image")
        return {**row, "source_id": image_id(row["source_id"], index)}

    dataset = serialized_records(records).enumerate().map(annotation, tf.data.AUTOTUNE)
    with record_errors(records):
        examples = [_to_example(row, records.label_map) for row in dataset.as_numpy_iterator()]
    counts = collections.Counter(example.source_id for example in examples)
    twice = next((source_id for source_id, count in counts.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"image id {shown(twice)} stands twice in the records: {shown(records.files[0])}")
    return examples


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
