"""What can be imported and which options go with it; loads neither TensorFlow nor Keras."""

from ssd_tf.errors import ConfigError, shown
from ssd_tf.pretrained import catalogue, download

SUFFIX = ".weights.h5"  # by which Keras knows the format


def describe():
    """Returns a dict for each source: name, kind ("detector" or "backbone"), backbone (None where the file tells),
    summary, licence, downloads and others, files beside them that are not fetched (url, size, sha256 and member of
    each; empty texts and 0 where not known).
    """
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "backbone": entry.backbone or None,
            "summary": entry.summary,
            "licence": entry.licence,
            "downloads": [dict(vars(file)) for file in entry.downloads],
            "others": [dict(vars(file)) for file in entry.others],
        }
        for entry in catalogue.ENTRIES.values()
    ]


def check_options(source, weights=None, run_dir=None, output=None, labels=None, base_url=None):
    """Checks the options of an import against the catalogue; reads no file.

    Args:
      source, weights, run_dir, output, labels, base_url: as of api.import_weights.import_weights.

    Returns:
      catalogue.Entry of the source.

    Raises:
      ConfigError: there is no such source, or the options do not go with it.
    """
    entry = catalogue.get_entry(source)
    is_detector = entry.kind == "detector"
    wanted, other = ("run_dir", "output") if is_detector else ("output", "run_dir")
    given = {"run_dir": run_dir, "output": output}
    if given[other] or not given[wanted]:
        kind = "detector: give --run_dir" if is_detector else f"backbone: give --output=FILE{SUFFIX}"
        raise ConfigError(f"{entry.name} is a {kind}" + f", not --{other}" * bool(given[other]))
    if output and not str(output).endswith(SUFFIX):
        raise ConfigError(f"--output: expected a name that ends in {SUFFIX}, got {shown(output)}")
    if labels and not is_detector:
        raise ConfigError(f"--labels: {entry.name} is a backbone, it has no classes")
    if base_url and weights:
        raise ConfigError("--base_url is where to download from: give it without --weights")
    download.check_base_url(base_url)
    if not weights and not entry.downloads:
        raise ConfigError(f"--weights is required: for {entry.name} no file to download is known")
    return entry
