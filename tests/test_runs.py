"""The run directory: pointers, damage, pruning, resuming, locking."""

import contextlib
import errno
import itertools
import json
import os

import pytest

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.structures import LabelMap

LABELS = LabelMap(("cat", "dog"))
CONFIG = configs.replace(configs.Config(), train__steps=100)


@pytest.fixture
def path(tmp_path):
    return runs.start_run(tmp_path / "run", CONFIG, LABELS, 8).path


def save(path, step, best=False, keep_last=2, text="weights", files=("a.bin",)):
    def write(directory):
        for name in files:
            (directory / name).write_text(f"{text} {step}")

    runs.save_checkpoint(path, step, write, {"metric": step / 10}, keep_last)
    if best:
        runs.mark_best(path, step, "voc07", step / 100)


def names(path):
    return sorted(entry.name for entry in path.glob("step-*"))


def damage(path, step, name="a.bin"):
    (path / runs.step_name(step) / name).write_text("something else")


def test_a_new_run_holds_config_and_classes(path):
    written = json.loads((path / runs.CONFIG).read_text())
    assert configs.from_dict(written["config"], "config.json") == CONFIG
    assert LabelMap.from_json(json.loads((path / runs.LABEL_MAP).read_text()), "") == LABELS
    assert runs.find_checkpoint(path) is None


def test_open_run_needs_latest(path, tmp_path):
    with pytest.raises(DataError, match=r"run is not a finished run \(no LATEST\)"):
        runs.open_run(path)
    with pytest.raises(DataError, match=r"no such run directory: .*absent"):
        runs.open_run(tmp_path / "absent")
    save(path, 1)
    opened = runs.open_run(path)
    assert (opened.config, opened.label_map, opened.path) == (CONFIG, LABELS, path)


def test_latest_points_at_the_last_checkpoint(path):
    save(path, 10)
    save(path, 20)
    assert (path / runs.LATEST).read_text() == "step-00000020\n"
    found = runs.find_checkpoint(path)
    assert found.path == path / "step-00000020"
    assert (found.state["step"], found.state["metric"], found.skipped) == (20, 2.0, ())
    assert set(found.state["files"]) == {"a.bin"}
    assert (found.path / "a.bin").read_text() == "weights 20"


def test_keep_last(path):
    for step in range(1, 6):
        save(path, step, keep_last=3)
    assert names(path) == ["step-00000003", "step-00000004", "step-00000005"]
    save(path, 6, keep_last=1)
    assert names(path) == ["step-00000006"]


def test_best_is_kept(path):
    save(path, 1)
    save(path, 2, best=True, files=(runs.WEIGHTS,))
    for step in range(3, 7):
        save(path, step)
    assert names(path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert runs.find_checkpoint(path, "best").state["step"] == 2
    save(path, 7, best=True, files=(runs.WEIGHTS,))
    save(path, 8)
    assert names(path) == ["step-00000007", "step-00000008"]
    assert runs.find_checkpoint(path, "best").state["step"] == 7


BOTH = (runs.WEIGHTS, runs.AVERAGE)


def test_a_checkpoint_shows_its_average_where_it_has_one(path):
    save(path, 1, files=(runs.WEIGHTS,))
    save(path, 2, files=BOTH)
    assert runs.find_checkpoint(path, "step-1").weights == runs.WEIGHTS
    assert runs.find_checkpoint(path, "step-2").weights == runs.AVERAGE
    assert runs.find_checkpoint(path).weights == runs.AVERAGE
    damage(path, 2, runs.AVERAGE)
    assert runs.find_checkpoint(path).weights == runs.WEIGHTS  # of the one before


@pytest.mark.parametrize("weights", BOTH)
def test_the_best_shows_the_weights_that_had_the_score(path, weights):
    save(path, 1, files=BOTH)
    best = runs.mark_best(path, 1, "voc07", 0.5, weights)
    assert best == {"checkpoint": "step-00000001", "metric": "voc07", "value": 0.5, "weights": weights}
    assert runs.read_best(path) == best
    assert runs.find_checkpoint(path, "best").weights == weights
    assert runs.find_checkpoint(path).weights == runs.AVERAGE  # as the latest it shows the usual


def write_best(path, **changes):
    best = {"checkpoint": "step-00000001", "metric": "voc07", "value": 0.5, **changes}
    (path / runs.BEST).write_text(json.dumps(best))


def test_best_of_a_run_from_before_there_were_averages(path):
    save(path, 1, files=(runs.WEIGHTS,))
    write_best(path)
    assert runs.read_best(path)["weights"] == runs.WEIGHTS
    assert runs.find_checkpoint(path, "best").weights == runs.WEIGHTS
    save(path, 2, files=(runs.WEIGHTS,), keep_last=1)
    assert names(path) == ["step-00000001", "step-00000002"]  # and it is kept


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "../../other/model.weights.h5"},
        {"weights": "optimizer.npz"},
        {"weights": ""},
        {"weights": None},
        {"weights": ["model.weights.h5"]},
        {"weights": {"model.weights.h5": 1}},
        {"checkpoint": "../step-00000001"},
        {"checkpoint": None},
        {"value": 1.5},
        {"value": True},
        {"value": "0.5"},
    ],
)
def test_hostile_best_is_refused(path, changes):
    save(path, 1, files=BOTH)
    write_best(path, **changes)
    with pytest.raises(DataError, match=r"^not a pointer to a checkpoint: .*BEST$"):
        runs.find_checkpoint(path, "best")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"step-00000001"', "{}"])
