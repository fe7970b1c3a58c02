"""ssd-import: other people's weights to a run directory, or to a weights file of a backbone."""

import sys

from absl import flags

from ssd_tf.api import sources
from ssd_tf.cli import runner
from ssd_tf.errors import ConfigError


def define(values):
    """Defines the command's flags."""
    text = {"flag_values": values}
    flags.DEFINE_string("source", None, "What is imported (--list).", **text)
    flags.DEFINE_string("weights", None, "Its file or folder; by default the known file is downloaded.", **text)
    flags.DEFINE_string("run_dir", None, "Run directory to make of a detector.", **text)
    flags.DEFINE_string("output", None, "FILE.weights.h5 to make of a backbone.", **text)
    flags.DEFINE_string(
        "labels", None, "Names of its classes, one a line, or a label map (.pbtxt, .json).", **text
    )
    flags.DEFINE_string(
        "base_url", None, "Download BASE_URL/FILENAME instead of the file at its owner's site.", **text
    )
    flags.DEFINE_bool("list", False, "List the sources: files, licences, published results; and leave.", **text)


def prepare(values):
    """Turns flags into the arguments of api.import_weights.import_weights."""
    runner.required(values, "source")
    if bool(values.run_dir) == bool(values.output):
        raise ConfigError("give either --run_dir (a detector) or --output (a backbone)")
    names = ("source", "weights", "run_dir", "output", "labels", "base_url")
    options = {name: values[name].value for name in names}
    sources.check_options(**options)
    return {**options, "write_line": print, "progress": runner.progress_printer("bytes")}


def show(result):
    """Returns the last lines for people."""
    what = f"{result['source']}: {result['tensors']:,} tensors, {result['parameters']:,} parameters"
    if "output" in result:
        use = f"--set model.backbone={result['backbone']} --set model.weights={result['output']}"
        return f"{what}; to train with them: {use}"
    run_dir = result["run_dir"]
    return (
        f"{what}, {result['classes']:,} classes; the run is in {run_dir}; to train from it: --init_from={run_dir}"
    )


def _show_sources(found):
    return "\n".join(line for source in found for line in _describe(source))


def _describe(source):
    into = f"backbone {source['backbone']}" if source["backbone"] else source["kind"]
    yield f"{source['name']} ({into}): {source['summary']}; {source['licence']}"
    for file in source["downloads"]:
        yield f"    {_describe_file(file)}"
    if not source["downloads"]:
        yield "    no file to download is known: --weights says where it lies"
    for file in source["others"]:
        yield f"    not fetched: {_describe_file(file)}"


def _describe_file(file):
    size = f", {file['size']:,} bytes" if file["size"] else ""
    member = f", {file['member']} in it" if file["member"] else ""
    digest = f", sha256 {file['sha256']}{'...' * (len(file['sha256']) < 64)}" if file["sha256"] else ""
    return f"{file['url']}{size}{member}{digest}"


COMMAND = runner.Command(
    name="ssd-import",
    summary="ssd-import --source=tfjs_coco_ssd --weights=FOLDER --run_dir=runs/coco\n"
    "Makes a run of a detector that somebody else has trained, or a weights file of a backbone.",
    define=define,
    prepare=prepare,
    call="ssd_tf.api.import_weights:import_weights",
    show=show,
    queries={"list": ("ssd_tf.api.sources:describe", _show_sources)},
)


def main():
    """Entry point of the console script."""
    sys.exit(runner.run(COMMAND))
