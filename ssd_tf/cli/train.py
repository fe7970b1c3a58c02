"""ssd-train: records to a run directory."""

import sys

from absl import flags

from ssd_tf import config
from ssd_tf.cli import runner


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("config", config.DEFAULT_RECIPE, "Recipe: a name (--list_recipes) or a TOML file.", **text)
    flags.DEFINE_string("train", None, "Records to train on; several separated by commas.", **text)
    flags.DEFINE_string("val", None, "Records to validate on while training.", **text)
    flags.DEFINE_string("run_dir", None, "Directory of the run; the same command continues it.", **text)
    flags.DEFINE_multi_string("set", [], "section.key=value: changes a key of the recipe; repeatable.", **text)
    flags.DEFINE_bool("list_recipes", False, "List the recipes and leave.", **text)


def prepare(values):
    """Turns flags into the arguments of api.train.train."""
    if values.list_recipes:
        return "\n".join(config.list_recipes())
    runner.required(values, "train", "run_dir")
    return {
        "config": config.load_config(values.config, values.set),
        "train": values.train,
        "val": values.val,
        "run_dir": values.run_dir,
        "write_line": _write_line,
    }


def _write_line(text):
    print(text, flush=True)


def show(result):
    """Returns the last lines for people."""
    best = result["best_metric"]
    scored = "" if best is None else f", best validation mAP {best:.4f}"
    return f"step {result['step']:,}{scored}; the run is in {result['run_dir']}"


COMMAND = runner.Command(
    name="ssd-train",
    summary="ssd-train --config=ssd300_vgg16_voc --train=tfrecords/voc07_trainval --run_dir=runs/a\n"
    "Trains a detector; run again, it goes on from the last checkpoint.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.train:train",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
