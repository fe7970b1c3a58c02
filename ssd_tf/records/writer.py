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
from dataclasses import dataclass
from pathlib import Path

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.records import overlap, worker
from ssd_tf.records.report import Report
from ssd_tf.records.shard import ShardJob, fingerprint

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LABEL_MAP = "label_map.json"
REPORT = "convert_report.json"
FAILED_REPORT = "convert_report_failed.json"  # beside good records, which have a report of their own
REPORTS = (REPORT, FAILED_REPORT)
STAGING = ".incoming"
_INPUTS = ".inputs.json"  # fingerprints of what the shards were made of; times of change are in them
OWN_FILES = ("*-?????-of-?????.tfrecord", MANIFEST, LABEL_MAP, *REPORTS)
_RELEASED = "released"  # in the hidden directory: its conversion ended in good order, the next may build on it
_SHARD_BYTES = 64 << 20
_LISTED = 20  # problems shown with an error


@dataclass(frozen=True)
class Prepared:
    """Records that are complete and found good, but not yet where they belong.

    Attributes:
      output: their directory.
      manifest: content of manifest.json.
      report: Report.
    """

    output: Path
    manifest: dict
    report: Report


def write_records(*arguments, **options):
    """Writes a records directory: `prepare` with these arguments, then `publish`; returns (manifest, Report)."""
    prepared = prepare(*arguments, **options)
    publish(prepared)
    return prepared.manifest, prepared.report


def prepare(
    examples,
    label_map,
    output,
    options,
    problems=(),
    about=None,
    progress=None,
    resume=False,
    elsewhere=None,
    earlier=None,
):
    """Converts everything; what `output` held before still stands.

    Args:
      examples: sequence of Examples, in the order they are to be stored.
      label_map: LabelMap that knows every class name.
      output: directory that holds nothing but what an earlier conversion wrote; its last part names the shards.
      options: encoding.WriteOptions.
      problems: Problems found before (annotations that could not be read); they count as skipped images.
      about: dict stored in the manifest: where the data came from.
      progress: function (done, total), called now and then, or None.
      resume: keep the sound shards of a conversion that was interrupted.
      elsewhere: {SHA-256 as text: source id} of images that must not be among these, or None.
      earlier: digests of a Report: images of the other part of the same data set; equal ones are reported.

    Returns:
      Prepared.

    Raises:
      DataError: a bad image with on_error="fail", more than max_skipped, nothing left, or an image of
        `elsewhere`; a report is left. EnvironmentFault: disk full or not writable. What is converted by then is
        kept for the next try.
    """
    output = Path(output)
    total_bytes = _total_bytes(examples)
    staged = sum(_file_size(path) for path in (output / STAGING).glob("*.tfrecord")) if resume else 0
    fileio.check_free_space(output, int(total_bytes * 1.02) - staged)
    staging = _prepare_staging(output, resume)
    jobs = _plan(examples, label_map, output, options, total_bytes)
    report = Report(problems=list(problems))
    entries = _write_shards(jobs, report, options, _Ticker(len(examples), progress))
    report.compare(earlier or {})
    name = FAILED_REPORT if (output / MANIFEST).exists() else REPORT
    try:
        _judge(report, len(examples) + len(problems), options, elsewhere or {}, name)
    except DataError:
        fileio.write_json(output / name, report.to_json())
        release(output)
        raise
    fileio.write_json(staging / _INPUTS, [entry.pop("inputs") for entry in entries])
    manifest = _manifest(output.resolve().name, label_map, entries, report, about or {})
    fileio.write_json(staging / LABEL_MAP, label_map.to_json())
    fileio.write_json(staging / REPORT, report.to_json())
    fileio.write_json(staging / MANIFEST, manifest)
    return Prepared(output, manifest, report)


def _write_shards(jobs, report, options, tick):
    """Writes the shards, adds what happened to `report`, and returns their manifest entries."""
    entries, num_workers = [], min(options.workers or _num_cores(), len(jobs))
    with contextlib.closing(worker.write_shards(jobs, num_workers, tick)) as written:
        for entry, part in written:
            entries.append(entry)
            report.merge(part)
    return entries


def publish(prepared):
    """Puts prepared records in the place of earlier ones: their manifest goes first, the new one comes last."""
    output, staging = prepared.output, prepared.output / STAGING
    with fileio.output_errors(output):
        (output / MANIFEST).unlink(missing_ok=True)
        fileio.sync_directory(output)
        for pattern in OWN_FILES:
            for old in output.glob(pattern):
                old.unlink()
        for name in (*(entry["file"] for entry in prepared.manifest["shards"]), LABEL_MAP, REPORT, _INPUTS):
            os.replace(staging / name, output / name)
        fileio.sync_directory(output)
        fileio.commit(staging / MANIFEST, output / MANIFEST)
        shutil.rmtree(staging)


