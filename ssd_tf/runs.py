"""The run directory, which is a detector: config.json, label_map.json, step-N/, LATEST, BEST, logs.

A checkpoint is written in step-N.tmp, synced and renamed; LATEST is replaced last. state.json holds size and
SHA-256 of the other files, so a damaged checkpoint is noticed and the one before it used.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ssd_tf import config as configs
from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.structures import LabelMap

CONFIG = "config.json"
LABEL_MAP = "label_map.json"
LATEST = "LATEST"
BEST = "BEST"
STATE = "state.json"
WEIGHTS = "model.weights.h5"
AVERAGE = "average.weights.h5"
_FORMAT_VERSION = 1
_STEP = r"step-\d{8}"


@dataclass(frozen=True)
class Run:
    """A run directory: where it is, what was configured, and its classes."""

    path: Path
    config: configs.Config
    label_map: LabelMap


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
      path: its directory.
      state: content of state.json.
      skipped: names of newer checkpoints that are damaged, and of LATEST if that is.
      weights: name of the file whose weights it shows: the averaged ones where it has them, unless it was found
        as the best one and the others had scored better.
    """

    path: Path
    state: dict
    skipped: tuple[str, ...] = ()
    weights: str = WEIGHTS


def _checkpoint(directory, skipped=(), weights=None):
    """The Checkpoint in a directory that was verified; DataError where it has not the average that BEST names."""
    state = fileio.read_json(directory / STATE)
    if weights == AVERAGE and AVERAGE not in state["files"]:
        raise DataError(f"checkpoint {directory.name} has no {shown(weights)}: {shown(directory.parent)}")
    usual = AVERAGE if AVERAGE in state["files"] else WEIGHTS
    return Checkpoint(directory, state, tuple(skipped), weights or usual)


def start_run(path, config, label_map, num_examples):
    """Creates a run directory, or takes one up again.

    Args:
      path: the directory.
      config: resolved Config.
      label_map: LabelMap of the training records.
      num_examples: images in them.

    Returns:
      Run.

    Raises:
      ConfigError: the directory holds other things, or a run of another configuration; names the key.
      DataError: other records.
    """
    path = fileio.make_directory(path)
    if (path / CONFIG).exists():
        _check_same_run(path, config, label_map, num_examples)
    elif any(not _is_begun(entry, label_map) for entry in path.iterdir()):
        raise ConfigError(f"{shown(path)} is not empty and not a run; choose another --run_dir")
    fileio.write_json(path / LABEL_MAP, label_map.to_json())
    content = {"format_version": _FORMAT_VERSION, "examples": num_examples, "config": configs.to_dict(config)}
    fileio.write_json(path / CONFIG, content)
    return Run(path, config, label_map)


@contextlib.contextmanager
def new_run(path):
    """Holds a run directory that is written as a whole: it holds all of the run, or stays as it was before.

    Args:
      path: the directory; missing, or without content.

    Yields:
      an empty directory inside it to write the run to; what it then holds becomes the run's.

    Raises:
      ConfigError: there is something in it. EnvironmentFault: not writable.
    """
    path = Path(path)
    made = _missing_directories(path)
    own_lock = False
    try:
        _refuse_content(fileio.make_directory(path))
        own_lock = not (path / ".lock").exists()
        with fileio.directory_lock(path):
            _refuse_content(path)
            remove_leftovers(path)
            draft = fileio.temporary_name(path / "run")
            try:
                yield fileio.make_directory(draft)
                _publish(draft, path)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except BaseException as error:
        with contextlib.suppress(OSError):  # until somebody else has begun to use one
            if own_lock and not isinstance(error, fileio.InUse):
                (path / ".lock").unlink(missing_ok=True)
        for directory in made:
            with contextlib.suppress(OSError):  # the inner ones may never have come to be
                directory.rmdir()
        raise


def _missing_directories(path):
    """Those of `path` and its parents that do not exist, the innermost first."""
    with fileio.output_errors(path):  # a name may be too long to be asked for
        return [directory for directory in (path, *path.parents) if not directory.exists()]


def _refuse_content(path):
    if any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise ConfigError(f"{shown(path)} is not empty; choose another --run_dir")


def _publish(draft, path):
    """Moves what a draft holds into the run directory around it, LATEST last: without it, nothing is a run.

    All is moved or nothing is.
    """
    names = sorted((entry.name for entry in draft.iterdir()), key=lambda name: name == LATEST)
    try:
        with fileio.output_errors(path):
            for name in names:
                fileio.commit(draft / name, path / name)
    except BaseException:
        for name in reversed(names):
            if not (draft / name).exists():
                with contextlib.suppress(OSError):
                    os.replace(path / name, draft / name)
        raise


