"""TensorBoard's view of a training: scalars and pictures in event files, one for each session.

The files are written directly, as the records of Event messages that they are: tf.summary can neither go on from a
step nor take back what an interrupted session wrote after its last checkpoint.
"""

import importlib.util
import time

import tensorflow as tf

from ssd_tf import fileio
from ssd_tf.errors import Interrupted
from ssd_tf.training import optimizers

FOLDER = "tensorboard"
_SUFFIX = ".ssd_tf"
_VERSION = "brain.Event:2"
_JPEG_QUALITY = 90


def is_installed():
    """Tells whether the package that shows the files is there; nothing is imported."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard:
    """Hook of trainer.train that writes losses, learning rate, mAP and validation pictures to run/tensorboard.

    A fault is said once and ends the writing, never the training.

    Args:
      run: runs.Run.
      draw: function (step) -> uint8 [H, W, 3] RGB, called after each validation, or None.
      write_line: function (text) for the console.
    """

    def __init__(self, run, draw, write_line):
        self.folder, self.settings = run.path / FOLDER, run.config.train
        self.schedule = optimizers.make_schedule(self.settings)
        self.draw, self.write_line = draw, write_line
        self.start, self.writer, self.failed = None, None, False

    def __call__(self, step, logs):
        self._begin(step - 1)
        if (step - self.start) % self.settings.log_steps == 0 or step == self.settings.steps:
            self._try(self._add_losses, step, logs)

    def validated(self, step, result):
        """Adds the mAP, where there is one, and the picture of a validation."""
        self._begin(step)  # a validation that an interrupted session owes comes before the first step
        if result["mAP"] is not None:
            self._try(self._add, step, _scalar("mAP", result["mAP"]))
        if self.draw:
            self._try(self._add_picture, step)

    def finish(self):
        """Closes the file."""
        if self.writer:
            self._try(self.writer.close)

    def _try(self, action, *arguments):
        if self.failed:
            return
        try:
            action(*arguments)
        except Interrupted:
            raise
        except Exception as error:  # whatever it is, the training is worth more
            self.failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0][:160]
            self.write_line(f"no more TensorBoard logs (log.csv and log.jsonl go on): {reason}")

    def _begin(self, start):
        if self.start is None:
            self.start = start
            self._try(self._open)

    def _open(self):
        fileio.make_directory(self.folder)
        for path in self.folder.glob(f"*{_SUFFIX}"):
            cut_events(path, self.start)
        # The program reads the files of a folder in the order of their names.
        self.writer = tf.io.TFRecordWriter(str(self.folder / f"events.out.tfevents.{self.start:010d}{_SUFFIX}"))
        self._write(tf.compat.v1.Event(file_version=_VERSION))

    def _add_losses(self, step, logs):
        numbers = {
            "loss": logs["loss"],
            "class_loss": logs["class_logits_loss"],
            "box_loss": logs["box_deltas_loss"],
            "learning_rate": self.schedule(step),
        }
        self._add(step, *(_scalar(tag, value) for tag, value in numbers.items()))

    def _add_picture(self, step):
        pixels = self.draw(step)
        data = tf.io.encode_jpeg(pixels, quality=_JPEG_QUALITY).numpy()
        height, width, depth = pixels.shape
        image = tf.compat.v1.Summary.Image(height=height, width=width, colorspace=depth, encoded_image_string=data)
        self._add(step, tf.compat.v1.Summary.Value(tag="validation", image=image))

    def _add(self, step, *values):
        self._write(tf.compat.v1.Event(step=step, summary=tf.compat.v1.Summary(value=values)))

    def _write(self, event):
        event.wall_time = time.time()
        self.writer.write(event.SerializeToString())
        self.writer.flush()


def _scalar(tag, value):
    return tf.compat.v1.Summary.Value(tag=tag, simple_value=float(value))


def cut_events(path, last_step):
    """Removes the events after a step from an event file, and a tail that is damaged; an empty file altogether.

    Args:
      path: event file.
      last_step: the last step to keep.
    """
    kept, whole = [], True
    try:
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            if tf.compat.v1.Event.FromString(data).step <= last_step:
                kept.append(data)
            else:
                whole = False
    except tf.errors.DataLossError:  # cut by a kill
        whole = False
    if len(kept) < 2:  # the version alone
        path.unlink()
    elif not whole:
        temporary = fileio.temporary_name(path)
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for data in kept:
                writer.write(data)
        fileio.commit(temporary, path)
