"""ssd_image_to_tf: annotated images to TFRecords."""

import sys

from absl import flags

from ssd_tf.cli import runner
from ssd_tf.errors import ConfigError

_MOST_PIXELS = 178e6  # Pillow refuses more
_SHOWN = 20  # lines of each kind on the console; all are in convert_report.json


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("format", None, "voc or coco.", **text)
    flags.DEFINE_string("input", None, "VOC: the folder. COCO: the instances JSON.", **text)
    flags.DEFINE_string("split", "", "VOC: the list in ImageSets/Main, such as trainval.", **text)
    flags.DEFINE_string("images", None, "COCO: the folder of the images.", **text)
    flags.DEFINE_string("output", None, "Records directory; by default tfrecords/INPUT_SPLIT.", **text)
    flags.DEFINE_list("classes", [], "Class names to keep, in the order of their ids.", **text)
    flags.DEFINE_string("label_map", None, "label_map.json to use, for sets that belong together.", **text)
    flags.DEFINE_bool("allow_gaps", False, "Accept gaps in the label map's ids; they become source ids.", **text)
    flags.DEFINE_string("bbox_format", "pixel", "pixel, or normalised: boxes are fractions of the image.", **text)
    flags.DEFINE_string("fix_boxes", "error", "error, or swap: exchange the edges of inverted boxes.", **text)
    flags.DEFINE_bool("require_pairs", False, "Refuse images without annotations, or the reverse.", **text)
    flags.DEFINE_float("val_fraction", 0.0, "Share of images for OUTPUT_val; the rest is OUTPUT_train.", **text)
    flags.DEFINE_integer("seed", 0, "Of the choice that --val_fraction makes.", **text)
    flags.DEFINE_string("check_overlap", None, "Records that may share no image with these.", **text)
    flags.DEFINE_bool("overwrite", False, "Replace what is in the output directory.", **text)
    flags.DEFINE_bool("resume", False, "Go on with a conversion that was interrupted.", **text)
    flags.DEFINE_bool("force", False, "Write even if another process seems to hold the output.", **text)
    flags.DEFINE_string("on_error", "fail", "fail: any bad image stops; skip: bad images are left out.", **text)
    flags.DEFINE_string("max_skipped", "1%", "With skip: most images left out, a number or a percentage.", **text)
    flags.DEFINE_string("exif", "apply", "apply, ignore or error: what to do with EXIF rotation.", **text)
    flags.DEFINE_string("max_pixels", "64M", "Larger images are refused; M for millions.", **text)
    flags.DEFINE_string("verify", "structure", "decode: decode every image, ten times slower.", **text)
    flags.DEFINE_integer("workers", 0, "Processes; 0: as many as cores.", lower_bound=0, **text)


def prepare(values):
    """Turns flags into the arguments of api.convert.convert."""
    runner.required(values, "format", "input")
    runner.check_choice(values, "on_error", ("fail", "skip"))
    runner.check_choice(values, "bbox_format", ("pixel", "normalised"))
    runner.check_choice(values, "fix_boxes", ("error", "swap"))
    runner.check_choice(values, "exif", ("apply", "ignore", "error"))
    runner.check_choice(values, "verify", ("structure", "decode"))
    if values.resume and values.overwrite:
        raise ConfigError("--resume goes on, --overwrite starts again: give one of them")
    return {
        "format": values.format,
        "source": values.input,
        "split": values.split,
        "images": values.images,
        "output": values.output,
        "classes": tuple(values.classes),
        "label_map": values.label_map,
        "allow_gaps": values.allow_gaps,
        "bbox_format": values.bbox_format,
        "fix_boxes": values.fix_boxes,
        "require_pairs": values.require_pairs,
        "val_fraction": values.val_fraction,
        "seed": values.seed,
        "check_overlap": values.check_overlap,
        "overwrite": values.overwrite,
        "resume": values.resume,
        "force": values.force,
        "on_error": values.on_error,
        "max_skipped": _share("max_skipped", values.max_skipped),
        "exif": values.exif,
        "verify": values.verify,
        "max_pixels": _count("max_pixels", values.max_pixels),
        "workers": values.workers,
        "progress": runner.progress_printer("images"),
    }


def _share(name, text):
    """Percentages become fractions below 1; whole numbers stay counts, 0 means none."""
    try:
        value = float(text.removesuffix("%"))
        if text.endswith("%") and 0 <= value <= 100:
            return min(value / 100, 1 - 1e-9)
        if not text.endswith("%") and value.is_integer() and 0 <= value <= 1e9:
            return value
    except ValueError:
        pass
    raise ConfigError(f"--{name}: expected a number or a percentage such as 1%, got {text!r}")


def _count(name, text):
    try:
        value = float(text.removesuffix("M")) * (1e6 if text.endswith("M") else 1)
        if 1 <= value <= _MOST_PIXELS:
            return int(value)
    except (ValueError, OverflowError):  # not a number, or not a finite one
        pass
    raise ConfigError(f"--{name}: expected 1 to {_MOST_PIXELS / 1e6:.0f}M, got {text!r}")


def show(result):
    """Returns the summary for people: what was written, and all that was not, by name."""
    lines = list(result["notes"])
    for kind in ("dropped", "swapped", "clipped", "converted", "odd", "duplicates"):
        found = result[kind]
        lines += found[:_SHOWN]
        if len(found) > _SHOWN:
            lines.append(f"... {len(found) - _SHOWN} more {kind}, all in convert_report.json")
    lines += [problem["message"] for problem in result["skipped"][:_SHOWN]]
    counts = ", ".join(f"{name} {count:,}" for name, count in result["boxes"].items())
    swapped = f"{len(result['swapped'])} swapped, " if result["swapped"] else ""
    lines.append(
        f"{result['examples']:,} examples, {sum(result['boxes'].values()):,} boxes ({counts}); "
        f"{len(result['skipped'])} skipped, {len(result['dropped'])} boxes dropped, "
        f"{swapped}{len(result['clipped'])} clipped, {result['images_without_objects']} images without objects"
    )
    lines.append(f"records in {result['output']}")
    if "val" in result:
        lines.append(show({**result["val"], "notes": []}))
    return "\n".join(lines)


COMMAND = runner.Command(
    name="ssd_image_to_tf",
    summary="ssd_image_to_tf --format=voc --input=VOCdevkit/VOC2007 --split=trainval --output=tfrecords/voc07\n"
    "Turns annotated images into TFRecords.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.convert:convert",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
