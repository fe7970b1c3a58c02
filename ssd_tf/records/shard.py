"""One shard: a contiguous range of the examples, whole under its name or not there at all.

Beside it lies its state, a JSON file with the report of its images and a fingerprint of all that decided its
bytes: a conversion that was killed goes on after the shards whose state and digest still hold.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from ssd_tf import fileio
from ssd_tf.errors import DataError
from ssd_tf.records import encoding, framing, schema
from ssd_tf.records.report import Report
from ssd_tf.structures import LabelMap

# Raised whenever equal input gives other bytes than before.
_FORMAT = 1
_TICK = 64  # images between two signs of life


@dataclass(frozen=True)
class ShardJob:
    """All that a process needs to write one shard.

    Attributes:
      path: where the shard will stand.
      examples: its Examples, in order.
      label_map: LabelMap that knows their classes.
      options: encoding.WriteOptions.
    """

    path: str
    examples: tuple
    label_map: LabelMap
    options: encoding.WriteOptions


def write_shard(job, tick):
    """Writes a shard and its state, or finds that an earlier conversion has done it.

    Args:
      job: ShardJob.
      tick: function (number of images done since the last call).

    Returns:
      (manifest entry of the shard, Report).

    Raises:
      EnvironmentFault: disk full or not writable; nothing is left behind.
    """
    inputs = fingerprint(job)
    done = _find_done(job, inputs)
    if done is None:
        entry, report = _write(job, tick)
        entry["inputs"] = inputs
        fileio.write_json(state_path(job.path), {"entry": entry, "report": report.to_state()})
        return entry, report
    tick(len(job.examples))
    return done


def state_path(path):
    """Returns the path of a shard's state."""
    return Path(path).with_suffix(".json")


def _write(job, tick):
    report = Report()
    with fileio.atomic_write(job.path) as file:
        writer = _RecordWriter(file)
        for count, example in enumerate(job.examples, 1):
            item = encoding.encode_example(example, job.label_map, job.options)
            report.add(item, example.source_id)
            if item.problem is None:
                writer.write(*item.parts, item.image_digest)
            if count % _TICK == 0 or count == len(job.examples):
                tick((count - 1) % _TICK + 1)
    name = os.path.basename(job.path)
    return {"file": name, "examples": report.num_images, "bytes": writer.size, "digest": writer.digest()}, report


class _RecordWriter:
    """Writes records, each framed, without TensorFlow: its start takes longer than ten thousand images."""

    def __init__(self, file):
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, head, data, tail, data_digest):
        header, footer = framing.frame(head, data, tail)
        self._digest.update(header + head + data_digest + tail + footer)
        for part in (header + head, data, tail + footer):
            self._file.write(part)
            self.size += len(part)

    def digest(self):
        """Hexadecimal SHA-256 of the shard, each image standing in it by its own: no byte is hashed twice."""
        return self._digest.hexdigest()


def read_digest(path):
    """Returns a shard's digest as it stands on the disk; a DecodeError or ValueError if it is damaged."""
    digest = hashlib.sha256()
    for header, record, footer in framing.read_frames(path):
        head, data, tail = schema.split(record)
        digest.update(header + head + hashlib.sha256(data).digest() + tail + footer)
    return digest.hexdigest()


def _find_done(job, inputs):
    """(entry, Report) of a shard that stands there already, else None."""
    state = state_path(job.path)
    if not state.exists():
        return None
    with contextlib.suppress(DataError, DecodeError, OSError, KeyError, TypeError, ValueError, OverflowError):
        found = fileio.read_json(state)
        entry = found["entry"]
        if entry["inputs"] == inputs and is_intact(job.path, entry):
            return entry, Report.from_state(found["report"])
    return None


def is_intact(path, entry):
    """Tells whether a shard is still what its manifest entry says; a DecodeError or ValueError if it is none."""
    return os.path.getsize(path) == entry["bytes"] and read_digest(path) == entry["digest"]


def fingerprint(job):
    """Returns a digest of all that decides a shard's bytes; of images, their size and time of change."""
    digest = hashlib.sha256(
        repr((_FORMAT, job.options.deciding(), job.label_map)).encode("utf-8", "surrogatepass")
    )
    for example in job.examples:
        stamp = None
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(example.image)
            stamp = status.st_size, status.st_mtime_ns
        name = os.path.basename(example.image)
        texts = (example.source_id, name, example.names, example.unit, example.size)
        digest.update(repr((stamp, texts, example.dropped, example.swapped)).encode("utf-8", "surrogatepass"))
        for values in (example.boxes, example.difficult, example.crowd, example.truncated, example.area):
            digest.update(b"-" if values is None else values.tobytes())
    return digest.hexdigest()
