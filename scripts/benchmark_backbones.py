"""Every registered backbone as SSD at 300 px with 20 classes: size, arithmetic, anchors, milliseconds here.

python scripts/benchmark_backbones.py [--rounds=7] [--readme=README.md]

The networks run in turn, batch 1, float32; --readme replaces the table of that file.
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
import timing

from ssd_tf import fileio
from ssd_tf.api import backbones
from ssd_tf.models import registry

BEGIN, END = "<!-- backbones: scripts/benchmark_backbones.py -->", "<!-- end of backbones -->"
_COLUMNS = ("backbone", "input", "parameters", "multiply-adds", "maps", "anchors", "ms an image")


def main():
    """Prints the table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--readme", help="file whose table is replaced")
    options = parser.parse_args()
    measured = {name: backbones.measure(backbones.standard_config(name)) for name in registry.list_backbones()}
    works = {name: runner(built.model) for name, (built, _) in measured.items()}
    seconds = timing.alternate(works, options.rounds)
    medians = timing.median(seconds)
    ordered = sorted(measured, key=lambda name: measured[name][1]["multiply_adds"])
    table = markdown([row(measured[name][1], medians[name]) for name in ordered])
    print(table)
    if options.readme:
        replace_table(Path(options.readme), table)
    timing.report("backbones", **{name: value * 1e3 for name, value in medians.items()})


def runner(model):
    """A function that runs a network once on one image."""
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:]), np.uint8))
    call = tf.function(lambda batch: model(batch, training=False))
    return lambda: call(image)["class_logits"].numpy()


def row(figures, seconds):
    """The cells of one backbone."""
    return (
        f"`{figures['backbone']}`",
        figures["input"],
        f"{figures['parameters'] / 1e6:.1f} M",
        f"{figures['multiply_adds'] / 1e9:.2f} G",
        figures["maps"],
        f"{figures['anchors']:,}",
        f"{seconds * 1e3:.0f}",
    )


def markdown(rows):
    """A table of rows of texts."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replace_table(path, table):
    """Puts the table between the two marks of a file."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    with fileio.atomic_write(path) as file:
        file.write(f"{before}{BEGIN}\n{table}\n{END}{after}".encode())


if __name__ == "__main__":
    main()
