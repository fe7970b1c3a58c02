"""What a training starts from: the config and weights of another run, batch norms fit for training."""

from dataclasses import dataclass
from pathlib import Path

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.training import checkpoint as checkpoints
from ssd_tf.training import transfer, unfold

REPORT = "init_from.json"
_IMAGES = 64  # that statistics are measured on
_NUM_SHOWN = 6  # tensors that the console names


@dataclass(frozen=True)
class Origin:
    """The run that a training starts from, and the checkpoint of it."""

    run: runs.Run
    checkpoint: runs.Checkpoint


def open_origin(init_from, run_dir, write_line):
    """Opens the run of --init_from.

    Returns:
      Origin; None where `run_dir` holds a training that goes on: it needs none, and says where it began.

    Raises:
      ConfigError: it is the run directory itself. DataError: not a run, or no sound checkpoint.
    """
    if Path(init_from).resolve() == Path(run_dir).resolve():
        raise ConfigError(
            "--init_from and --run_dir are the same: a run goes on by the command that it began with: "
            f"{shown(run_dir)}"
        )
    if runs.latest_name(run_dir):
        begun = _read_begun(Path(run_dir) / REPORT)
        if begun != str(Path(init_from)):
            write_line(
                f"this run began {f'from {begun}' if begun else 'without'}, --init_from={init_from} is not used"
            )
        return None
    run = runs.open_run(init_from)
    found = runs.find_checkpoint(run.path)
    if found is None:
        raise DataError(f"{shown(init_from)} has no checkpoint")
    return Origin(run, found)


def _read_begun(report):
    """The run that another one began from, or ""."""
    content = fileio.read_json(report) if report.exists() else {}
    return shown(content.get("run", "")) if isinstance(content, dict) else ""


def make_config(config, init_from, run_dir, overrides):
    """Returns the Config of a training: the given one, or with overrides its own earlier one or its origin's.

    Raises:
      ConfigError: neither a config nor an origin, or overrides for a given config, or one that cannot be.
    """
    if config is None and not init_from:
        raise ConfigError("a training needs a config, or init_from")
    if config is None:
        earlier = run_dir if runs.latest_name(run_dir) else init_from
        config = configs.adapt(runs.open_run(earlier).config, overrides)
        if config.model.weights != "none":
            raise ConfigError("model.weights: with --init_from the weights are those of that run")
        return config
    if overrides:
        raise ConfigError("overrides are for the config of init_from: give them to load_config instead")
    return configs.replace(config, model__weights="none") if init_from else config


def prepare(detector, config, records, origin, run_dir, write_line):
    """Gives a new detector the weights of its origin, and folded batch norms their statistics.

    Args:
      detector: build.Detector.
      config: Config with model.num_classes set.
      records: reader.RecordSet to train on.
      origin: Origin, or None.
      run_dir: where the report is written.
      write_line: function (text) for the console.

    Raises:
      ConfigError: the network expects another input than the origin's. DataError: no weights of its backbone fit.
    """
    (run_dir / REPORT).unlink(missing_ok=True)
    if origin:
        result = _load(detector.model, config, records, origin)
        fileio.write_json(run_dir / REPORT, {"run": str(origin.run.path), **vars(result)})
        for line in (*_describe(result, origin), *transfer.find_changes(origin.run.config.model, config.model)):
            write_line(line)
    if unfold.find_folded(detector.model):
        stream = pipeline.training_stream(records, detector.anchors, config)
        changed = unfold.unfold(detector.model, unfold.first_images(stream, _IMAGES))
        write_line(
            f"{changed} batch norms were folded: their statistics are now those of {_IMAGES} training images"
        )


def _load(model, config, records, origin):
    before = origin.run.config
    source = build.build(before, load_weights=False).model
    transfer.check_input(source, model)
    checkpoints.load_weights(origin.checkpoint, source)
    columns = [
        transfer.Columns(names, part.model.background_columns if part.loss.has_background else 0)
        for names, part in ((origin.run.label_map.names, before), (records.label_map.names, config))
    ]
    result = transfer.transfer_weights(source, model, *columns)
    # Heads alone know nothing.
    if not any(name.startswith("backbone/") and name.endswith("kernel") for name in result.loaded):
        raise DataError(
            f"--init_from has nothing in common with this network ({before.model.backbone}, here "
            f"{config.model.backbone}): {shown(origin.run.path)}"
        )
    return result


def _describe(result, origin):
    total = len(result.loaded) + len(result.partly) + len(result.not_loaded)
    yield (
        f"loaded {len(result.loaded)} of {total} tensors of {shown(origin.run.path)}, "
        f"{origin.checkpoint.path.name}, and known columns of {len(result.partly)} (all in {REPORT})"
    )
    heads, total = result.heads
    part = f" (on {heads} of {total} levels)" if result.kept and heads < total else ""
    yield f"classes kept: {', '.join(result.kept) or 'none'}{part}; made anew: {', '.join(result.anew) or 'none'}"
    for what, names in (
        ("not loaded", [f"{name} ({reason})" for name, reason in result.not_loaded]),
        ("not used", result.unused),
    ):
        if names:
            more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
            yield f"{what}: {', '.join(names[:_NUM_SHOWN])}{more}"
