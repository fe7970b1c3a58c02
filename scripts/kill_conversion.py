"""Kills the converter at random moments, resumes it with another number of workers, and compares the bytes.

python scripts/kill_conversion.py [--kills=10] [--seed=0] [--num_images=6000] [--images=FOLDER]
"""

import argparse
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark_convert import find_images, make_set

from ssd_tf.fileio import sha256_file

_COMMAND = [sys.executable, "-c", "from ssd_tf.cli.convert import main; main()", "--format=coco"]


def main():
    """Prints how many of the resumed conversions equal the uninterrupted one, and when each was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_images", type=int, default=6000)
    parser.add_argument("--images", default=None)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        annotations = make_set(work / "set", find_images(options.images, work), options.num_images)
        begun = time.perf_counter()
        run(annotations, work / "whole" / "records", workers=2)
        duration = time.perf_counter() - begun
        whole = digests(work / "whole" / "records")
        rows, workers = [], itertools.cycle([1, 2, 3])
        for _ in range(options.kills):
            output = work / "records"
            shutil.rmtree(output, ignore_errors=True)
            kept = kill(annotations, output, next(workers), rng.uniform(0.05, 0.95) * duration)
            run(annotations, output, next(workers), "--resume")
            rows.append({**kept, "equal": digests(output) == whole})
    equal = sum(row["equal"] for row in rows)
    killed = sum(row["killed"] for row in rows)
    print(json.dumps({"kills": killed, "equal": equal, "shards": len(whole) - 3, "runs": rows}))


def command(annotations, output, workers):
    """The command line of a conversion."""
    return [*_COMMAND, f"--input={annotations}", f"--output={output}", f"--workers={workers}"]


def run(annotations, output, workers, *flags):
    """Converts to the end."""
    subprocess.run([*command(annotations, output, workers), *flags], check=True, capture_output=True)


def kill(annotations, output, workers, seconds):
    """Converts for that many seconds, then SIGKILLs the command; tells what was complete by then."""
    process = subprocess.Popen(
        command(annotations, output, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    complete = len(list((output / ".incoming").glob("*.json")))
    return {"killed": process.returncode == -9, "seconds": round(seconds, 2), "complete_shards": complete}


def digests(folder):
    """{name: SHA-256} of the visible files in a folder."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}


if __name__ == "__main__":
    main()
