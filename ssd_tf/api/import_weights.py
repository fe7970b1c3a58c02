"""Other people's weights to a run directory, or to a weights file of a backbone."""

from pathlib import Path

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.models import registry
from ssd_tf.pretrained import classes, download, places, sources
from ssd_tf.pretrained.source import DetectorSource
from ssd_tf.structures import LabelMap

_SUFFIX = ".weights.h5"  # by which Keras knows the format
_IMAGE_SHAPE = (224, 224, 3)  # weights of convolutions do not depend on it


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
      write_line: function (text) that is told what is downloaded, or None.
      progress: function (bytes that are there, bytes in all) for downloads, or None.

    Returns:
      dict: source, weights (the file), parameters, tensors (arrays read from the file), and run_dir, classes and
      backbone of a detector, or output and backbone of a backbone.

    Raises:
      ConfigError: wrong options. DataError: the file does not fit or cannot be read, or a download was cut or gave
      another file; nothing is left behind. EnvironmentFault: not writable, nothing to download from.
    """
    found = sources.get_source(source)
    is_detector = isinstance(found, DetectorSource)
    _check_options(found, is_detector, weights, run_dir, output, labels, base_url)
    if is_detector:
        names = classes.read_labels(labels) if labels else None
        with runs.new_run(run_dir) as draft:
            path = weights or _download(found, base_url, write_line, progress)
            result = _import_detector(found, path, names, draft)
    else:
        fileio.claim_file(output, (weights,))
        path = weights or _download(found, base_url, write_line, progress)
        result = _import_backbone(found, path, Path(output))
    where = {"run_dir": str(run_dir)} if is_detector else {"output": str(output)}
    return {"source": found.name, "weights": str(path), **where, **result}


def _check_options(source, is_detector, weights, run_dir, output, labels, base_url):
    wanted, other = ("run_dir", "output") if is_detector else ("output", "run_dir")
    given = {"run_dir": run_dir, "output": output}
    if given[other] or not given[wanted]:
        kind = "detector: give --run_dir" if is_detector else f"backbone: give --output=FILE{_SUFFIX}"
        raise ConfigError(f"{source.name} is a {kind}" + f", not --{other}" * bool(given[other]))
    if output and not str(output).endswith(_SUFFIX):
        raise ConfigError(f"--output: expected a name that ends in {_SUFFIX}, got {shown(output)}")
    if labels and not is_detector:
        raise ConfigError(f"--labels: {source.name} is a backbone, it has no classes")
    if base_url and weights:
        raise ConfigError("--base_url is where to download from: give it without --weights")
    download.check_base_url(base_url)
    if not weights and not source.downloads:
        raise ConfigError(f"--weights is required: for {source.name} no file to download is known")


def _download(source, base_url, write_line, progress):
    folder = download.cache_directory() / source.name
    if write_line:
        write_line(f"{source.name}: {base_url or source.downloads[0].url} (kept in {shown(folder)})")
    return download.fetch_all(source.downloads, folder, base_url, progress)


def _import_detector(source, path, names, draft):
    """Builds and fills the network of a file, then writes the run."""

    def make(shapes):
        chosen = classes.choose_classes(source, source.count_columns(shapes), names)
        try:
            config = _make_config(source, shapes, chosen)
            model = build.build(config, load_weights=False).model
        except ConfigError as error:  # of what the file says, not of what the user typed
            raise DataError(f"no network fits the file: {error}") from None
        return model, source.places(shapes, chosen), (config, chosen)

    model, tensors, (config, chosen) = _fill(source, path, make)
    label_map = LabelMap(chosen.names, chosen.source_ids)

    def write(directory):
        model.save_weights(directory / runs.WEIGHTS)

    runs.write_import(draft, config, label_map, source.name, write)
    counts = {"parameters": model.count_params(), "tensors": tensors}
    return {"backbone": config.model.backbone, "classes": len(label_map), **counts}


def _make_config(source, shapes, chosen):
    counts = [f"model.num_classes={len(chosen.names)}"]
    if chosen.background:
        counts.append(f"model.background_columns={len(chosen.background)}")
    return configs.load_config(None, [*source.settings(shapes), *counts, "model.weights=none"])


def _import_backbone(source, path, output):
    def make(shapes):
        model = registry.get_backbone(source.backbone).build(_IMAGE_SHAPE, None)
        return model, source.places(shapes), None

    model, tensors, _ = _fill(source, path, make)
    draft = fileio.temporary_name(output)
    draft = draft.with_name(draft.name + _SUFFIX)
    try:
        with fileio.output_errors(output):
            model.save_weights(draft)
            fileio.commit(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return {"backbone": source.backbone, "parameters": model.count_params(), "tensors": tensors}


def _fill(source, path, make):
    """Fills what make({name: shape}) builds, (model, places, more); returns the model, arrays read, and more."""
    try:
        with source.open(path) as (shapes, read):
            used = {name: shape for name, shape in shapes.items() if not source.is_unused(name)}
            model, found, more = make(used)
            places.fill(model, found, used, read)
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    return model, len(used), more
