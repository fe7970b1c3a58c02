"""Gives mutated files to every reader; only a value or an error that names the file may come of it.

python scripts/fuzz.py --cases=1000 --seed=0 --keep=FOLDER [--parsers=voc,image]
"""

import argparse
import collections
import json
import resource
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
import fuzzing

_ADDRESS_SPACE = 16 << 30  # what asks for more than this gets a MemoryError instead of the machine


def main():
    """Prints one JSON line: how often each outcome came, by parser; exits 1 if a rule was broken."""
    options = _parse_options()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parsers:
            place = Path(folder, name)
            place.mkdir()
            counts[name] = _fuzz(name, place, options)
    print(json.dumps({"seed": options.seed, "cases": options.cases, "outcomes": counts}))
    return int(any(set(found) - {"value", "SsdError"} for found in counts.values()))


def _parse_options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="files for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that broke a rule")
    parser.add_argument("--parsers", type=lambda text: text.split(","), default=list(fuzzing.PARSERS))
    return parser.parse_args()


def _fuzz(name, folder, options):
    parser, counts = fuzzing.PARSERS[name], collections.Counter()
    seeds = parser.seeds()
    for seed in seeds:
        fuzzing.try_case(parser, folder, seed)  # what is loaded at first use is not the case's
    for number in range(options.cases):
        rng = np.random.default_rng([options.seed, zlib.crc32(name.encode()), number])
        data = fuzzing.mutate(rng, parser, seeds[number % len(seeds)])
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name}-last").write_bytes(data)  # for those that end the process
        outcome = fuzzing.try_case(parser, folder, data)
        counts[outcome.kind] += 1
        counts.update(fault for fault in outcome.faults if fault != outcome.kind)
        if outcome.faults and options.keep:
            stem = f"{name}-{options.seed}-{number}-{'-'.join(outcome.faults)}"
            (options.keep / f"{stem}.bin").write_bytes(data)
            text = f"{outcome.seconds:.2f} s, {outcome.grown} bytes\n{outcome.text}\n"
            (options.keep / f"{stem}.txt").write_text(text, errors="backslashreplace")
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
