"""TensorBoard's event files: what is in them, and what a session that was cut off leaves."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.errors import Interrupted
from ssd_tf.structures import LabelMap
from ssd_tf.training import optimizers
from ssd_tf.training.tensorboard import TensorBoard, cut_events


@pytest.fixture
def run(tmp_path):
    """A run of 20 steps that logs every second one; there is nothing in its folder."""
    overrides = ["train.steps=20", "train.log_steps=2", "train.learning_rate=0.5", "train.warmup=0.5"]
    return runs.Run(tmp_path, configs.load_config(None, overrides), LabelMap(("cat",)))


def logs(step):
    return {"loss": step + 0.5, "class_logits_loss": step + 0.25, "box_deltas_loss": 0.125}


def picture(step):
    return np.full((6, 9, 3), step, np.uint8)


def session(run, steps, validated=(), draw=None, lines=None):
    """One session of a training: the hook after it, not closed."""
    hook = TensorBoard(run, draw, [].append if lines is None else lines.append)
    for step in steps:
        hook(step, logs(step))
        if step in validated:
            hook.validated(step, {"mAP": step / 32})
    return hook


def read_events(path):
    return [tf.compat.v1.Event.FromString(data) for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]


def files(run):
    return sorted((run.path / "tensorboard").iterdir())


def scalars(run, tag):
    """[(step, value)] in the order in which TensorBoard reads."""
    return [
        (event.step, value.simple_value)
        for path in files(run)
        for event in read_events(path)
        for value in event.summary.value
        if value.tag == tag
    ]


def test_a_whole_training(run):
    session(run, range(1, 21), validated=(10, 20), draw=picture).finish()
    (path,) = files(run)
    assert "tfevents" in path.name  # or the program passes it over
    first, *others = read_events(path)
    assert first.file_version == "brain.Event:2"
    assert all(event.wall_time > 1.6e9 for event in [first, *others])
    steps = list(range(2, 21, 2))
    assert scalars(run, "loss") == [(step, step + 0.5) for step in steps]
    assert scalars(run, "class_loss") == [(step, step + 0.25) for step in steps]
    assert scalars(run, "box_loss") == [(step, 0.125) for step in steps]
    schedule = optimizers.make_schedule(run.config.train)
    rates = scalars(run, "learning_rate")
    assert rates == [(step, pytest.approx(float(schedule(step)))) for step in steps]
    assert rates[4][1] == pytest.approx(0.5)  # the warm-up's end
    assert scalars(run, "mAP") == [(10, 10 / 32), (20, 20 / 32)]
    images = [(e.step, value.image) for e in others for value in e.summary.value if value.HasField("image")]
    assert [step for step, _ in images] == [10, 20]
    for step, image in images:
        assert (image.height, image.width, image.colorspace) == (6, 9, 3)
        assert np.all(np.abs(tf.io.decode_jpeg(image.encoded_image_string).numpy().astype(int) - step) <= 2)


def test_steps_are_counted_from_the_session_s_start(run):
    """As the log counts them: Keras' running means begin anew there."""
    session(run, range(8, 21))
    assert [step for step, _ in scalars(run, "loss")] == [9, 11, 13, 15, 17, 19, 20]


def test_a_session_that_goes_on_leaves_no_step_twice(run):
    session(run, range(1, 15), validated=(5, 12))  # killed at 14; its last checkpoint was that of step 9
    session(run, range(10, 18), validated=(12,))  # killed at 17; its last one was that of 15
    session(run, range(16, 21), validated=(20,)).finish()
    assert [step for step, _ in scalars(run, "loss")] == [2, 4, 6, 8, 11, 13, 15, 17, 19, 20]
    assert [step for step, _ in scalars(run, "mAP")] == [5, 12, 20]
    assert [path.name.split(".")[3] for path in files(run)] == ["0000000000", "0000000009", "0000000015"]


def test_starting_anew_from_an_earlier_checkpoint_drops_later_files(run):
    session(run, range(1, 10))
    session(run, range(10, 15))
    session(run, range(5, 7))  # the checkpoints after step 4 were damaged
    assert [step for step, _ in scalars(run, "loss")] == [2, 4, 6]
    session(run, range(1, 3))
    assert [step for step, _ in scalars(run, "loss")] == [2]
    assert len(files(run)) == 1


def test_a_validation_owed_by_the_session_before_comes_first(run):
    session(run, range(1, 11))
    hook = TensorBoard(run, None, print)
    hook.validated(10, {"mAP": 0.5})
    hook(11, logs(11))
    hook(12, logs(12))
    assert scalars(run, "mAP") == [(10, 0.5)]
    assert [step for step, _ in scalars(run, "loss")] == [2, 4, 6, 8, 10, 12]


def test_no_map_is_no_point(run):
    hook = session(run, range(1, 3), draw=picture)
    hook.validated(2, {"mAP": None})
    assert scalars(run, "mAP") == [] and len(scalars(run, "validation")) == 1


def test_a_tail_cut_by_a_kill_is_removed(run):
    session(run, range(1, 11))
    (path,) = files(run)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    session(run, range(11, 13))
    assert [step for step, _ in scalars(run, "loss")] == [2, 4, 6, 8, 12]


def test_cutting_leaves_what_is_sound_alone(run):
    session(run, range(1, 11))
    (path,) = files(run)
    before = path.read_bytes()
    inode = path.stat().st_ino
    cut_events(path, 10)
    assert path.read_bytes() == before and path.stat().st_ino == inode
    cut_events(path, 6)
    assert [event.step for event in read_events(path)] == [0, 2, 4, 6]
    assert before.startswith(path.read_bytes())
    cut_events(path, 1)
    assert files(run) == []


def test_a_fault_is_said_once_and_ends_the_writing_alone(run):
    def refuse(_):
        raise ValueError("no ink\nleft")

    lines = []
    hook = session(run, range(1, 7), validated=(4, 6), draw=refuse, lines=lines)
    hook.finish()
    assert lines == ["no more TensorBoard logs (log.csv and log.jsonl go on): no ink"]
    assert [step for step, _ in scalars(run, "loss")] == [2, 4]
    assert scalars(run, "mAP") == [(4, 4 / 32)]


def test_a_folder_that_cannot_be_made(run):
    (run.path / "tensorboard").write_text("a file")
    lines = []
    session(run, range(1, 5), lines=lines).finish()
    (line,) = lines
    assert line.startswith(
        "no more TensorBoard logs (log.csv and log.jsonl go on): a file stands where a directory"
    )


def test_the_wish_to_stop_is_no_fault(run):
    def stop(_):
        raise Interrupted("stopped", 15)

    with pytest.raises(Interrupted):
        session(run, range(1, 3), validated=(2,), draw=stop)