def test_best_that_is_no_object_is_refused(path, content):
    save(path, 1, files=BOTH)
    (path / runs.BEST).write_text(content)
    with pytest.raises(DataError, match=r"BEST|no checkpoint best"):
        runs.find_checkpoint(path, "best")


def test_best_of_weights_that_the_checkpoint_has_not(path):
    save(path, 1, files=(runs.WEIGHTS,))
    write_best(path, weights=runs.AVERAGE)
    with pytest.raises(DataError, match=r"^checkpoint step-00000001 has no average\.weights\.h5: .*run$"):
        runs.find_checkpoint(path, "best")
    assert runs.find_checkpoint(path).weights == runs.WEIGHTS


def test_order_is_that_of_numbers(path):
    save(path, 9)
    save(path, 10)
    save(path, 100)
    assert names(path) == ["step-00000010", "step-00000100"]
    assert runs.find_checkpoint(path).state["step"] == 100


def test_a_checkpoint_by_name(path):
    save(path, 1)
    save(path, 2)
    assert runs.find_checkpoint(path, "step-1").state["step"] == 1
    assert runs.find_checkpoint(path, "step-00000001").state["step"] == 1
    with pytest.raises(DataError, match=r"no checkpoint step-7 \(there are: step-00000001, step-00000002\)"):
        runs.find_checkpoint(path, "step-7")
    with pytest.raises(DataError, match="has no checkpoint best"):
        runs.find_checkpoint(path, "best")
    with pytest.raises(DataError, match="latest, best or step-N, not 'newest'"):
        runs.find_checkpoint(path, "newest")
    damage(path, 1)
    with pytest.raises(DataError, match=r"checkpoint step-00000001 is damaged: a\.bin differs"):
        runs.find_checkpoint(path, "step-1")


@pytest.mark.parametrize("fault", ["changed", "cut", "missing file", "missing state", "broken state", "outside"])
def test_damaged_latest_falls_back_and_is_named(path, fault):
    save(path, 1)
    save(path, 2)
    directory = path / "step-00000002"
    state = directory / runs.STATE
    if fault == "changed":
        (directory / "a.bin").write_text("weighty 2")  # of the same length
    elif fault == "cut":
        (directory / "a.bin").write_text("weigh")
    elif fault == "missing file":
        (directory / "a.bin").unlink()
    elif fault == "missing state":
        state.unlink()
    elif fault == "broken state":
        state.write_text("{")
    else:
        state.write_text(state.read_text().replace("a.bin", "../../a.bin"))
    found = runs.find_checkpoint(path)
    assert (found.path.name, found.skipped) == ("step-00000001", ("step-00000002",))


def test_nothing_sound_is_an_error(path):
    save(path, 1)
    save(path, 2)
    damage(path, 1)
    damage(path, 2)
    with pytest.raises(DataError, match=r"every checkpoint is damaged \(step-00000002, step-00000001\): .*run"):
        runs.find_checkpoint(path)


