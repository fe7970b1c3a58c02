"""Examples to TFRecord shards: parallel, in a fixed order, visible only when complete.

Shards are written under temporary names and renamed; manifest.json comes last, so a directory with shards
and no manifest is an interrupted conversion. The order is that of the examples, the shards are contiguous
ranges, and the number of shards depends on the images' bytes alone: the same input gives the same bytes.
"""

import collections
import contextlib
import hashlib
import itertools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from ssd_tf import fileio, images
from ssd_tf.errors import DataError, EnvironmentFault, shown
from ssd_tf.records import normalise, schema
from ssd_tf.structures import Problem

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LABEL_MAP = "label_map.json"
REPORT = "convert_report.json"
OWN_FILES = ("*-?????-of-?????.tfrecord", MANIFEST, LABEL_MAP, REPORT)
_SHARD_BYTES = 128 << 20
_LISTED = 20  # problems shown with an error
_AHEAD = 64  # examples in flight: bounds the memory


@dataclass(frozen=True)
class WriteOptions:
    """How examples become records.

    Attributes:
      exif: see images.standardise.
      max_pixels: larger images are refused.
      on_error: "fail" writes nothing if any image is bad; "skip" leaves bad images out.
      max_skipped: with "skip", more bad images than this are an error: below 1 a fraction of all, else a count.
      workers: threads; 0 for as many as there are cores.
    """

    exif: str = "apply"
    max_pixels: int = images.MAX_PIXELS
    on_error: str = "fail"
    max_skipped: float = 0.01
    workers: int = 0


@dataclass
class Report:
    """What happened to the images, by name.

    Attributes:
      problems: Problems; each cost an image.
      dropped, clipped, converted: lines, one for each box or image.
      duplicates: lines, one for each image whose bytes came before under another id.
      num_negatives: images without objects.
      num_boxes: {class name: boxes written}.
      digests: {SHA-256 of an image file: the first source id that had it}.
    """

    problems: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    clipped: list = field(default_factory=list)
    converted: list = field(default_factory=list)
    duplicates: list = field(default_factory=list)
    num_negatives: int = 0
    num_boxes: collections.Counter = field(default_factory=collections.Counter)
    digests: dict = field(default_factory=dict)

    def to_json(self):
        """Returns the content of convert_report.json."""
        return {
            "skipped": [vars(problem) for problem in self.problems],
            "dropped": self.dropped,
            "clipped": self.clipped,
            "converted": self.converted,
            "duplicates": self.duplicates,
            "images_without_objects": self.num_negatives,
            "boxes": dict(sorted(self.num_boxes.items())),
        }


@dataclass(frozen=True)
class _Encoded:
    """One example on its way into a shard; `problem` instead of bytes where it cannot go."""

    serialized: bytes = b""
    problem: Problem | None = None
    names: tuple = ()
    digest: str = ""
    source_id: str = ""
    clipped: tuple = ()
    dropped: tuple = ()
    converted: tuple = ()


