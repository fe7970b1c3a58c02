"""ssd-train: records to a run directory."""

import sys

from absl import flags

from ssd_tf import config
from ssd_tf.cli import runner


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("config", config.DEFAULT_RECIPE, "Recipe: a name (--list_recipes) or a TOML file.", **text)
    flags.DEFINE_string(
        "init_from", None, "Run to start from: its weights and, without --config, its config.", **text
    )
    flags.DEFINE_string("train", None, "Records to train on; several separated by commas.", **text)
    flags.DEFINE_string("val", None, "Records to validate on while training.", **text)
    flags.DEFINE_string("run_dir", None, "Directory of the run; the same command continues it.", **text)
    runner.define_overrides(values, "the recipe")
    flags.DEFINE_bool(
        "skip_corrupt_records", False, "Leave out what follows a damaged record in its shard.", **text
    )
    flags.DEFINE_bool("deterministic", False, "Equal results on equal machines, at some cost of speed.", **text)
    flags.DEFINE_bool("check_anchors", False, "Tell first how many boxes no anchor fits, by class.", **text)
    flags.DEFINE_bool("list_recipes", False, "List the recipes, what each is for, and leave.", **text)
    flags.DEFINE_bool("list_backbones", False, "List the backbones and leave.", **text)
    runner.define_plugin(values)


def prepare(values):
    """Turns flags into the arguments of api.train.train."""
    runner.required(values, "train", "run_dir")
    if values["config"].present or not values.init_from:
        chosen = {"config": config.load_config(values.config, values.set)}
    else:  # the run's, which is yet to be read
        config.check_overrides(values.set)
        chosen = {"overrides": values.set}
    return {
        **chosen,
        "init_from": values.init_from,
        "train": values.train,
        "val": values.val,
        "run_dir": values.run_dir,
        "skip_corrupt_records": values.skip_corrupt_records,
        "deterministic": values.deterministic,
        "check_anchors": values.check_anchors,
        "write_line": _write_line,
    }


def _show_entries(found):
    """Names and summaries as aligned lines."""
    width = max(len(entry["name"]) for entry in found)
    return "\n".join(f"{entry['name']:<{width}}  {entry['summary']}" for entry in found)


def _show_backbones(found):
    lines = _show_entries([{**entry, "summary": entry["summary"] + _show_options(entry)} for entry in found])
    return (
        f"{lines}\nAny other model of keras.applications with --set model.taps=..., your own with --plugin=FILE."
    )


def _show_options(entry):
    options = [f"model.{name}" for name in entry["options"]]
    others = [name for name in entry["layouts"] if name != "default"]
    if others:
        options.append(f"model.layout={'|'.join(others)}")
    return f" [{', '.join(options)}]" if options else ""


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
    queries={
        "list_backbones": ("ssd_tf.api.backbones:describe", _show_backbones),
        "list_recipes": ("ssd_tf.config:describe_recipes", _show_entries),
    },
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