def write_import(path, config, label_map, source, write_files):
    """Writes a run that holds somebody else's weights, as its step 0.

    Args:
      path: an empty directory.
      config: resolved Config.
      label_map: LabelMap.
      source: what they were imported as; no training goes on in such a run.
      write_files: function (directory) that writes the weights.

    Raises:
      EnvironmentFault: disk full or not writable.
    """
    fileio.write_json(path / LABEL_MAP, label_map.to_json())
    content = {"format_version": _FORMAT_VERSION, "imported": source, "config": configs.to_dict(config)}
    fileio.write_json(path / CONFIG, content)
    state = {"imported": source, "config_sha256": config_digest(config)}
    save_checkpoint(path, 0, write_files, state, keep_last=1)


def _is_begun(entry, label_map):
    """Tells whether an interrupted start of the same run can have left this."""
    ours = entry.name == LABEL_MAP and fileio.read_json(entry) == label_map.to_json()
    return ours or entry.name.startswith(".")


def remove_leftovers(path):
    """Removes what a killed process left half-written; the caller holds the lock.

    Args:
      path: run directory.

    Returns:
      list of the names that were removed, sorted.
    """
    halves = re.compile(_STEP + r"\.tmp|\..+\.tmp-\d+-[0-9a-f]{8}")
    found = sorted(entry for entry in Path(path).iterdir() if halves.fullmatch(entry.name))
    for entry in found:
        with fileio.output_errors(entry):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return [entry.name for entry in found]


def config_digest(config):
    """Returns the SHA-256 of a Config's content; a checkpoint says by it what it was trained with."""
    return hashlib.sha256(json.dumps(configs.to_dict(config), sort_keys=True).encode()).hexdigest()


def _check_same_run(path, config, label_map, num_examples):
    old = _read(path)
    if not _steps(path):  # nothing that could contradict
        return
    content = fileio.read_json(path / CONFIG)
    if "imported" in content:
        raise ConfigError(
            f"{shown(path)} was imported from {shown(content['imported'])[:80]}: no training goes on in it; start "
            f"one from it with --init_from={shown(path)} and another --run_dir"
        )
    old.label_map.check_same(label_map, "run has", "shards have")  # says more than another number of classes
    configs.check_resume(old.config, config)
    before = content.get("examples")
    if before != num_examples:
        raise DataError(f"cannot resume: --train has {num_examples} images, the run's had {before}: {shown(path)}")


def open_run(path):
    """Opens a run directory that holds at least one checkpoint.

    Raises:
      DataError: missing, not a run, or no checkpoint yet.
    """
    path = Path(path)
    if not os.path.isdir(path):
        raise DataError(f"no such run directory: {shown(path)}")
    if not (path / LATEST).exists():
        raise DataError(f"{shown(path)} is not a finished run (no LATEST)")
    return _read(path)


def _read(path):
    value = fileio.read_json(path / CONFIG)
    if not isinstance(value, dict) or value.get("format_version") != _FORMAT_VERSION:
        raise DataError(f"{shown(path / CONFIG)}: not a run of this version of ssd_tf")
    try:
        config = configs.from_dict(value.get("config"), path / CONFIG)
    except configs.ConfigError as error:  # a damaged file, not a mistyped option
        raise DataError(str(error)) from None
    return Run(path, config, LabelMap.from_json(fileio.read_json(path / LABEL_MAP), path / LABEL_MAP))


def find_checkpoint(path, which="latest"):
    """Finds a checkpoint and verifies it.

    Args:
      path: run directory.
      which: "latest", "best" or "step-N".

    Returns:
      Checkpoint, or None if `which` is "latest" and there is none. A damaged latest one falls back to the newest
      sound one before it.

    Raises:
      DataError: no such checkpoint, or none is sound.
    """
    path = Path(path)
    if which == "latest":
        return _latest(path)
    best = read_best(path)
    if which == "best":
        name = best["checkpoint"] if best else None
    else:
        name = step_name(which.removeprefix("step-"))
    if name is None or not (path / name).is_dir():
        there = ", ".join(entry.name for entry in _steps(path)) or "none"
        raise DataError(f"{shown(path)} has no checkpoint {which} (there are: {there})")
    fault = _fault(path / name)
    if fault:
        raise DataError(f"checkpoint {name} is damaged: {fault}: {shown(path)}")
    return _checkpoint(path / name, weights=best["weights"] if which == "best" else None)


