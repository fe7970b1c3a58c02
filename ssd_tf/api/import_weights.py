"""Other people's weights to a run directory, or to a weights file of a backbone."""

import os
from pathlib import Path

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build
from ssd_tf.api.sources import SUFFIX, check_options
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.models import registry
from ssd_tf.pretrained import classes, download, places, sources, tf_checkpoint
from ssd_tf.structures import LabelMap

_IMAGE_SHAPE = (224, 224, 3)  # weights of convolutions do not depend on it
_HEADER = 4096  # bytes that HDF5 takes for an array beside its numbers; half of it is common


class _WrongLabels(DataError):
    """The user's names do not fit the file, which may well be the right one."""


def import_weights(
    source, weights=None, run_dir=None, output=None, labels=None, base_url=None, write_line=None, progress=None
):
    """Imports a detector or a backbone that somebody else has trained.

    Args:
      source: what it is: a name that `ssd-import --list` gives.
      weights: its file or folder; None: the known file is downloaded and kept in a cache.
      run_dir: directory to make of a detector; test, demo and training (as init_from) take it.
      output: FILE.weights.h5 to make of a backbone; model.weights takes it.
      labels: file of class names where they are not known, see pretrained.classes.read_labels.
      base_url: where to download from in place of the owner's site: BASE_URL/FILENAME.
      write_line: function (text) that is told what is downloaded and which names are assumed, or None.
      progress: function (bytes that are there, bytes in all) for downloads, or None.

    Returns:
      dict: source, weights (the file), parameters, tensors (arrays read from the file), and run_dir, classes and
      backbone of a detector, or output and backbone of a backbone.

    Raises:
      ConfigError: wrong options. DataError: the file does not fit or cannot be read, or a download was cut or gave
      another file; nothing is left behind. EnvironmentFault: not writable, nothing to download from.
    """
    entry = check_options(source, weights, run_dir, output, labels, base_url)
    found, is_detector = sources.SOURCES[source], entry.kind == "detector"
    fetched = () if weights else entry.downloads
    if is_detector:
        names = classes.read_labels(labels) if labels else None
        with runs.new_run(run_dir) as draft:
            path = _find_file(weights) or _download(entry, base_url, write_line, progress)
            with download.forgetting(fetched, path, _WrongLabels):
                result = _import_detector(found, path, names, draft)
            if write_line and weights and not names:  # a file that was fetched is known
                write_line(classes.describe_assumption(found))
    else:
        fileio.claim_file(output, (weights,))
        path = _find_file(weights) or _download(entry, base_url, write_line, progress)
        with download.forgetting(fetched, path, _WrongLabels):
            result = _import_backbone(found, path, Path(output))
    where = {"run_dir": str(run_dir)} if is_detector else {"output": str(output)}
    return {"source": source, "weights": str(path), **where, **result}


def _find_file(weights):
    """The file or folder that the user names, which exists."""
    if weights and not os.path.exists(weights) and not tf_checkpoint.is_checkpoint(weights):
        raise DataError(f"no such file or folder: {shown(weights)}")
    return weights


def _download(entry, base_url, write_line, progress):
    folder = download.cache_directory() / entry.name
    if write_line:
        write_line(f"{entry.name}: {base_url or entry.downloads[0].url} (kept in {shown(folder)})")
    return download.fetch_all(entry.downloads, folder, base_url, progress)


def _import_detector(source, path, names, draft):
    """Builds and fills the network of a file, then writes the run."""

    def make(shapes):
        columns = source.count_columns(shapes)
        try:
            chosen = classes.choose_classes(source, columns, names)
        except DataError as error:
            raise (_WrongLabels if names else DataError)(str(error)) from None
        try:
            config = _make_config(source, shapes, chosen)
            model = build.build(config, load_weights=False).model
        except ConfigError as error:  # of what the file says, not of what the user typed
            raise DataError(f"no network fits the file: {error}") from None
        return model, source.places(shapes, chosen), (config, chosen)

    model, tensors, (config, chosen) = _fill(source, path, make)
    label_map = LabelMap(chosen.names, chosen.source_ids)
    _check_space(draft.parent, model)

    def write(directory):
        model.save_weights(directory / runs.WEIGHTS)

    runs.write_import(draft, config, label_map, source.about.name, write)
    counts = {"parameters": model.count_params(), "tensors": tensors}
    return {"backbone": config.model.backbone, "classes": len(label_map), **counts}


def _make_config(source, shapes, chosen):
    counts = [f"model.num_classes={len(chosen.names)}"]
    if chosen.background:
        counts.append(f"model.background_columns={len(chosen.background)}")
    return configs.load_config(None, [*source.settings(shapes), *counts, "model.weights=none"])


def _import_backbone(source, path, output):
    def make(shapes):
        model = registry.get_backbone(source.about.backbone).build(_IMAGE_SHAPE, None)
        return model, source.places(shapes), None

    model, tensors, _ = _fill(source, path, make)
    _check_space(output.parent, model)
    draft = fileio.temporary_name(output)
    draft = draft.with_name(draft.name + SUFFIX)
    try:
        with fileio.output_errors(output):
            model.save_weights(draft)
            fileio.commit(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return {"backbone": source.about.backbone, "parameters": model.count_params(), "tensors": tensors}


def _check_space(directory, model):
    """Raises EnvironmentFault unless the weights find room: HDF5 crashes the process when the disk is full."""
    fileio.check_free_space(directory, 4 * model.count_params() + _HEADER * len(model.weights))


def _fill(source, path, make):
    """Fills what make({name: shape}) builds, (model, places, more); returns the model, arrays read, and more."""
    try:
        with source.open(path) as (shapes, read):
            used = {name: shape for name, shape in shapes.items() if not source.is_unused(name)}
            model, found, more = make(used)
            places.fill(model, found, used, read)
    except DataError as error:
        kind = _WrongLabels if isinstance(error, _WrongLabels) else DataError
        raise kind(f"{error}: {shown(path)}") from None
    return model, len(used), more
