"""Annotated images to a records directory."""

from pathlib import Path

from ssd_tf import fileio
from ssd_tf.annotations import coco, voc
from ssd_tf.errors import ConfigError, suggest
from ssd_tf.records import writer
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
    overwrite=False,
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
      overwrite: replace what is in `output`.
      progress: function (done, total), or None.
      **options: fields of records.writer.WriteOptions.

    Returns:
      dict: output, examples, boxes (by class), and the lines of convert_report.json.

    Raises:
      ConfigError, DataError, EnvironmentFault: one line that names file and place.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: {format!r} is none of {', '.join(FORMATS)}{suggest(format, FORMATS)}")
    if format == "coco" and split:
        raise ConfigError("--split is VOC's: a COCO file is a split of its own")
    if format == "voc" and images:
        raise ConfigError("--images is COCO's: a VOC folder holds its images")
    output = Path(output or default_output(source, split))
    given = LabelMap.from_json(fileio.read_json(label_map), label_map) if label_map else None
    if format == "voc":
        found = voc.read(source, split, tuple(classes), given)
    else:
        found = coco.read(source, images or _image_folder(source), tuple(classes), given)
    inputs = (source, images, label_map)
    with fileio.claim_output(output, writer.OWN_FILES, inputs, overwrite, (writer.REPORT,)):
        about = {"format": format, "source": str(source), "split": split}
        manifest, report = writer.write_records(
            found.examples,
            found.label_map,
            output,
            writer.WriteOptions(**options),
            found.problems,
            about,
            progress,
        )
    return {
        "output": str(output),
        "examples": manifest["examples"],
        "boxes": manifest["boxes"],
        "notes": list(found.notes),
        **report.to_json(),
    }


def default_output(source, split=""):
    """Returns tfrecords/SOURCE_SPLIT: the last part of the source's path, without suffix."""
    name = Path(source).resolve().stem
    return Path("tfrecords") / (f"{name}_{split}" if split else name)


def _image_folder(source):
    folder = Path(source).parent
    return folder / "images" if (folder / "images").is_dir() else folder