def test_half_written_checkpoint_is_not_seen(path):
    save(path, 1)

    def write(directory):
        (directory / "a.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.save_checkpoint(path, 2, write, {}, 2)
    assert (path / runs.LATEST).read_text() == "step-00000001\n"
    assert runs.find_checkpoint(path).state["step"] == 1
    assert runs.find_checkpoint(path).skipped == ()
    save(path, 2)  # what was left over is no obstacle
    assert names(path) == ["step-00000001", "step-00000002"]


# From Python 3.12 on; the child only writes files.
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
WRITES = ("replace", "fsync", "rmdir")


def killed_at(event, work):
    """Does `work` in a process that dies, without any cleaning up, before its write number `event`.

    Returns whether it died; a process of fewer writes does all its work.
    """
    child = os.fork()
    if child == 0:
        seen = itertools.count(1)

        def watch(write):
            return lambda *arguments, **options: (
                os._exit(9) if next(seen) == event else write(*arguments, **options)
            )

        for name in WRITES:
            setattr(os, name, watch(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@FORKS
def test_a_kill_at_any_write_loses_nothing(path):
    """Whatever the moment, the checkpoint before or the new one is there, sound, and no file of a kill stays."""
    save(path, 1)
    save(path, 2)
    found = []
    for event in itertools.count(1):
        if not killed_at(event, lambda: save(path, 3)):
            break
        last = runs.find_checkpoint(path)
        found.append(last.state["step"])
        assert last.skipped == ()
        assert (last.path / "a.bin").read_text() == f"weights {found[-1]}"
        runs.remove_leftovers(path)
        assert {entry.name for entry in path.iterdir() if ".tmp" in entry.name} == set()
        save(path, 2) if found[-1] == 2 else None  # what goes on from the one before comes to it again
    assert found == sorted(found) and set(found) == {2, 3} and len(found) >= 8
    assert names(path) == ["step-00000002", "step-00000003"]


@FORKS
def test_a_kill_at_any_write_of_the_start_is_no_obstacle(tmp_path):
    new, died = tmp_path / "new", []
    for event in itertools.count(1):
        died.append(killed_at(event, lambda: runs.start_run(new, CONFIG, LABELS, 8)))
        if not died[-1]:
            break
    assert len(died) >= 6
    assert runs.start_run(new, CONFIG, LABELS, 8).config == CONFIG


def test_label_map_of_others_is_no_start(tmp_path):
    (tmp_path / runs.LABEL_MAP).write_text(json.dumps(LabelMap(("bird",)).to_json()))
    with pytest.raises(ConfigError, match="is not empty and not a run"):
        runs.start_run(tmp_path, CONFIG, LABELS, 8)


def test_leftovers_are_removed_and_named(path):
    save(path, 1)
    (path / "step-00000002.tmp").mkdir()
    (path / "step-00000002.tmp" / "a.bin").write_text("half")
    (path / ".LATEST.tmp-12-0123abcd").write_text("")
    for name in ("mine.tmp", "step-2.tmp", ".lock"):
        (path / name).write_text("precious")
    before = {entry.name for entry in path.iterdir()}
    assert runs.remove_leftovers(path) == [".LATEST.tmp-12-0123abcd", "step-00000002.tmp"]
    assert {entry.name for entry in path.iterdir()} == before - {".LATEST.tmp-12-0123abcd", "step-00000002.tmp"}
    assert runs.remove_leftovers(path) == []


@pytest.mark.parametrize("content", [b"", b"step-2", b"\xff\x00", b"x" * 5000])
def test_garbled_latest_is_named_and_the_newest_taken(path, content):
    save(path, 1)
    save(path, 2)
    (path / runs.LATEST).write_bytes(content)
    found = runs.find_checkpoint(path)
    assert (found.path.name, found.skipped) == ("step-00000002", ("LATEST",))


def test_latest_that_points_at_nothing_is_named(path):
    save(path, 1)
    save(path, 2)
    (path / runs.LATEST).write_text("step-00000003\n")
    found = runs.find_checkpoint(path)
    assert (found.path.name, found.skipped) == ("step-00000002", ("step-00000003",))


def test_state_of_another_step_is_damage(path):
    save(path, 1)
    save(path, 2)
    state = path / "step-00000002" / runs.STATE
    state.write_text(state.read_text().replace('"step": 2', '"step": 3'))
    assert runs.find_checkpoint(path).path.name == "step-00000001"


def test_config_digest_is_that_of_the_content():
    assert runs.config_digest(CONFIG) == runs.config_digest(configs.replace(configs.Config(), train__steps=100))
    others = [configs.replace(CONFIG, train__steps=101), configs.replace(CONFIG, model__backbone="vgg16")]
    assert len({runs.config_digest(config) for config in (CONFIG, *others)}) == 3


def test_the_same_step_may_be_saved_again(path):
    save(path, 1, text="old")
    save(path, 1, text="new")
    assert (runs.find_checkpoint(path).path / "a.bin").read_text() == "new 1"


def test_a_damaged_newer_checkpoint_does_not_crowd_out_sound_ones(path):
    save(path, 10, best=True, keep_last=1)
    save(path, 30, keep_last=1)
    damage(path, 30)
    assert runs.find_checkpoint(path).state["step"] == 10
    save(path, 20, keep_last=1)  # the training went on from 10
    assert runs.find_checkpoint(path).state["step"] == 20


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train__learning_rate", 0.5, r"cannot resume: train\.learning_rate 0\.001 → 0\.5"),
        ("train__batch_size", 7, r"cannot resume: train\.batch_size 32 → 7"),
        ("model__backbone", "vgg16", r"cannot resume: model\.backbone mobilenet_v2 → vgg16"),
        ("augment__crop_min_iou", (0.1,), r"cannot resume: augment\.crop_min_iou"),
    ],
)
def test_resuming_with_a_changed_key_is_refused(path, key, value, message):
    save(path, 1)
    with pytest.raises(ConfigError, match=message):
        runs.start_run(path, configs.replace(CONFIG, **{key: value}), LABELS, 8)
    assert configs.from_dict(json.loads((path / runs.CONFIG).read_text())["config"], "") == CONFIG


def test_resuming_may_change_steps_and_logging(path):
    changed = configs.replace(CONFIG, train__steps=200, train__log_steps=1, train__validation_steps=3)
    changed = configs.replace(changed, train__checkpoint_steps=7, train__keep_last=9)
    assert runs.start_run(path, changed, LABELS, 8).config == changed
    save(path, 1)
    assert runs.open_run(path).config == changed


def test_without_a_checkpoint_everything_may_change(path):
    changed = configs.replace(CONFIG, train__learning_rate=0.5)
    assert runs.start_run(path, changed, LabelMap(("bird",)), 8).config == changed


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LabelMap(("cat", "bird")), "class map differs: shards have 'bird' = 2, run has no 'bird'"),
        (LabelMap(("dog", "cat")), "class map differs: shards have 'dog' = 1, run has 'dog' = 2"),
        (LabelMap(("cat",)), "class map differs: shards have 1 classes, run has 2"),
    ],
)
def test_resuming_with_other_classes_is_refused(path, labels, message):
    save(path, 1)
    with pytest.raises(DataError, match=message):
        runs.start_run(path, CONFIG, labels, 8)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format_version": 1}', '{"format_version": 99, "config": {}}'])
