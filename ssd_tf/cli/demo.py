"""ssd-demo: pictures to pictures with boxes."""

import math
import sys

from absl import flags

from ssd_tf.cli import runner


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("run_dir", None, "Run directory.", **text)
    flags.DEFINE_string("input", None, "Image, or folder of images.", **text)
    flags.DEFINE_string("output", None, "Picture (folder for a folder); by default INPUT_detected.", **text)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or step-N.", **text)
    flags.DEFINE_float("score_threshold", 0.5, "Draw detections from this score on.", 0.0, 1.0, **text)
    runner.define_overrides(values, "the run's postprocess section")
    runner.define_plugin(values)


def prepare(values):
    """Turns flags into the arguments of api.predict.demo."""
    runner.required(values, "run_dir", "input")
    runner.check_checkpoint(values)
    names = ("run_dir", "input", "output", "checkpoint", "score_threshold")
    return {
        **{name: values[name].value for name in names},
        "overrides": values.set,
        "write_line": print,
        "progress": runner.progress_printer("images"),
    }


def show(result):
    """Returns one line for each detection, and where the pictures are."""
    lines = list(result["skipped"])
    for row in result["results"]:
        lines.append(f"{row['file']}: {len(row['detections'])} detections, drawn in {row['output']}")
        for name, score, *box in row["detections"]:
            lines.append(f"  {name} {score:.2f} [{' '.join(f'{value:.0f}' for value in box)}]")
        if row["best_below"]:
            name, score, *_ = row["best_below"]
            score = math.floor(score * 100) / 100  # rounded up it could seem to reach the threshold
            lines.append(f"  no detection above {result['score_threshold']:g}; the best is {name} {score:.2f}")
    return "\n".join(lines)


COMMAND = runner.Command(
    name="ssd-demo",
    summary="ssd-demo --run_dir=runs/a --input=street.jpg --output=out.jpg\n"
    "Detects objects in a picture or a folder of pictures and draws them.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.predict:demo",
    show=show,
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
