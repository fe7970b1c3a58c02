"""Which images a records directory holds, so that another set can be kept apart from it."""

import os
from pathlib import Path

from google.protobuf.message import DecodeError

from ssd_tf import fileio
from ssd_tf.errors import DataError, shown
from ssd_tf.records import framing, schema

_MANIFEST = "manifest.json"


def read_digests(records_dir):
    """Reads the digests of a records directory's images; without TensorFlow, whose start-up takes longer.

    Args:
      records_dir: directory that ssd_image_to_tf wrote.

    Returns:
      {hexadecimal SHA-256 of an image file: its source id}, in record order; of equal files the first.

    Raises:
      DataError: no finished records, a damaged shard, or an image without a digest.
    """
    digests = {}
    for path in _shards(Path(records_dir)):
        for position, record in enumerate(_read_records(path)):
            where = f"record {position}: {shown(path)}"
            try:
                digest, source_id = schema.read_texts(record, (schema.SHA256, schema.SOURCE_ID))
            except DecodeError:
                raise DataError(f"not a tf.train.Example: {where}") from None
            if not digest:
                raise DataError(f"no {schema.SHA256}, so no overlap can be checked: {where}")
            digests.setdefault(digest, source_id)
    return digests


def _shards(folder):
    if not folder.is_dir():
        raise DataError(f"no such records directory: {shown(folder)}")
    if not (folder / _MANIFEST).exists():
        raise DataError(f"no finished records in {shown(folder)}; ssd_image_to_tf makes them")
    manifest = fileio.read_json(folder / _MANIFEST)
    try:
        return [fileio.safe_join(folder, shard["file"]) for shard in manifest["shards"]]
    except (KeyError, TypeError):
        raise DataError(f"{shown(folder / _MANIFEST)}: not a manifest of records") from None


def _read_records(path):
    """Yields the records of one shard as bytes."""
    try:
        for _, record, _ in framing.read_frames(path):
            yield record
    except ValueError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno or 0).lower()}: {shown(path)}") from None