def test_damaged_config_is_named(path, content):
    save(path, 1)
    (path / runs.CONFIG).write_text(content)
    with pytest.raises(DataError, match=r"config\.json"):
        runs.open_run(path)


def test_one_writer_at_a_time(path):
    in_use = pytest.raises(EnvironmentFault, match=r"run is in use by pid \d+ on ")
    with fileio.directory_lock(path), in_use, fileio.directory_lock(path):
        raise AssertionError("two hold the lock")
    with fileio.directory_lock(path):  # free again
        pass


def write_whole(directory):
    runs.write_import(directory, CONFIG, LABELS, "somebody", lambda step: (step / "a.bin").write_text("weights"))


def test_an_imported_run_appears_as_a_whole(tmp_path):
    path = tmp_path / "new" / "run"
    with runs.new_run(path) as draft:
        write_whole(draft)
        assert [entry.name for entry in path.iterdir() if not entry.name.startswith(".")] == []
    assert sorted(entry.name for entry in path.iterdir()) == [
        *(".lock", "LATEST", "config.json", "label_map.json", "step-00000000"),
    ]
    opened = runs.open_run(path)
    assert (opened.config, opened.label_map) == (CONFIG, LABELS)
    found = runs.find_checkpoint(path)
    assert (found.path.name, found.state["imported"]) == ("step-00000000", "somebody")
    assert found.state["config_sha256"] == runs.config_digest(CONFIG)


