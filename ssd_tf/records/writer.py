"""Examples to a records directory: parallel, in a fixed order, visible only when complete.

The order is that of the examples, the shards are contiguous ranges, and their number depends on the images'
bytes alone: the same input gives the same bytes, however many processes write them. All is written in a
hidden directory inside the output, which survives a kill, so that the conversion can go on; once complete and
found good it takes the place of what was there before, the manifest last. A directory with shards and no
manifest is an interrupted conversion.
"""

import contextlib
import math
import os
import shutil
from pathlib import Path

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.records import worker
from ssd_tf.records.encoding import WriteOptions
from ssd_tf.records.report import Report
from ssd_tf.records.shard import ShardJob

__all__ = ["WriteOptions", "write_records"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LABEL_MAP = "label_map.json"
REPORT = "convert_report.json"
STAGING = ".incoming"
OWN_FILES = ("*-?????-of-?????.tfrecord", MANIFEST, LABEL_MAP, REPORT)
_SHARD_BYTES = 64 << 20
_LISTED = 20  # problems shown with an error


def write_records(
    examples, label_map, output, options, problems=(), about=None, progress=None, resume=False, elsewhere=None
):
    """Writes a records directory.

    Args:
      examples: sequence of Examples, in the order they are to be stored.
      label_map: LabelMap that knows every class name.
      output: directory that holds nothing but what an earlier conversion wrote; its last part names the shards.
      options: WriteOptions.
      problems: Problems found before (annotations that could not be read); they count as skipped images.
      about: dict stored in the manifest: where the data came from.
      progress: function (done, total), called now and then, or None.
      resume: keep the sound shards of a conversion that was interrupted.
      elsewhere: {SHA-256: source id} of images that must not be among these, or None.

    Returns:
      (manifest dict, Report).

    Raises:
      DataError: a bad image with on_error="fail", more than max_skipped, nothing left, or an image of
        `elsewhere`. What `output` held before still stands, beside the report.
      EnvironmentFault: disk full or not writable; what is written so far is kept for `resume`.
    """
    output = Path(output)
    staging = _prepare_staging(output, resume)
    total_bytes = sum(_file_size(example.image) for example in examples)
    fileio.check_free_space(output, int(total_bytes * 1.02))
    jobs = _plan(examples, label_map, staging, options, output.resolve().name, total_bytes)
    report, entries = Report(problems=list(problems)), []
    tick = _Ticker(len(examples), progress)
    num_workers = min(options.workers or _num_cores(), len(jobs))
    with contextlib.closing(worker.write_shards(jobs, num_workers, tick)) as written:
        for entry, part in written:
            entries.append(entry)
            report.merge(part)
    try:
        _judge(report, len(examples) + len(problems), options, elsewhere or {})
    except DataError:
        shutil.rmtree(staging)
        fileio.write_json(output / REPORT, report.to_json())
        raise
    manifest = _manifest(output.resolve().name, label_map, entries, report, about or {})
    fileio.write_json(staging / LABEL_MAP, label_map.to_json())
    fileio.write_json(staging / REPORT, report.to_json())
    fileio.write_json(staging / MANIFEST, manifest)
    _publish(staging, output, [entry["file"] for entry in entries])
    return manifest, report


def check_not_interrupted(output, accepted):
    """Raises ConfigError if an interrupted conversion lies in `output`, unless that is `accepted`."""
    if (Path(output) / STAGING).exists() and not accepted:
        raise ConfigError(
            f"a conversion to {shown(output)} was interrupted; --resume goes on with it, --overwrite starts again"
        )


def find_finished(output, about):
    """Returns (manifest, Report) of a conversion that has been finished, or None.

    Raises:
      ConfigError: it was another one than `about` says.
    """
    output = Path(output)
    if not (output / MANIFEST).exists() or (output / STAGING).exists():
        return None
    manifest = fileio.read_json(output / MANIFEST)
    before = manifest.get("about", {})
    for key, value in about.items():
        if before.get(key) != value:
            raise ConfigError(f"{shown(output)} holds another conversion ({key} differs); --overwrite replaces it")
    state = {**fileio.read_json(output / REPORT), "images": manifest["examples"], "digests": {}}
    return manifest, Report.from_state(state)


def _prepare_staging(output, resume):
    """Makes the hidden directory; with `resume` it keeps the whole shards of before."""
    staging = output / STAGING
    with fileio.output_errors(output):
        if not resume and staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(exist_ok=True)
        for leftover in staging.glob(".*.tmp-*"):  # of processes that were killed
            leftover.unlink()
        for state in staging.glob("*.json"):  # killed while publishing: some shards have moved already
            moved = output / state.with_suffix(".tfrecord").name
            if moved.exists() and not (output / MANIFEST).exists():
                os.replace(moved, staging / moved.name)
    return staging


def _file_size(path):
    with contextlib.suppress(OSError, ValueError):  # missing files are reported when they are read
        return os.stat(path).st_size
    return 0


def _num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plan(examples, label_map, folder, options, name, total_bytes):
    """The ShardJobs: as many as the bytes ask for, of equal numbers of examples."""
    num_shards = min(max(1, math.ceil(total_bytes / _SHARD_BYTES)), max(1, len(examples)))
    edges = [len(examples) * index // num_shards for index in range(num_shards + 1)]
    return [
        ShardJob(
            str(folder / f"{name}-{index:05d}-of-{num_shards:05d}.tfrecord"),
            tuple(examples[edges[index] : edges[index + 1]]),
            label_map,
            options,
        )
        for index in range(num_shards)
    ]


class _Ticker:
    """Turns counts of images done into progress."""

    def __init__(self, total, progress):
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count):
        self._done += count
        if self._progress and count:
            self._progress(self._done, self._total)


def _judge(report, total, options, elsewhere):
    """Raises DataError if too much was wrong for a usable data set."""
    skipped = len(report.problems)
    if skipped and options.on_error == "fail":
        more = f" (and {skipped - 1} more)" if skipped > 1 else ""
        others = [problem.message for problem in report.problems[1:_LISTED]]
        others.append(f"{REPORT} lists all {skipped}; --on_error=skip leaves them out")
        raise DataError(report.problems[0].message + more, others)
    allowed = options.max_skipped if options.max_skipped >= 1 else options.max_skipped * total
    if not report.num_images:
        first = f"; the first that cannot be used: {report.problems[0].message}" if skipped else ""
        raise DataError(f"no usable example (0 of {total}){first}")
    if skipped > allowed:
        raise DataError(
            f"{skipped} of {total} images cannot be used, --max_skipped allows {allowed:g}; "
            f"the first: {report.problems[0].message}"
        )
    if not report.num_boxes:
        raise DataError(f"no objects in any of the {report.num_images} images")
    found = ((own, elsewhere.get(digest.hex())) for digest, own in report.digests.items()) if elsewhere else ()
    shared = [f"{shown(own)} = {shown(other)}" for own, other in found if other is not None]
    if shared:
        images = "1 image is" if len(shared) == 1 else f"{len(shared):,} images are"
        raise DataError(f"{images} in the other records too (here = there): {shared[0]}", shared[1:_LISTED])


def _manifest(name, label_map, shards, report, about):
    version = (Path(__file__).parents[1] / "VERSION").read_text().strip()
    return {
        "format_version": FORMAT_VERSION,
        "name": name,
        "made_by": f"ssd_tf {version}",
        "about": about,
        "examples": sum(shard["examples"] for shard in shards),
        "boxes": dict(sorted(report.num_boxes.items())),
        "label_map": label_map.to_json(),
        "shards": shards,
    }


def _publish(staging, output, shards):
    """Puts the finished files in the place of earlier ones: their manifest goes first, the new one comes last."""
    with fileio.output_errors(output):
        (output / MANIFEST).unlink(missing_ok=True)
        fileio.sync_directory(output)
        for pattern in OWN_FILES:
            for old in output.glob(pattern):
                old.unlink()
        for name in (*shards, LABEL_MAP, REPORT):
            os.replace(staging / name, output / name)
        fileio.sync_directory(output)
        fileio.commit(staging / MANIFEST, output / MANIFEST)
        shutil.rmtree(staging)
