"""Several devices and several machines: the same training as on one device.

Each process of a training is a Python of its own: the devices of TensorFlow cannot change once it is used.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import team_process

from ssd_tf.errors import ConfigError
from ssd_tf.training import team

STEPS = 50
SETTINGS = [
    "model.backbone=small",
    "model.image_size=64",
    "model.weights=none",
    f"train.steps={STEPS}",
    "train.batch_size=8",
    "train.learning_rate=0.1",
    "train.log_steps=1",
    "train.checkpoint_steps=20",
    "train.clip_norm=2",
]


def begin(records, run_dir, settings=(), devices=1, workers=(), worker=0):
    """Starts one process of a training."""
    options = {"records": str(records), "run_dir": str(run_dir), "set": [*SETTINGS, *settings], "devices": devices}
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    if workers:
        task = {"type": "worker", "index": worker}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": list(workers)}, "task": task})
    return subprocess.Popen(
        [sys.executable, team_process.__file__, json.dumps(options)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def free_addresses(count):
    """Addresses on the loopback that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def finish(process):
    """Waits for a process; returns its exit code and what it printed."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def read_losses(run_dir):
    return np.array([json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()])


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, drawn_records):
    """The same training on one device, on two, and by two workers."""
    folder = tmp_path_factory.mktemp("team")
    addresses = free_addresses(2)
    processes = [
        begin(drawn_records, folder / "one"),
        begin(drawn_records, folder / "devices", devices=2),
        *(begin(drawn_records, folder / "workers", workers=addresses, worker=index) for index in range(2)),
    ]
    for process in processes:
        code, out, err = finish(process)
        assert code == 0, out + err[-2000:]
    return folder


@pytest.mark.parametrize("kind", ["devices", "workers"])
def test_equals_a_training_on_one_device(trainings, kind):
    losses = read_losses(trainings / "one")
    assert len(losses) == STEPS and losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(read_losses(trainings / kind), losses, rtol=1e-4, atol=1e-4)
    weights = team_process.read_weights(trainings / "one", STEPS)
    np.testing.assert_allclose(team_process.read_weights(trainings / kind, STEPS), weights, rtol=0, atol=1e-4)


def follow_to(process, step):
    """Reads what a process prints until it has done a step."""
    for line in process.stdout:
        if f"step {step}/" in line:
            return
    pytest.fail(process.stderr.read()[-2000:])


def test_workers_go_on_after_a_kill_and_after_a_signal(trainings, drawn_records, tmp_path):
    """Both workers end; started again, they continue, and nothing is different in the end."""
    run_dir = tmp_path / "run"

    def begin_workers():
        addresses = free_addresses(2)
        return [begin(drawn_records, run_dir, workers=addresses, worker=index) for index in range(2)]

    chief, other = begin_workers()
    follow_to(chief, 24)
    other.kill()
    code, out, _ = finish(chief)
    finish(other)
    assert code == 5 and "another worker was lost: start the same command" in out
    assert (run_dir / "LATEST").read_text() == "step-00000020\n"

    chief, other = begin_workers()
    follow_to(chief, 32)
    other.send_signal(signal.SIGTERM)
    (code, out, _), (other_code, other_out, _) = finish(chief), finish(other)
    assert (
        (code, other_code) == (143, 143) and "run the same command" in out and "run the same command" in other_out
    )
    saved = int((run_dir / "LATEST").read_text().removeprefix("step-"))
    assert 32 < saved < STEPS

    chief, other = begin_workers()
    (code, out, err), _ = finish(chief), finish(other)
    assert code == 0 and f"going on from step {saved}" in out, err[-2000:]
    weights = team_process.read_weights(trainings / "one", STEPS)
    np.testing.assert_allclose(team_process.read_weights(run_dir, STEPS), weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "addresses", "index"),
    [
        ("", [], 0),
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}', ["a:1", "b:2"], 1),
        (
            '{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}',
            ["c:1", "a:1", "b:2"],
            2,
        ),
        (
            '{"cluster": {"chief": ["c:1"], "worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
            ["c:1", "a:1"],
            0,
        ),
    ],
)
def test_cluster_is_read(text, addresses, index):
    assert team.read_cluster(text) == (addresses, index)


@pytest.mark.parametrize(
    "text",
    [
        "worker",
        "[]",
        '{"cluster": {}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"ps": ["a:1"], "worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": [1]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_other_clusters_are_refused(text):
    with pytest.raises(ConfigError, match=r"TF_CONFIG must be"):
        team.read_cluster(text)
