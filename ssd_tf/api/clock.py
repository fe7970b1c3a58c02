"""The training clock: epochs and hours to steps."""

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.api import dataset, session
from ssd_tf.training import trainer

_TRIAL_STEPS = 1000  # of the schedule while steps are timed
_FORWARD = 1 / 3  # of a step's time, which inference of as many images takes


def resolve(config, records, val_records, run_dir, team, deterministic, write_line):
    """Returns `config` with what the records, and for train.hours this machine, decide: number of classes, steps.

    Args:
      config: Config.
      records: reader.RecordSet to train on.
      val_records: RecordSet to validate on, or None.
      run_dir: the run; one that was begun keeps the steps that its hours came to.
      team: training.team.Team.
      deterministic: see devices.make_deterministic.
      write_line: function (text) for the console.
    """
    config = dataset.with_classes(config, records)
    steps = None
    if config.train.hours and runs.latest_name(run_dir):
        steps = runs.open_run(run_dir).config.train.steps
    elif config.train.hours:
        seconds = _time_steps(config, records, team, deterministic)
        steps = count_steps(config.train, seconds, val_records)
        write_line(
            f"{config.train.hours:g} hours are {steps:,} steps of {seconds:.3f} s and what validation takes"
        )
    return configs.resolve_steps(config, records.num_examples, steps)


def _time_steps(config, records, team, deterministic):
    """Seconds of a step, tried on a network that is thrown away."""
    trial = configs.replace(config, train__hours=0.0, train__steps=max(_TRIAL_STEPS, config.train.accumulate))
    detector, _ = session.build_detector(trial, False, team)
    session.compile_detector(detector, trial, deterministic, team)
    return trainer.time_steps(detector.model, session.make_streams(records, detector, trial, team)(0))


def count_steps(settings, seconds, val_records):
    """Returns how many steps fit into train.hours, at least one.

    Args:
      settings: config.TrainConfig.
      seconds: of a step.
      val_records: RecordSet that is validated on beside it, or None.
    """
    num_images = val_records.num_examples * (2 if settings.ema else 1) if val_records else 0
    validation = seconds * _FORWARD * num_images / settings.batch_size
    spent = settings.hours * 3600
    if settings.validation_steps:
        return max(int(spent / (seconds + validation / settings.validation_steps)), 1)
    return max(int((spent - configs.VALIDATIONS * validation) / seconds), 1)
