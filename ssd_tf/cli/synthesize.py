"""ssd-synthesize: a labelled data set out of nothing, or out of cut-outs."""

import sys

from absl import flags

from ssd_tf.cli import runner
from ssd_tf.errors import ConfigError, shown

_PASTING = ("scale", "max_tilt", "mirror")


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("output", None, "Folder to make: images/ and annotations.json (COCO).", **text)
    flags.DEFINE_integer("num_images", 2000, "Images to draw.", **text)
    flags.DEFINE_integer("image_size", 256, "Side of the images, pixels.", **text)
    flags.DEFINE_list(
        "classes", [], "Shapes to draw, or classes of --objects; all standard ones if unset.", **text
    )
    flags.DEFINE_string(
        "objects",
        None,
        "Folder of cut-outs, images with transparency, to paste: a sub-folder for each class, or files named "
        "CLASS_1.png, CLASS_2.png ...",
        **text,
    )
    photos = "Folder of photographs, without objects of the classes; drawn textures if unset."
    flags.DEFINE_string("backgrounds", None, photos, **text)
    flags.DEFINE_string("scale", "0.1,0.5", "Longer side of a cut-out, of the image's side: least,most.", **text)
    counts = "Objects in an image: fewest,most; 3,7 shapes or 1,5 cut-outs if unset."
    flags.DEFINE_string("num_objects", None, counts, **text)
    flags.DEFINE_float("max_tilt", 15.0, "Largest rotation of a cut-out to either side, degrees.", **text)
    flags.DEFINE_bool("mirror", False, "Mirror every other cut-out.", **text)
    flags.DEFINE_integer("seed", 0, "Equal seeds give equal files.", lower_bound=0, **text)
    flags.DEFINE_bool("overwrite", False, "Replace what is in the output folder.", **text)


def prepare(values):
    """Turns flags into the arguments of api.synthesize.synthesize."""
    runner.required(values, "output")
    for name in _PASTING:
        if values.objects is None and values[name].present:
            raise ConfigError(f"--{name} is for cut-outs: it needs --objects")
    names = ("output", "num_images", "image_size", "seed", "overwrite", "objects", "backgrounds", *_PASTING)
    arguments = {name: values[name].value for name in names}
    arguments["scale"] = _read_range("scale", values.scale, float)
    if values.num_objects is not None:
        arguments["num_objects"] = _read_range("num_objects", values.num_objects, int)
    if values.classes:
        arguments["classes"] = tuple(values.classes)
    return {**arguments, "progress": runner.progress_printer("images")}


def _read_range(name, text, kind):
    """Two numbers, or one that stands for both."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        example = "0.1,0.5" if kind is float else "1,5"
        raise ConfigError(f"--{name}: expected least,most such as {example}, got {text!r}")
    return numbers[0], numbers[-1]


def show(result):
    """Returns the summary for people."""
    counts = ", ".join(f"{name} {count:,}" for name, count in result["per_class"].items())
    line = f"{result['images']:,} images, {result['boxes']:,} boxes ({counts}) in {result['output']}"
    ignored = result["ignored"]
    return line + (f"\nno images, ignored: {len(ignored):,} (such as {shown(ignored[0])})" if ignored else "")


COMMAND = runner.Command(
    name="ssd-synthesize",
    summary="ssd-synthesize --output=data/shapes --num_images=2000\n"
    "ssd-synthesize --output=data/pasted --objects=cutouts --backgrounds=photos\n"
    "Makes a labelled data set, of drawn shapes or pasted cut-outs on drawn textures or photographs: images and\n"
    "COCO annotations, ready for ssd_image_to_tf --format=coco.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.synthesize:synthesize",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
