"""ssd-test: a run, or a file of detections, to numbers."""

import sys

from absl import flags

from ssd_tf.cli import runner
from ssd_tf.config import METRICS
from ssd_tf.errors import ConfigError


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("run_dir", None, "Run directory.", **text)
    flags.DEFINE_string("detections", None, "COCO results file to score instead of a run.", **text)
    flags.DEFINE_string("data", None, "Records to score on.", **text)
    flags.DEFINE_string("metric", "voc07", "voc07 (11 points), voc (area) or coco (12 numbers).", **text)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or step-N.", **text)
    flags.DEFINE_string("results", None, "COCO results file to write the detections to.", **text)
    flags.DEFINE_integer("batch_size", 8, "Images a batch.", lower_bound=1, **text)
    runner.define_overrides(values, "the run's postprocess section")
    runner.define_plugin(values)


def prepare(values):
    """Turns flags into the arguments of api.evaluate.evaluate."""
    runner.required(values, "data")
    runner.check_checkpoint(values)
    if bool(values.run_dir) == bool(values.detections):
        raise ConfigError("give either --run_dir or --detections")
    runner.check_choice(values, "metric", METRICS)
    names = ("run_dir", "detections", "data", "metric", "checkpoint", "results", "batch_size")
    return {
        **{name: values[name].value for name in names},
        "overrides": values.set,
        "write_line": print,
        "progress": runner.progress_printer("images"),
    }


def show(result):
    """Returns the last line for people; the api has printed the table."""
    speed = result["images_per_second"]
    return f"{result['images']} images" + ("" if speed is None else f", {speed} images/s")


COMMAND = runner.Command(
    name="ssd-test",
    summary="ssd-test --run_dir=runs/a --data=tfrecords/voc07_test --metric=voc07\n"
    "Scores a run, or anyone's COCO results file (--detections), on records.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.evaluate:evaluate",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
