"""Every reader against a few hundred mutated files; scripts/fuzz.py runs many more."""

import zlib

import fuzzing
import numpy as np
import pytest

from ssd_tf.errors import DataError

CASES = 150


def cases(name, count=CASES, seed=0):
    parser = fuzzing.PARSERS[name]
    seeds = parser.seeds()
    for number in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        yield fuzzing.mutate(rng, parser, seeds[number % len(seeds)])


@pytest.mark.parametrize("name", fuzzing.PARSERS)
def test_the_seeds_are_valid(name, tmp_path):
    parser = fuzzing.PARSERS[name]
    outcomes = [fuzzing.try_case(parser, tmp_path, seed) for seed in parser.seeds()]
    assert [(outcome.kind, outcome.text) for outcome in outcomes] == [("value", "")] * len(parser.seeds())


@pytest.mark.parametrize("name", fuzzing.PARSERS)
def test_a_value_or_an_error_that_names_the_file(name, tmp_path):
    parser, kinds = fuzzing.PARSERS[name], set()
    for seed in parser.seeds():
        fuzzing.try_case(parser, tmp_path, seed)  # what is loaded at first use is not the case's
    for number, data in enumerate(cases(name)):
        outcome = fuzzing.try_case(parser, tmp_path, data)
        # Time is judged by the long run: a shared machine has bad seconds of its own.
        assert set(outcome.faults) <= {"slow"}, (number, outcome.text)
        kinds.add(outcome.kind)
    assert "value" in kinds  # some mutations leave a file valid: the readers are reached


def test_mutations_follow_from_the_seed():
    for name in ("voc", "coco", "example", "image"):
        first, again, other = (list(cases(name, 20, seed)) for seed in (1, 1, 2))
        assert first == again != other
        assert sum(data != seed for data in first for seed in fuzzing.PARSERS[name].seeds()) >= 20


def test_try_case_tells_good_outcomes_from_bad(tmp_path, monkeypatch):
    def judge(error=None):
        def read(folder, data):
            if error:
                raise error

        outcome = fuzzing.try_case(fuzzing.Parser(list, read), tmp_path, b"")
        return outcome.kind, outcome.faults

    assert judge() == ("value", [])
    assert judge(DataError("bad: fuzzed.xml")) == ("SsdError", [])
    assert judge(DataError("bad")) == ("other", ["other"])
    assert judge(DataError("bad: fuzzed.xml\nmore")) == ("other", ["other"])
    assert judge(DataError("\x1b[2J fuzzed.xml")) == ("other", ["other"])
    assert judge(KeyError("fuzzed")) == ("other", ["other"])
    monkeypatch.setattr(fuzzing, "_peak_bytes", iter([1 << 30, 2 << 30]).__next__)
    assert judge() == ("value", ["large"])
    monkeypatch.setattr(fuzzing, "_peak_bytes", lambda: 0)
    monkeypatch.setattr(fuzzing.time, "perf_counter", iter([3.0, 4.5]).__next__)
    assert judge() == ("value", ["slow"])
