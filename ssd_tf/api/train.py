"""Config and records to a trained run directory."""

from ssd_tf import fileio, runs
from ssd_tf.api import build, clock, reports, session, start
from ssd_tf.data import anchor_fit, balance, pipeline
from ssd_tf.errors import ConfigError
from ssd_tf.records import reader
from ssd_tf.training import devices, trainer
from ssd_tf.training import team as teams


def train(
    config=None,
    train=None,
    run_dir=None,
    val=None,
    write_line=print,
    skip_corrupt_records=False,
    deterministic=False,
    check_anchors=False,
    init_from=None,
    overrides=(),
):
    """Trains a detector, or goes on with a training that was interrupted.

    Order of initialisation: the run's own last checkpoint; else the weights of `init_from` where they fit; else
    model.weights for the backbone and random numbers for the rest.

    Args:
      config: Config; None with `init_from` for that run's own.
      train: records to train on.
      run_dir: run directory to make or to continue.
      val: records to validate on while training, or None.
      write_line: function (text) for the console.
      skip_corrupt_records: leave out what follows a damaged record in its shard, counted, instead of stopping.
      deterministic: use deterministic operations alone, in this process from here on; no XLA.
      check_anchors: tell first how many boxes no anchor fits, by class.
      init_from: run directory to start from, or None; the classes are those of `train` in any case.
      overrides: "section.key=value" texts that change the config of `init_from`.

    Returns:
      dict: run_dir, step, resumed_from, best_metric (None without val), loss.

    Raises:
      ConfigError, DataError, TrainingError, EnvironmentFault, Interrupted: one line each.
    """
    origin = start.open_origin(init_from, run_dir, write_line) if init_from else None
    config = start.make_config(config, init_from, run_dir, overrides)
    if config.train.early_stopping and not val:
        raise ConfigError("train.early_stopping needs validation: give --val")
    devices.let_memory_grow()
    team = teams.form(config.train)
    build.check(config, load_weights=team.is_chief and runs.latest_name(run_dir) is None)
    records = reader.open_records(train, skip_corrupt_records)
    val_records = reader.open_records(val, skip_corrupt_records) if val else None
    _check_records(records, val_records, write_line)
    with devices.refusals(config):
        beyond_reach = devices.make_deterministic() if deterministic else []
        config = clock.resolve(config, records, val_records, run_dir, team, deterministic, write_line)
        if not team.is_chief:
            return {"run_dir": str(run_dir), **session.follow(config, records, team, deterministic, write_line)}
        fileio.make_directory(run_dir)
        with fileio.directory_lock(run_dir):
            run = runs.start_run(run_dir, config, records.label_map, records.num_examples + records.num_lost)
            for name in runs.remove_leftovers(run.path):
                write_line(f"removed {name}, which an interrupted write left behind")
            last = runs.find_checkpoint(run.path)
            detector, remarks = session.build_detector(config, last is None, team)
            if last is None:
                start.prepare(detector, config, records, origin, run.path, write_line)
            session.compile_detector(detector, config, deterministic, team)
            lines = session.describe(config, detector.model, records, init_from, deterministic, team)
            for line in (*lines, *balance.describe(records, config), *remarks, *beyond_reach):
                write_line(line)
            if check_anchors:
                for line in anchor_fit.describe(records, detector.anchors, config):
                    write_line(line)
            validation = reports.Validation(detector, run, val_records) if val_records else None
            with reader.record_errors(records):
                result = trainer.train(
                    detector.model,
                    session.make_streams(records, detector, config, team),
                    run,
                    validation,
                    write_line,
                    reports.make_hooks(run, validation, write_line),
                    last,
                    lambda step: pipeline.read_batch_ids(records, config, step),
                    deterministic,
                    team,
                )
            reports.finish(run, result["step"], records, detector.anchors, validation, write_line)
    return {"run_dir": str(run_dir), **result}


def _check_records(records, val_records, write_line):
    """Says what is noteworthy about the records; DataError where validation has other classes."""
    if val_records:
        records.label_map.check_same(val_records.label_map, "--train has", "--val has")
    for note in (*records.notes, *(val_records.notes if val_records else ())):
        write_line(note)
