"""Training step and inference of SSD300-VGG16 and SSDLite-MobileNetV2 on an accelerator, beside torchvision.

PYTHONPATH=. python scripts/benchmark_train.py [--models=NAME,...] [--batches=1,8] [--precisions=float32,tf32]

Needs JAX, Keras, NumPy, h5py and this source tree: no TensorFlow. Every cell (model, batch, precision, side) is a
process of its own, so that its peak memory is its own and running out of memory ends nothing else. One JSON line a
measurement, then a table. Weights are random; batches lie on the device already.

"train" is the step that Keras' fit compiles for JAX: losses, mining, gradients, clipping, update. The targets come
with the batch, as from the input pipeline; torchvision matches anchors inside its step. "network" ends at logits
and deltas; "infer" goes on to detections, with the suppression of inference.nms inside the compiled function: the
worst case, as an untrained network's scores are all over the threshold. Both sides have the same limits.
torchvision's ssd300_vgg16 is the same network, its ssdlite320_mobilenet_v3_large the nearest that it has to ours.
Both have image sizes of their own: they stay out where --image_size is given.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import timing

# Recipes: torchvision's networks and their image sizes.
MODELS = {
    "ssd300_vgg16_voc": ("ssd300_vgg16", 300),
    "ssdlite300_mobilenet_v2": ("ssdlite320_mobilenet_v3_large", 320),
}
PRECISIONS = ("float32", "tf32", "bfloat16")
SIDES = ("ours", "torchvision")
WORKS = ("infer", "network", "train")
_CELL = Path(__file__).with_name("benchmark_train_cell.py")
_COLUMNS = ("model", "batch", "precision", "work", "ours ms", "spread", "MiB", "torchvision ms", "MiB", "ratio")
_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "OutOfMemoryError", "out of memory", "MemoryError")
_KILLED = -9


def main():
    """Prints one JSON line a measurement, and a table."""
    options = read_options()
    places = {side: probe(side) for side in options.sides if side != "torchvision" or not options.image_size}
    for side, place in places.items():
        print(f"{side}: {place.get('error') or place['device']}")
    there = {side: place for side, place in places.items() if "error" not in place}
    has_accelerator = any(place["accelerator"] for place in there.values())
    if not has_accelerator:
        print("no accelerator here: small defaults, on the CPU; memory is not known")
    rows = []
    for cell in make_cells(options, list(there), has_accelerator):
        for row in measure(cell):
            timing.report("train", **row)
            rows.append(row)
    print(format_table(rows))


def read_options(arguments=None):
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_some_of(MODELS), default=list(MODELS))
    parser.add_argument("--batches", type=_counts, help="default 1,8,32,64; without an accelerator 1,8")
    parser.add_argument("--precisions", type=_some_of(PRECISIONS), help="default all; on a CPU without tf32")
    parser.add_argument("--works", type=_some_of(WORKS), default=list(WORKS))
    parser.add_argument("--sides", type=_some_of(SIDES), default=list(SIDES))
    parser.add_argument("--image_size", type=int, default=0, help="side of the images; default the recipe's")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=0, help="timed rounds; default 10, on a CPU 3")
    parser.add_argument("--steps", type=int, default=0, help="calls a round, one after the other; 10, on a CPU 1")
    return parser.parse_args(arguments)


def _some_of(choices):
    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return names

    return parse


def _counts(text):
    return [int(part) for part in text.split(",")]


def make_cells(options, sides, has_accelerator):
    """The cells to measure, smallest batch first.

    Args:
      options: of read_options.
      sides: those of SIDES that can run.
      has_accelerator: whether the defaults are an accelerator's.

    Returns:
      list of dict: what benchmark_train_cell.py takes.
    """
    batches = options.batches or ([1, 8, 32, 64] if has_accelerator else [1, 8])
    precisions = options.precisions or [name for name in PRECISIONS if has_accelerator or name != "tf32"]
    common = {
        "classes": options.classes,
        "rounds": options.rounds or (10 if has_accelerator else 3),
        "steps": options.steps or (10 if has_accelerator else 1),
        "works": [work for work in WORKS if work in options.works],  # memory grows in this order
    }
    cells = []
    for model, batch, precision, side in itertools.product(options.models, batches, precisions, sides):
        network, size = (model, options.image_size) if side == "ours" else MODELS[model]
        cell = {"side": side, "model": model, "network": network, "image_size": size}
        cells.append({**cell, "batch": batch, "precision": precision, **common})
    return cells


def probe(side):
    """Returns {"device", "accelerator"} of one side, or {"error"}: why it cannot run."""
    lines, fault = _run({"side": side, "probe": True})
    return {"error": fault} if fault else lines[0]


def measure(cell):
    """Runs a cell in a process of its own.

    Returns:
      list of dict, one for each work: the cell's names and its figures, or "error".
    """
    names = {key: cell[key] for key in ("model", "batch", "precision", "side")}
    figures, fault = _run(cell)
    rows = [{**names, **row} for row in figures]
    missing = [work for work in cell["works"] if work not in {row["work"] for row in rows}]
    return rows + [{**names, "work": work, "error": fault or "no figures"} for work in missing]


def _run(cell):
    """The rows that the process printed, and in one line what ended it, or None."""
    done = subprocess.run([sys.executable, str(_CELL), json.dumps(cell)], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, describe_fault(done.returncode, done.stderr) if done.returncode else None


def describe_fault(returncode, errors):
    """One line about a process that failed, from the text of its errors."""
    if returncode == _KILLED or any(words in errors for words in _MEMORY_WORDS):
        return "out of memory"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:160] if lines else f"exit code {returncode}"


def format_table(rows):
    """Returns the measurements as a table: one line for each work of a model, batch and precision.

    Args:
      rows: list of dict with model, batch, precision, work, side and either ms, spread, peak_mib or error.

    Returns:
      text; ratio is torchvision's time divided by ours.
    """
    by_place = {}
    for row in rows:
        place = tuple(row[key] for key in ("model", "batch", "precision", "work"))
        by_place.setdefault(place, {})[row["side"]] = row
    lines = [_COLUMNS, *(_line(place, sides) for place, sides in by_place.items())]
    lines = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _line(place, sides):
    ours, theirs = sides.get("ours", {}), sides.get("torchvision", {})
    ratio = f"{theirs['ms'] / ours['ms']:.2f}" if "ms" in ours and "ms" in theirs else ""
    spread = f"{ours['spread']:.0%}" if "spread" in ours else ""
    return (*place, _time(ours), spread, _memory(ours), _time(theirs), _memory(theirs), ratio)


def _time(row):
    return f"{row['ms']:.4g}" if "ms" in row else row.get("error", "")[:40]


def _memory(row):
    return "" if row.get("peak_mib") is None else f"{row['peak_mib']:,.0f}"


if __name__ == "__main__":
    main()
