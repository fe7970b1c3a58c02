"""Annotated images to a records directory, or to two."""

import contextlib
import signal
from pathlib import Path

from ssd_tf import fileio
from ssd_tf.annotations import coco, voc
from ssd_tf.annotations.annotation_set import BoxRules
from ssd_tf.errors import ConfigError, DataError, Interrupted, suggest
from ssd_tf.records import encoding, holdout, overlap, writer
from ssd_tf.structures import LabelMap

FORMATS = ("voc", "coco")


def convert(
    format,
    source,
    output=None,
    split="",
    images=None,
    classes=(),
    label_map=None,
    allow_gaps=False,
    bbox_format="pixel",
    fix_boxes="error",
    require_pairs=False,
    val_fraction=0.0,
    seed=0,
    check_overlap=None,
    overwrite=False,
    resume=False,
    force=False,
    progress=None,
    **options,
):
    """Converts a data set.

    Args:
      format: "voc" or "coco".
      source: VOC: the folder (with ImageSets, or flat); COCO: the instances JSON.
      output: records directory to make; by default tfrecords/SOURCE_SPLIT.
      split: VOC: name of the list in ImageSets/Main.
      images: COCO: folder of the images; by default the JSON's folder, or "images" in it.
      classes: names to keep, in the order of their ids; all by default.
      label_map: path of a label_map.json to use.
      allow_gaps: accept gaps in its ids; they become source ids.
      bbox_format: "pixel", or "normalised" for boxes in fractions of the image.
      fix_boxes: "error" refuses inverted boxes, "swap" exchanges their edges.
      require_pairs: refuse images without annotations and annotations without images.
      val_fraction, seed: above 0, this share of the images goes to OUTPUT_val and the rest to OUTPUT_train.
      check_overlap: records directory that may share no image with this one, or None.
      overwrite: replace what is in `output`, once the new records are complete.
      resume: go on with a conversion that was interrupted.
      force: take `output` even if another process seems to hold it.
      progress: function (done, total), or None.
      **options: fields of records.encoding.WriteOptions.

    Returns:
      dict: output, examples, boxes (by class), notes, and the lines of convert_report.json; with val_fraction
      also "val", the same of the second set.

    Raises:
      ConfigError, DataError, EnvironmentFault: one line that names file and place.
    """
    _check(format, split, images, val_fraction)
    output = Path(output or default_output(source, split))
    inputs = (source, images, label_map, check_overlap)
    given = LabelMap.from_json(fileio.read_json(label_map), label_map, allow_gaps) if label_map else None
    choice = (tuple(classes), given, BoxRules(bbox_format, fix_boxes), require_pairs)
    if format == "voc":
        found = voc.read(source, split, *choice)
    else:
        found = coco.read(source, images or _image_folder(source), *choice)
    chosen = encoding.WriteOptions.of(options)
    about = {
        **{"format": format, "source": str(source), "split": split, "images": images and str(images)},
        **{"classes": list(classes), "label_map": found.label_map.to_json(), "bbox_format": bbox_format},
        **{"fix_boxes": fix_boxes, "val_fraction": val_fraction, "seed": seed, **chosen.deciding()},
    }
    elsewhere = overlap.read_digests(check_overlap) if check_overlap else {}
    parts = {output: (found.examples, found.problems)}
    if val_fraction:
        kept, held_out = holdout.hold_out(found.examples, val_fraction, seed)
        parts = {f"{output}_train": (kept, found.problems), f"{output}_val": (held_out, ())}
    accepted = overwrite or resume
    with contextlib.ExitStack() as stack:
        for part in parts:
            writer.check_not_interrupted(part, accepted)
            claim = fileio.claim_output(part, writer.OWN_FILES, inputs, accepted, writer.REPORTS, False, force)
            stack.enter_context(claim)
        rest = {"about": about, "resume": resume, "elsewhere": elsewhere}
        rest["progress"] = progress and writer.overall(progress, len(found.examples))
        results = _convert_parts(parts, found, chosen, rest)
    return {**results[0], "val": results[1]} if val_fraction else results[0]


def _convert_parts(parts, found, chosen, rest):
    """Prepares every part, then publishes them; returns their results."""
    results, prepared = [], []
    for part, (examples, problems) in parts.items():
        job = (examples, found.label_map, part, chosen)
        done = writer.find_finished(*job, rest["about"], rest["elsewhere"]) if rest["resume"] else None
        if not done:
            earlier = prepared[-1].report.digests if prepared else {}
            prepared.append(_prepare(parts, *job, problems=problems, earlier=earlier, **rest))
        manifest, report = done or (prepared[-1].manifest, prepared[-1].report)
        notes = [f"already finished: {part}"] if done else list(found.notes)
        results.append({"output": str(part), "examples": manifest["examples"], "notes": notes, **report.to_json()})
    for part in prepared:
        writer.publish(part)
    return results


def _prepare(parts, *job, **rest):
    """writer.prepare; bad data in one of the parts end the conversion of all."""
    try:
        return writer.prepare(*job, **rest)
    except KeyboardInterrupt:
        message = "interrupted; the same command with --resume goes on after the last complete shard"
        raise Interrupted(message, signal.SIGINT) from None
    except DataError:
        for part in parts:
            writer.release(part)
        raise


def _check(format, split, images, val_fraction):
    if format not in FORMATS:
        raise ConfigError(f"--format: {format!r} is none of {', '.join(FORMATS)}{suggest(format, FORMATS)}")
    if format == "coco" and split:
        raise ConfigError("--split is VOC's: a COCO file is a split of its own")
    if format == "voc" and images:
        raise ConfigError("--images is COCO's: a VOC folder holds its images")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"--val_fraction: {val_fraction:g} is outside 0..1")


def default_output(source, split=""):
    """Returns tfrecords/SOURCE_SPLIT: the last part of the source's path, without suffix."""
    source = Path(source).resolve()
    name = source.name if source.is_dir() else source.stem
    return Path("tfrecords") / (f"{name}_{split}" if split else name)


def _image_folder(source):
    folder = Path(source).parent
    return folder / "images" if (folder / "images").is_dir() else folder
