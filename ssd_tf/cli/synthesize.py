"""ssd-synthesize: a labelled data set out of nothing."""

import sys

from absl import flags

from ssd_tf.cli import runner


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("output", None, "Folder to make: images/ and annotations.json (COCO).", **text)
    flags.DEFINE_integer("num_images", 2000, "Images to draw.", **text)
    flags.DEFINE_integer("image_size", 256, "Side of the images, pixels.", **text)
    flags.DEFINE_list("classes", [], "Shapes to draw; all standard ones by default.", **text)
    flags.DEFINE_integer("seed", 0, "Equal seeds give equal files.", lower_bound=0, **text)
    flags.DEFINE_bool("overwrite", False, "Replace what is in the output folder.", **text)


def prepare(values):
    """Turns flags into the arguments of api.synthesize.synthesize."""
    runner.required(values, "output")
    names = ("output", "num_images", "image_size", "seed", "overwrite")
    arguments = {name: values[name].value for name in names}
    if values.classes:
        arguments["classes"] = tuple(values.classes)
    return {**arguments, "progress": runner.progress_printer("images")}


def show(result):
    """Returns the summary for people."""
    counts = ", ".join(f"{name} {count:,}" for name, count in result["per_class"].items())
    return f"{result['images']:,} images, {result['boxes']:,} boxes ({counts}) in {result['output']}"


COMMAND = runner.Command(
    name="ssd-synthesize",
    summary="ssd-synthesize --output=data/shapes --num_images=2000\n"
    "Draws a labelled data set: images and COCO annotations, ready for ssd_image_to_tf --format=coco.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.synthesize:synthesize",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
