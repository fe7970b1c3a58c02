"""A run directory to a Predictor, and pictures to pictures with boxes."""

import collections
from pathlib import Path

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.inference import drawing
from ssd_tf.inference.predictor import Predictor
from ssd_tf.training import averaging
from ssd_tf.training import checkpoint as checkpoints

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def load(run_dir, checkpoint="latest", write_line=None, overrides=()):
    """Loads a run as a Predictor.

    Args:
      run_dir: run directory.
      checkpoint: "latest", "best" or "step-N".
      write_line: function (text) that is told which checkpoint was taken, or None.
      overrides: "postprocess.key=value" texts that replace the run's settings.

    Returns:
      inference.predictor.Predictor.

    Raises:
      DataError: not a run, no such checkpoint, or it is damaged. ConfigError: an override that cannot be.
    """
    run = runs.open_run(run_dir)
    config = configs.override(run.config, overrides, "postprocess")
    found = runs.find_checkpoint(run.path, checkpoint)
    if found is None:
        raise DataError(f"{shown(run_dir)} has no checkpoint")
    if write_line:
        for name in found.skipped:
            write_line(f"checkpoint {name} incomplete, using {found.path.name}")
        kind = f" ({averaging.name(found.weights)} weights)" if runs.AVERAGE in found.state["files"] else ""
        write_line(f"{shown(run.path)}: {found.path.name}{kind}, {run.config.model.backbone}")
    detector = build.build(config, load_weights=False)
    checkpoints.load_weights(found, detector.model)
    return Predictor(detector.model, detector.anchors, config, run.label_map)


def demo(
    run_dir,
    input,
    output=None,
    checkpoint="latest",
    score_threshold=0.5,
    overrides=(),
    write_line=None,
    progress=None,
):
    """Detects in an image or a folder of images, and writes them with boxes drawn.

    Args:
      run_dir: run directory.
      input: image file or folder.
      output: picture to write (folder for a folder); by default INPUT_detected beside the input.
      checkpoint: "latest", "best" or "step-N".
      score_threshold: draw detections from this score on.
      overrides: "postprocess.key=value" texts that replace the run's settings.
      write_line: function (text) that is told which checkpoint was taken, or None.
      progress: function (done, total), or None.

    Returns:
      dict: images, score_threshold, results (per image its file, output, detections [name, score, x0, y0, x1, y1],
      and best_below: the best one where none reaches the threshold, else None), and skipped: one line for each
      file of a folder that is no usable image.
    """
    pairs = _outputs(Path(input), Path(output) if output else None)
    for _, target in pairs:
        drawing.check_format(target)
    predictor = load(run_dir, checkpoint, write_line, overrides)
    rows, skipped = [], []
    for done, (source, target) in enumerate(pairs, 1):
        try:
            found = predictor(source)
        except DataError as error:
            skipped.append(error)
            continue
        fileio.make_directory(target.parent)
        predictor.save(target, source, found, score_threshold)
        rows.append({"file": shown(source), "output": shown(target), **_rows(found, predictor, score_threshold)})
        if progress:
            progress(done, len(pairs))
    if not rows:
        raise skipped[0]
    skipped = [str(error) for error in skipped]
    return {"images": len(rows), "score_threshold": score_threshold, "results": rows, "skipped": skipped}


def _rows(found, predictor, score_threshold):
    names = [predictor.label_map.name(class_id) for class_id in found.classes]
    rows = [[name, float(s), *map(float, box)] for name, s, box in zip(names, found.scores, found.boxes)]
    count = len(found.above(score_threshold))  # best first
    return {"detections": rows[:count], "best_below": rows[0] if rows and not count else None}


def _outputs(source, target):
    """The (input, output) paths of a demo; never an input as its own output."""
    if not source.exists():
        raise DataError(f"no such file: {shown(source)}")
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if _is_image(file))
        if not files:
            raise DataError(f"no images in {shown(source)}")
        folder = target or source.with_name(source.name + "_detected")
        stems = collections.Counter(file.stem for file in files)
        names = [file.stem if stems[file.stem] == 1 else file.name for file in files]  # a.jpg beside a.png
        pairs = [(file, folder / (name + ".jpg")) for file, name in zip(files, names)]
    else:
        pairs = [(source, target or source.with_name(source.stem + "_detected.jpg"))]
    for file, picture in pairs:
        if picture.resolve() == file.resolve():
            raise ConfigError(f"the output would overwrite the input: {shown(file)}")
    return pairs


def _is_image(file):
    return file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