@pytest.mark.parametrize("kind", [DataError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_run_that_fails(tmp_path, kind):
    with pytest.raises(kind), runs.new_run(tmp_path / "a" / "b" / "run") as draft:
        write_whole(draft)
        raise kind("no")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(kind), runs.new_run(tmp_path / "mine" / "run") as draft:
        write_whole(draft)
        raise kind("no")
    with pytest.raises(kind), runs.new_run(tmp_path / "mine") as draft:
        write_whole(draft)
        raise kind("no")
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "mine" / ".lock").write_text("of a process long ago")
    with pytest.raises(kind), runs.new_run(tmp_path / "mine") as draft:
        write_whole(draft)
        raise kind("no")
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == [".lock"]


@pytest.mark.parametrize("failing", ["config.json", "label_map.json", "step-00000000", "LATEST"])
@pytest.mark.parametrize("name", [".", "new"])
def test_nothing_is_left_of_a_run_that_cannot_be_published(tmp_path, monkeypatch, failing, name):
    commit = fileio.commit

    def refuse(old, new):
        if new == tmp_path / name / failing:
            raise OSError(errno.ENOSPC, "full")
        commit(old, new)

    monkeypatch.setattr(fileio, "commit", refuse)
    with pytest.raises(EnvironmentFault, match="No space left"), runs.new_run(tmp_path / name) as draft:
        write_whole(draft)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with runs.new_run(tmp_path / name) as draft:
        write_whole(draft)
    assert runs.find_checkpoint(tmp_path / name).path.name == "step-00000000"


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "x" * 300 + "/b"])
def test_new_runs_with_names_that_are_too_long(tmp_path, name):
    with pytest.raises(EnvironmentFault) as caught, runs.new_run(tmp_path / name):
        pytest.fail("nothing may be done")
    assert str(caught.value).startswith("file name too long: ") and str(caught.value).count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_new_runs_need_an_empty_directory(tmp_path):
    (tmp_path / "file.txt").touch()
    with pytest.raises(ConfigError, match="is not empty; choose another --run_dir"), runs.new_run(tmp_path):
        pytest.fail("nothing may be done")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_what_a_killed_import_left_is_removed(tmp_path):
    (tmp_path / ".run.tmp-17-0123abcd").mkdir()
    (tmp_path / ".run.tmp-17-0123abcd" / "config.json").touch()
    (tmp_path / ".keep").touch()
    with runs.new_run(tmp_path) as draft:
        write_whole(draft)
    assert {".run.tmp-17-0123abcd", ".keep"} & {entry.name for entry in tmp_path.iterdir()} == {".keep"}


def test_new_run_is_held_for_one_process(tmp_path):
    with runs.new_run(tmp_path / "run") as draft:
        with pytest.raises(EnvironmentFault, match="is in use by pid"), runs.new_run(tmp_path / "run"):
            pytest.fail("nothing may be done")
        assert (tmp_path / "run" / ".lock").exists()  # it is the other's
        write_whole(draft)
    assert runs.find_checkpoint(tmp_path / "run").path.name == "step-00000000"


def test_no_training_goes_on_in_an_imported_run(tmp_path):
    with runs.new_run(tmp_path / "run") as draft:
        write_whole(draft)
    with pytest.raises(ConfigError) as caught:
        runs.start_run(tmp_path / "run", CONFIG, LABELS, 8)
    path = tmp_path / "run"
    assert str(caught.value) == (
        f"{path} was imported from somebody: no training goes on in it; start one from it with "
        f"--init_from={path} and another --run_dir"
    )


def test_latest_appears_last(tmp_path, monkeypatch):
    order, commit = [], fileio.commit
    with runs.new_run(tmp_path / "run") as draft:
        write_whole(draft)
        monkeypatch.setattr(fileio, "commit", lambda old, new: (order.append(new.name), commit(old, new)))
    assert sorted(order[:-1]) == ["config.json", "label_map.json", "step-00000000"] and order[-1] == "LATEST"


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def lock(path):
        (path / "config.json").write_text("theirs")
        yield

    monkeypatch.setattr(fileio, "directory_lock", lock)
    with pytest.raises(ConfigError, match="is not empty"), runs.new_run(tmp_path / "run"):
        pytest.fail("nothing may be done")
    assert (tmp_path / "run" / "config.json").read_text() == "theirs"
