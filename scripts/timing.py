"""Timing shared by the benchmarks: alternating rounds, medians, ratios, one JSON line."""

import json
import os
import platform
import statistics
import time


def alternate(works, rounds, warm_up=2):
    """Times several functions in turn, so that the machine's moods meet all of them.

    Args:
      works: {name: function without arguments}.
      rounds: timed calls of each.
      warm_up: calls before.

    Returns:
      {name: [seconds of each round]}.
    """
    for _ in range(warm_up):
        for work in works.values():
            work()
    seconds = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def median(seconds):
    """Returns {name: median seconds}."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds, above, below):
    """Returns the median over the rounds of one function's time divided by another's."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def report(name, **figures):
    """Prints one JSON line: the benchmark, its figures rounded, the machine."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps({"benchmark": name, **rounded, "machine": machine}))