def release(output):
    """Lets the next conversion build on what an unsuccessful one has left, without being asked."""
    staging = Path(output) / STAGING
    if staging.exists():
        with fileio.output_errors(output):
            (staging / _RELEASED).touch()


def check_not_interrupted(output, accepted):
    """Raises ConfigError if a conversion to `output` was killed, unless that is `accepted`."""
    staging = Path(output) / STAGING
    if accepted or not staging.exists() or (staging / _RELEASED).exists():
        return
    with contextlib.suppress(fileio.InUse), fileio.directory_lock(output):  # else it still runs
        raise ConfigError(
            f"a conversion to {shown(output)} was interrupted; --resume goes on with it, --overwrite starts again"
        )


def find_finished(examples, label_map, output, options, about, elsewhere=None):
    """Finds out whether a conversion has been finished before.

    Args:
      As for `prepare`.

    Returns:
      (manifest, Report), or None.

    Raises:
      ConfigError: another one has been finished there. DataError: its shards are damaged.
    """
    output = Path(output)
    if not (output / MANIFEST).exists() or (output / STAGING).exists():
        return None
    manifest = fileio.read_json(output / MANIFEST)
    jobs = _plan(examples, label_map, output, options, _total_bytes(examples))
    inputs = fileio.read_json(output / _INPUTS) if (output / _INPUTS).exists() else None
    same = {key: manifest.get("about", {}).get(key) == value for key, value in about.items()}
    same.update({"source": True, "images": True})  # a place may be spelled in many ways
    same["images or annotations"] = inputs == [fingerprint(job) for job in jobs]
    different = [key for key, equal in same.items() if not equal]
    if different:
        raise ConfigError(
            f"{shown(output)} holds another conversion (other {different[0]}); --overwrite replaces it"
        )
    for entry in manifest["shards"]:
        if _file_size(output / entry["file"]) != entry["bytes"]:
            raise DataError(f"{entry['file']} is damaged; --overwrite converts again: {shown(output)}")
    state = {**fileio.read_json(output / REPORT), "images": manifest["examples"]}
    report = Report.from_state({**state, "digests": overlap.read_digests(output) if elsewhere else {}})
    _refuse_shared(report, elsewhere or {})
    return manifest, report


def _prepare_staging(output, resume):
    """Makes the hidden directory; with `resume`, or when it was released, it keeps the whole shards of before."""
    staging = output / STAGING
    with fileio.output_errors(output):
        if staging.exists() and not resume and not (staging / _RELEASED).exists():
            shutil.rmtree(staging)
        staging.mkdir(exist_ok=True)
        (staging / _RELEASED).unlink(missing_ok=True)
        for leftover in staging.glob(".*.tmp-*"):  # of processes that were killed
            leftover.unlink()
        for state in staging.glob("*.json"):  # killed while publishing: some shards have moved already
            moved = output / state.with_suffix(".tfrecord").name
            if moved.exists() and not (output / MANIFEST).exists():
                os.replace(moved, staging / moved.name)
    return staging


def _total_bytes(examples):
    return sum(_file_size(example.image) for example in examples)


def _file_size(path):
    with contextlib.suppress(OSError, ValueError):  # missing files are reported when they are read
        return os.stat(path).st_size
    return 0


def _num_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plan(examples, label_map, output, options, total_bytes):
    """The ShardJobs: as many as the bytes ask for, of equal numbers of examples."""
    name = output.resolve().name
    num_shards = min(max(1, math.ceil(total_bytes / _SHARD_BYTES)), max(1, len(examples)))
    edges = [len(examples) * index // num_shards for index in range(num_shards + 1)]
    return [
        ShardJob(
            str(output / STAGING / f"{name}-{index:05d}-of-{num_shards:05d}.tfrecord"),
            tuple(examples[edges[index] : edges[index + 1]]),
            label_map,
            options,
        )
        for index in range(num_shards)
    ]


def overall(progress, total):
    """Returns progress over several parts, whose own counts begin at 0 again: function (done, any number)."""
    done = [0, 0]  # of earlier parts, of this one

    def show(count, _):
        done[:] = (done[0] + done[1], count) if count < done[1] else (done[0], count)
        progress(sum(done), total)

    return show


class _Ticker:
    """Turns counts of images done into progress."""

    def __init__(self, total, progress):
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, count):
        self._done += count
        if self._progress and count:
            self._progress(self._done, self._total)


def _judge(report, total, options, elsewhere, report_name):
    """Raises DataError if too much was wrong for a usable data set."""
    skipped = len(report.problems)
    if skipped and options.on_error == "fail":
        more = f" (and {skipped - 1} more)" if skipped > 1 else ""
        others = [problem.message for problem in report.problems[1:_LISTED]]
        others.append(f"{report_name} lists all {skipped}; --on_error=skip leaves them out")
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
    _refuse_shared(report, elsewhere)


def _refuse_shared(report, elsewhere):
    """Raises DataError if an image stands in the other records too."""
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