def _latest(path):
    pointed = latest_name(path)
    steps = [entry for entry in _steps(path) if pointed is None or entry.name <= pointed]
    skipped = []
    if pointed is None and (path / LATEST).exists():
        skipped.append(LATEST)
    elif pointed is not None and not (path / pointed).is_dir():
        skipped.append(pointed)
    for entry in reversed(steps):
        if not _fault(entry):
            return _checkpoint(entry, skipped)
        skipped.append(entry.name)
    if skipped:
        raise DataError(f"every checkpoint is damaged ({', '.join(skipped)}): {shown(path)}")
    return None


def latest_name(path):
    """Returns the name of the checkpoint that LATEST points at, or None where it is missing or damaged."""
    try:
        text = fileio.read_bytes(Path(path) / LATEST, 1024).decode("ascii", "replace").strip()
    except DataError:
        text = ""
    return text if re.fullmatch(_STEP, text) else None


def _steps(path):
    return sorted(entry for entry in path.iterdir() if re.fullmatch(_STEP, entry.name) and entry.is_dir())


def _fault(directory):
    """What is wrong with a checkpoint, or ""."""
    try:
        state = fileio.read_json(directory / STATE)
        if type(state["step"]) is not int or step_name(state["step"]) != directory.name:
            return f"{STATE} is of another step"
        for name, (size, digest) in state["files"].items():
            file = fileio.safe_join(directory, name)
            if file.stat().st_size != size or fileio.sha256_file(file) != digest:
                return f"{name} differs from what was written"
    except (DataError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        return str(error).splitlines()[0]
    return ""


def step_name(step):
    """Returns the directory name of a step: "step-00012000"."""
    try:
        return f"step-{int(step):08d}"
    except ValueError:
        raise DataError(f"checkpoint is latest, best or step-N, not {step!r}") from None


def save_checkpoint(path, step, write_files, state, keep_last):
    """Writes one checkpoint completely, then points LATEST at it and removes old ones.

    Args:
      path: run directory.
      step: training step.
      write_files: function (directory) that writes the files.
      state: dict for state.json; "step" and "files" are added.
      keep_last: checkpoints to keep, besides the best.

    Raises:
      EnvironmentFault: disk full or not writable; LATEST still points at a complete checkpoint.
    """
    final = Path(path) / step_name(step)
    temporary = final.with_name(final.name + ".tmp")
    with fileio.output_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_files(temporary)
        files = {}
        for file in sorted(temporary.iterdir()):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            files[file.name] = [file.stat().st_size, fileio.sha256_file(file)]
        fileio.write_json(temporary / STATE, {**state, "step": step, "files": files})
        shutil.rmtree(final, ignore_errors=True)  # the same step, saved before an interruption
        fileio.commit(temporary, final)
    with fileio.atomic_write(Path(path) / LATEST, "w") as file:
        file.write(final.name + "\n")
    _prune(Path(path), keep_last)


def mark_best(path, step, metric, value, weights=WEIGHTS):
    """Makes the checkpoint of `step` the best.

    Args:
      path: run directory.
      step: training step.
      metric: what it was scored by.
      value: its score.
      weights: which of its files had that score.

    Returns:
      what `read_best` will.
    """
    best = {"checkpoint": step_name(step), "metric": metric, "value": value, "weights": weights}
    fileio.write_json(Path(path) / BEST, best)
    return best


def read_best(path):
    """Returns {"checkpoint", "metric", "value", "weights"} of the best checkpoint, or None."""
    best = fileio.read_json(Path(path) / BEST) if (Path(path) / BEST).exists() else None
    if best is not None and not _is_best(best):
        raise DataError(f"not a pointer to a checkpoint: {shown(Path(path) / BEST)}")
    return best and {"weights": WEIGHTS, **best}


def _is_best(best):
    if not isinstance(best, dict) or not all(isinstance(best.get(key), str) for key in ("checkpoint", "metric")):
        return False
    if best.get("weights", WEIGHTS) not in (WEIGHTS, AVERAGE):
        return False
    value = best.get("value")
    return bool(re.fullmatch(_STEP, best["checkpoint"])) and type(value) in (int, float) and 0 <= value <= 1


def _prune(path, keep_last):
    latest, best = latest_name(path), read_best(path)
    # A newer one was damaged when the training went on from before it: it must not count as kept.
    for entry in [entry for entry in _steps(path) if entry.name <= latest][:-keep_last]:
        if best is None or entry.name != best["checkpoint"]:
            shutil.rmtree(entry, ignore_errors=True)