def write_records(examples, label_map, output, options, problems=(), about=None, progress=None):
    """Writes a records directory.

    Args:
      examples: sequence of Examples, in the order they are to be stored.
      label_map: LabelMap that knows every class name.
      output: empty directory; its last part names the shards.
      options: WriteOptions.
      problems: Problems found before (annotations that could not be read); they count as skipped images.
      about: dict stored in the manifest: where the data came from.
      progress: function (done, total), called after each example, or None.

    Returns:
      (manifest dict, Report).

    Raises:
      DataError: a bad image with on_error="fail", more than max_skipped, or nothing left. Nothing that
        could be taken for a finished conversion is left behind.
      EnvironmentFault: disk full or not writable.
    """
    output = Path(output)
    report = Report(problems=list(problems))
    total_bytes = sum(_file_size(example.image) for example in examples)
    fileio.check_free_space(output, int(total_bytes * 1.02))
    encoded = _encode_all(examples, label_map, options)
    if progress:
        encoded = _with_progress(encoded, len(examples), progress)
    num_shards = min(max(1, math.ceil(total_bytes / _SHARD_BYTES)), max(1, len(examples)))
    shards = []
    try:
        for index in range(num_shards):
            first, last = (len(examples) * edge // num_shards for edge in (index, index + 1))
            name = f"{output.resolve().name}-{index:05d}-of-{num_shards:05d}.tfrecord"
            shards.append(_write_shard(output / name, itertools.islice(encoded, last - first), report))
        _judge(report, len(examples) + len(problems), sum(s["examples"] for s in shards), options)
    except BaseException:
        for shard in shards:
            (output / shard["file"]).unlink(missing_ok=True)
        fileio.write_json(output / REPORT, report.to_json())
        raise
    manifest = _manifest(output.resolve().name, label_map, shards, report, about or {})
    fileio.write_json(output / REPORT, report.to_json())
    fileio.write_json(output / LABEL_MAP, label_map.to_json())
    fileio.write_json(output / MANIFEST, manifest)
    return manifest, report


def _file_size(path):
    with contextlib.suppress(OSError, ValueError):  # missing files are reported when they are read
        return os.stat(path).st_size
    return 0


def _encode_all(examples, label_map, options):
    """Yields _Encoded in order, a bounded number of examples ahead."""
    with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
        waiting = collections.deque()
        try:
            for example in examples:
                waiting.append(pool.submit(_encode_one, example, label_map, options))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_one(example, label_map, options):
    try:
        data = fileio.read_bytes(example.image, images.MAX_FILE_BYTES)
        picture = images.standardise(data, example.image, options.exif, options.max_pixels)
        normalise.check_size(example, picture.height, picture.width)
        return _serialize(example, data, picture, label_map)
    except DataError as error:
        kind = str(error).split(":")[0]
        return _Encoded(problem=Problem(kind, shown(example.image), str(error)), dropped=example.dropped)


def _serialize(example, data, picture, label_map):
    fitted = normalise.fit_boxes(example, picture.height, picture.width)
    kept = fitted.kept
    names = tuple(example.names[index] for index in kept)
    digest = hashlib.sha256(data).hexdigest()
    unit = (picture.height, picture.width) if example.unit == "normalised" else (1, 1)
    area = np.prod((example.boxes[:, 2:] - example.boxes[:, :2]) * unit, axis=1)
    if example.area is not None:
        area = np.where(np.isfinite(example.area), example.area, area)
    serialized = schema.encode(
        picture,
        fitted.boxes,
        [label_map.id(name) for name in names],
        names,
        example.source_id,
        Path(example.image).name,
        digest,
        area[kept],
        {flag: getattr(example, flag)[kept] for flag in ("crowd", "difficult", "truncated")},
    )
    converted = tuple(f"{change}: {shown(example.image)}" for change in picture.changes)
    dropped = example.dropped + fitted.dropped
    return _Encoded(serialized, None, names, digest, example.source_id, fitted.clipped, dropped, converted)


def _with_progress(encoded, total, progress):
    for done, item in enumerate(encoded, 1):
        progress(done, total)
        yield item


def _write_shard(path, encoded, report):
    """Writes one shard and returns its manifest entry."""
    temporary = fileio.temporary_name(path)
    count = 0
    try:
        with fileio.output_errors(path), _writer_errors(path):
            with tf.io.TFRecordWriter(str(temporary)) as writer:
                for item in encoded:
                    _note(item, report)
                    if item.problem is None:
                        writer.write(item.serialized)
                        count += 1
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            digest, size = fileio.sha256_file(temporary), temporary.stat().st_size
            fileio.commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": path.name, "examples": count, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _writer_errors(path):
    try:
        yield
    except tf.errors.OpError as error:
        raise EnvironmentFault(f"cannot write {shown(path)}: {error.message.splitlines()[0]}") from None


def _note(item, report):
    """Adds one example's fate to the report."""
    report.dropped += item.dropped
    if item.problem is not None:
        report.problems.append(item.problem)
        return
    report.clipped += item.clipped
    report.converted += item.converted
    report.num_boxes.update(item.names)
    report.num_negatives += not item.names
    first = report.digests.setdefault(item.digest, item.source_id)
    if first != item.source_id:
        report.duplicates.append(f"same image bytes under two ids: {shown(first)} and {shown(item.source_id)}")


def _judge(report, total, written, options):
    """Raises DataError if too much was wrong for a usable data set."""
    skipped = len(report.problems)
    if skipped and options.on_error == "fail":
        more = f" (and {skipped - 1} more)" if skipped > 1 else ""
        others = [problem.message for problem in report.problems[1:_LISTED]]
        others.append(f"{REPORT} lists all {skipped}; --on_error=skip leaves them out")
        raise DataError(report.problems[0].message + more, others)
    allowed = options.max_skipped if options.max_skipped >= 1 else options.max_skipped * total
    if skipped > allowed:
        raise DataError(
            f"{skipped} of {total} images cannot be used, --max_skipped allows {allowed:g}; "
            f"the first: {report.problems[0].message}"
        )
    if not written:
        raise DataError(f"no usable example (0 of {total})")
    if not report.num_boxes:
        raise DataError(f"no objects in any of the {written} images")


def _manifest(name, label_map, shards, report, about):
    version = (Path(__file__).parents[1] / "VERSION").read_text().strip()
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "made_by": f"ssd_tf {version}",
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "about": about,
        "examples": sum(shard["examples"] for shard in shards),
        "boxes": dict(sorted(report.num_boxes.items())),
        "label_map": label_map.to_json(),
        "shards": shards,
    }
