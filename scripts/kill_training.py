"""Kills a training again and again, and shows that it ends as if nothing had happened.

Runs ssd-train once to its end. Then runs the same command in a second folder, kills it with SIGKILL at moments
drawn from a seed (while it starts, between steps, while it writes a checkpoint), runs it again after each kill,
and compares weights and optimizer of the two, array by array. One JSON line says what was found; the exit code is
1 where they differ.

python scripts/kill_training.py --train=tfrecords/shapes --set=train.steps=80 --set=train.checkpoint_steps=10
    [--config=NAME] [--set=KEY=VALUE ...] [--deterministic] [--kills=10] [--seed=0] [--folder=DIR]
"""

import argparse
import collections
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from ssd_tf import runs

_PROGRAM = "from ssd_tf.cli.train import main; main()"
_STEP = re.compile(r"\] step (\d+)/(\d+)")
_SAVE_SECONDS = 0.05  # about as long as a small network's checkpoint takes


def main():
    """Trains twice, once undisturbed, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="records")
    parser.add_argument("--config", default=None)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="where the two runs go; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        begun = time.perf_counter()
        whole = _Session(options, folder / "whole")
        whole.read_until(1)
        start_seconds = time.perf_counter() - begun
        whole.finish()
        plan = _draw_plan(options.kills, whole.total, random.Random(options.seed))
        seen = _kill(options, folder / "killed", plan, start_seconds)
        last = _Session(options, folder / "killed")
        last.finish()
        digests = [_digests(folder / name) for name in ("whole", "killed")]
    equal = digests[0] == digests[1]
    lines = last.lines + seen.pop("lines")
    print(
        json.dumps(
            {
                "kills": sum(seen["killed"].values()),
                "killed": seen["killed"],
                "half_written_checkpoints": sum("which an interrupted write" in line for line in lines),
                "fallbacks": sum(" incomplete, using " in line for line in lines),
                "resumed_from": seen["resumed_from"],
                "steps": whole.total,
                "deterministic": options.deterministic,
                "equal": equal,
                **digests[0],
            }
        )
    )
    sys.exit(not equal)


class _Session:
    """One run of the command, its output read line by line."""

    def __init__(self, options, run_dir):
        flags = [f"--train={options.train}", f"--run_dir={run_dir}", *(f"--set={text}" for text in options.set)]
        flags += ["--set=train.log_steps=1"]  # every step is told
        flags += [f"--config={options.config}"] if options.config else []
        flags += ["--deterministic"] if options.deterministic else []
        self.run_dir, self.lines, self.step, self.total = run_dir, [], 0, 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def read_until(self, step):
        """Reads on until a step is told; returns whether it came."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := _STEP.search(line):
                self.step, self.total = map(int, found.groups())
                if self.step >= step:
                    return True
        return False

    def wait_for_save(self):
        """Waits until a checkpoint is being written, or the process ends."""
        while self.process.poll() is None and not any(self.run_dir.glob("step-*.tmp")):
            time.sleep(0.0005)

    def kill(self):
        """Returns whether the process was still there to be killed."""
        self.process.kill()
        self.lines += self.process.communicate()[0].splitlines()
        return self.process.returncode == -signal.SIGKILL

    def finish(self):
        """Reads to the end, which must be a good one."""
        self.read_until(float("inf"))
        if self.process.wait():
            sys.exit("\n".join(self.lines))


def _draw_plan(kills, steps, rng):
    """[(kind, step, fraction)] by growing steps, so that every session comes further than the one before."""
    places = sorted(rng.randrange(1, steps) for _ in range(kills))
    return [(rng.choice(("start", "step", "save", "save")), place, rng.random()) for place in places]


def _kill(options, run_dir, plan, start_seconds):
    killed, resumed_from, lines = collections.Counter(), [], []
    for kind, step, fraction in plan:
        begun = time.perf_counter()
        session = _Session(options, run_dir)
        if kind == "start":
            time.sleep(fraction * start_seconds)
        else:
            session.read_until(step)
            session.wait_for_save() if kind == "save" else None
            time.sleep(fraction * _SAVE_SECONDS)
        killed[kind] += session.kill()
        lines += session.lines
        latest = runs.latest_name(run_dir) if run_dir.exists() else None
        resumed_from.append(int(latest.removeprefix("step-")) if latest else 0)
        print(f"killed ({kind}) after {time.perf_counter() - begun:.1f} s", session.step, latest, file=sys.stderr)
    return {"killed": killed, "resumed_from": resumed_from, "lines": lines}


def _digests(run_dir):
    """SHA-256 of the arrays of the last checkpoint, names and types included."""
    found = runs.find_checkpoint(run_dir)
    weights = {}
    with h5py.File(found.path / runs.WEIGHTS) as file:
        file.visititems(
            lambda name, item: weights.update({name: item[()]} if isinstance(item, h5py.Dataset) else {})
        )
    with np.load(found.path / "optimizer.npz", allow_pickle=False) as values:
        optimizer = {name: values[name] for name in values.files}
    return {
        "weights_sha256": _digest(weights),
        "optimizer_sha256": _digest(optimizer),
        "step": found.state["step"],
    }


def _digest(arrays):
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
