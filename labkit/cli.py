"""The command line: `labkit run` and the other commands, which `labkit --help` lists.

Exit codes: 2 for bad input, with one message on standard error; 1 for a run that breaks off, and for `doctor` when a run would
fail; 75 (EX_TEMPFAIL) for a run that was asked to stop and has saved a checkpoint.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from labkit import cli_commands
from labkit.errors import LabError, NotebookError, Stopped, Terminated, file_trouble

TEMPORARY_FAILURE = 75
"""`os.EX_TEMPFAIL`, which Windows does not know."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(_escape_negative_values(sys.argv[1:] if arguments is None else arguments))
    _escape_unencodable(json_text=getattr(options, "json", False))
    try:
        return options.command(options) or 0
    except LabError as error:
        return _fail(str(error), 2)
    except NotebookError as error:
        return _fail(str(error), 2 if error.user_error else 1)
    except Stopped as stop:
        return _fail(str(stop), TEMPORARY_FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the newest checkpoint", 130)
    except Terminated as end:
        return _fail(f"ended by {end.signal}; the same command goes on from the newest checkpoint", int(end.code or 1))
    except OSError as error:
        if (text := file_trouble(error)) is None:
            raise
        return _fail(text, 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE) else 2)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # its reader may have gone
        sys.stderr.write(f"labkit: {message}\n")
        sys.stderr.flush()
    return code


def _escape_negative_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with a blank before each negative number behind `-p NAME`: argparse takes -1e-4 for an option.

    >>> _escape_negative_values(["run", "p.yaml", "-p", "learning_rate", "-1e-4"])
    ['run', 'p.yaml', '-p', 'learning_rate', ' -1e-4']
    """
    escaped = list(arguments)
    for k in range(2, len(escaped)):
        if escaped[k - 2] == "-p" and re.match(r"-\.?(\d|inf|nan)", escaped[k]):
            escaped[k] = " " + escaped[k]
    return escaped


def _escape_unencodable(json_text: bool) -> None:
    """Escape characters that a stream's encoding lacks (ASCII, or a file name that is not UTF-8), where Python would raise."""
    codecs.register_error("labkit_json", _json_escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="labkit_json" if json_text else "replace")


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: the JSON escapes of characters that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _path(text: str) -> str:
    """A path of the command line; a shell leaves `~` as it is behind an equals sign."""
    return os.path.expanduser(text)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("params", type=_path, help="YAML file, such as params/embedded.yaml")
    _add_named(parser)


def _add_named(parser: argparse.ArgumentParser, example: str = "rewards FILE.py:NAME=0.5") -> None:
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides",
                        help=f"a parameter, such as {example}, which goes before all others; "
                        "may be given several times")  # fmt: skip
    parser.add_argument("--protocol", metavar="NAME", help="frames and pixels as a benchmark's owners show them: timelens, "
                        "timelens2, timelens2-ego4d, timer1, nextgqa")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labkit", description="A lab for video grounding with verifiable anchors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    new = commands.add_parser("new", help="lay out a project: the notebooks and the params files, to be changed")
    new.add_argument("folder", type=_path, help="folder to write to")
    new.set_defaults(command=cli_commands.new)

    run = commands.add_parser("run", help="run the five notebooks of a params file, or go on with a run")
    _add_overrides(run)
    run.set_defaults(command=cli_commands.run)

    campaign = commands.add_parser(
        "campaign", help="run several params files over several seeds, unattended; go on with what is not finished"
    )
    campaign.add_argument(
        "params",
        type=_path,
        nargs="+",
        metavar="FILE",
        help="params files, or a folder of them, such as params/controls",
    )
    campaign.add_argument("--seeds", default="0,1,2,3,4", metavar="N,N,...", help="seeds (default 0,1,2,3,4)")
    campaign.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    campaign.add_argument(
        "--time",
        default="24:00:00",
        help="time limit of a run, after which it is ended and named as failed (24:00:00)",
    )
    _add_named(campaign)
    campaign.set_defaults(command=cli_commands.campaign)

    doctor = commands.add_parser(
        "doctor",
        help="check environment, model, data and videos before a run; estimate memory, hours, disk",
    )
    doctor.add_argument("params", type=_path, nargs="?", help="YAML file, such as params/embedded.yaml")
    _add_named(doctor)
    doctor.add_argument("--clock", type=_path, metavar="VIDEO", help="instead: which of its seconds a model is shown and told, by "
                        "labkit, transformers, qwen-vl-utils, vLLM, lmms-eval")  # fmt: skip
    doctor.add_argument("--model", type=_path, help="with --clock: shipped weights, a folder, a hub id or a family such as "
                        "qwen2_5_vl (default: every family that is told seconds)")  # fmt: skip
    doctor.add_argument("--html", type=_path, metavar="FILE", help="with --clock: write a page with the picture")
    doctor.add_argument("--quick", action="store_true", help="open no video and measure nothing")
    doctor.add_argument("--gpu", metavar="NAMExN", help="estimate memory and hours on these GPUs, such as h100x8, by their data "
                        "sheet; the model and the data need not be here")  # fmt: skip
    doctor.add_argument("--rehearse", action="store_true", help="do every stage for one step, all real but the model's depth, "
                        "width and weights: its config and tokenizer suffice")  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="everything, for a program")
    doctor.set_defaults(command=cli_commands.doctor)

    results = commands.add_parser(
        "results",
        help="every stage's figures at a glance, true words among them; of several runs over seeds, paired, and with what differs",
    )
    results.add_argument("folders", type=_path, nargs="+", metavar="folder",
                         help="a run's directory, such as outputs/embedded, or several to compare, such as outputs/*")  # fmt: skip
    results.add_argument("--json", action="store_true", help="all figures, for a program")
    results.set_defaults(command=cli_commands.results)

    report = commands.add_parser("report", help="a run as HTML files that need neither kernel nor network")
    report.add_argument("folder", type=_path, help="a run's directory, such as outputs/embedded")
    report.add_argument("-o", "--output", type=_path, metavar="FOLDER",
                        help="folder for the files (default: the run's own, or RUN-report here where that is read-only)")  # fmt: skip
    report.set_defaults(command=cli_commands.report)

    publish = commands.add_parser("publish", help="a small copy of a run with pictures only, for GitHub")
    publish.add_argument("run", type=_path, help="a run's directory, such as outputs/embedded")
    publish.add_argument("folder", type=_path, help="folder to write to, such as outputs/example")
    publish.set_defaults(command=cli_commands.publish)

    export = commands.add_parser(
        "export",
        help="a run's kept traces for other trainers, its model for other programs or the hub, or its figures alone",
    )
    export.add_argument("folder", type=_path, help="a run's directory, such as outputs/embedded")
    export.add_argument("--traces", type=_path, metavar="FILE", help="write the kept traces as SFT data")
    export.add_argument("--format", choices=("jsonl", "trl", "swift", "llamafactory"), default="jsonl",
                        help="who reads the traces (default jsonl, which a run's `traces` takes)")  # fmt: skip
    export.add_argument(
        "--model", type=_path, metavar="DIR", help="write a stage's model whole: adapters merged, with a card"
    )
    export.add_argument("--stage", choices=("grpo", "sft", "grpo_final"), default="grpo_final",
                        help="whose model it is (default grpo_final)")  # fmt: skip
    export.add_argument(
        "--hub", metavar="OWNER/NAME", help="push the model and its card there; private unless --public is given"
    )
    export.add_argument("--figures", type=_path, metavar="DIR", help="a small copy of a finished run, or of all in a folder of runs: "
                        "tables and budgets of another machine count it")  # fmt: skip
    export.add_argument("--public", action="store_true", help="let a repository that is made be seen by all")
    export.set_defaults(command=cli_commands.export)
    _add_models(commands)

    score = commands.add_parser(
        "score", help="score any model's predictions: metrics with intervals, baselines, protocol card"
    )
    score.add_argument("predictions", type=_path, nargs="+", help="JSON Lines of qid and text, or of qid and windows; or what "
                       "Time-R1, TimeLens, lmms-eval and others wrote; of several a row each, compared with the first")  # fmt: skip
    score.add_argument("--moments", type=_path, required=True, metavar="FILE_OR_NAME",
                       help="annotation file, or a name such as charades-sta/test")  # fmt: skip
    score.add_argument("--videos", type=_path, metavar="DIR", help="folder of the videos")
    score.add_argument("--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote the file, or "
                       "else labkit); `all` for every one, `qvhighlights` not to cut windows to the video")  # fmt: skip
    score.add_argument("--train", type=_path, metavar="FILE_OR_NAME", help="training set, for two more baselines")
    score.add_argument(
        "--against", type=_path, metavar="PREDICTIONS", help="another model's predictions to compare with"
    )
    score.add_argument("--json", action="store_true", help="everything, for a program")
    score.set_defaults(command=cli_commands.score)

    explore = commands.add_parser("explore", help="look at any models' predictions, side by side over the video")
    explore.add_argument(
        "predictions", type=_path, nargs="+", metavar="FILE", help="predictions, as `labkit score` takes them"
    )
    explore.add_argument("--moments", type=_path, required=True, metavar="FILE_OR_NAME",
                         help="annotation file, or a name such as charades-sta/test")  # fmt: skip
    explore.add_argument("--videos", type=_path, metavar="DIR", help="folder of the videos")
    explore.add_argument(
        "--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote each file)"
    )
    explore.add_argument(
        "--html", type=_path, metavar="OUT", help="page to write, which needs neither kernel nor network"
    )
    explore.set_defaults(command=cli_commands.explore)

    moments = commands.add_parser(
        "moments", help="read a benchmark or an annotation file, and say what is wrong in it"
    )
    moments.add_argument("source", type=_path, metavar="NAME_OR_PATH", help="such as charades-sta/test, or a file")
    moments.add_argument("--videos", type=_path, metavar="DIR", help="folder of the videos (default: beside it)")
    moments.add_argument("--durations", type=_path, metavar="CSV", help="columns id and length, for rows without")
    moments.add_argument("--write", type=_path, metavar="FILE", help="write the usable moments")
    moments.add_argument("--form", default="labkit", help="form to write in: labkit's own jsonl, or timelens-bench, which "
                         "holds one span a query (default labkit)")  # fmt: skip
    moments.add_argument("--list", nargs="?", const="", metavar="KIND", dest="listing",
                         help="list what was found, or what was found of one kind")  # fmt: skip
    moments.add_argument(
        "--as-set", action="store_true", help="write moments that ask for all windows of a query as one answer"
    )
    moments.add_argument("--strict", action="store_true", help="stop at the first fault")
    moments.set_defaults(command=cli_commands.moments)

    world = commands.add_parser("world", help="write clips and queries of the embedded world")
    world.add_argument("folder", type=_path, help="folder to write to")
    for split, clips in (("train", 300), ("validation", 40), ("test", 150)):
        note = f"clips, about 4 queries each (default {clips})"
        world.add_argument(f"--{split}", type=int, default=clips, help=note)
    world.add_argument("--seed", type=int, default=0, help="world of that number (default 0)")
    world.add_argument(
        "--task", choices=("grounding", "gqa"), default="grounding", help="what is asked (default grounding)"
    )
    world.add_argument("--edition", type=int, default=2, choices=(1, 2, 3),
                       help="2: half of the queries take two looks (default); 1: one look is enough; 3: half of them are for "
                            "what happens twice")  # fmt: skip
    world.set_defaults(command=cli_commands.world)

    base = commands.add_parser("base", help="train the embedded base anew, about ten minutes on one CPU core")
    base.add_argument("folder", type=_path, help="folder to write to; must not exist")
    base.add_argument("--seed", type=int, default=0, help="seed of weights and training targets (default 0)")
    base.add_argument("--name", choices=("embedded-2", "embedded", "embedded-gqa"), default="embedded-2",
                      help="which of the shipped ones (default embedded-2)")  # fmt: skip
    base.add_argument("--family", default="qwen2_5_vl", help="of an untrained model (default qwen2_5_vl)")
    base.add_argument(
        "--untrained", action="store_true", help="in seconds: random weights that only know how a chain is written"
    )
    base.set_defaults(command=cli_commands.base)
    _add_jobs(commands)
    return parser


def _add_models(commands: Any) -> None:
    """What is done with any model, without a run."""
    ask = commands.add_parser(
        "ask", help="ask a model when a sentence happens in a video, and see its chain over the video"
    )
    ask.add_argument("video", type=_path, help="a video file")
    ask.add_argument("sentence", help="what to look for, in quotes")
    ask.add_argument("--model", type=_path, default="embedded-2",
                     help="shipped weights, a folder or a hub id (default embedded-2, which knows only its toy world)")  # fmt: skip
    ask.add_argument(
        "--samples", type=int, default=0, metavar="N", help="chains to sample beside the greedy one (default 0)"
    )
    ask.add_argument(
        "--html", type=_path, metavar="FILE", help="write a page that works offline, the video's frames in it"
    )
    ask.set_defaults(command=cli_commands.ask)

    evaluate = commands.add_parser(
        "evaluate", help="a model on a benchmark: answers, score, protocol, published figures"
    )
    evaluate.add_argument("model", type=_path, help="shipped weights, a folder (also of a LoRA adapter) or a hub id")
    evaluate.add_argument("--json", action="store_true", help="the score alone, for a program")
    evaluate.set_defaults(command=cli_commands.evaluate)
    interventions = commands.add_parser(
        "interventions",
        help="do anchors cause the answer? anchors forbidden, forced, edited; their frames hidden, shuffled",
    )
    interventions.add_argument("model", type=_path, metavar="RUN_OR_MODEL",
                               help="a run's folder, such as outputs/embedded, or a model as `labkit evaluate` takes it")  # fmt: skip
    interventions.add_argument("--stage", choices=("base", "grpo", "sft", "grpo_final"), default="grpo_final",
                               help="of a run, whose model it is (default grpo_final)")  # fmt: skip
    interventions.add_argument(
        "--shifts", default="1,2", metavar="SECONDS", help="how far anchors are shifted, both ways (default 1,2)"
    )
    interventions.add_argument("--json", action="store_true", help="all figures, for a program")
    interventions.set_defaults(command=cli_commands.interventions)
    for parser in (evaluate, interventions):
        parser.add_argument("--moments", type=_path, required=parser is evaluate, default="", metavar="NAME_OR_FILE",
                            help="such as charades-sta/test, an annotation file, or world-2/test for the embedded world")  # fmt: skip
        parser.add_argument(
            "--videos", type=_path, metavar="DIR", help="folder of the videos (default: videos beside the file)"
        )
        parser.add_argument(
            "--present", action="store_true", help="ask only about the videos that are there, and say how many"
        )
        parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask the first so many questions")
        parser.add_argument(
            "--processes", metavar="N", help="processes that share the work, a GPU each; 0 is one for each GPU"
        )
        parser.add_argument("-o", "--output", type=_path, metavar="FOLDER",
                            help="folder for all, in which the same command goes on (default: outputs/evaluate-...)")  # fmt: skip
    for parser in (ask, evaluate, interventions):
        parser.add_argument(
            "--prompt",
            metavar="PROMPT",
            help="a template's name, a text file, or the text itself with {query} in it "
            "(default: anchors; of embedded models query)",
        )
        _add_named(parser, "max_frames 32")


def _add_jobs(commands: Any) -> None:
    submit = commands.add_parser("submit", help="give a run, or a sweep of runs, to SLURM as a job for all notebooks")
    _add_overrides(submit)
    submit.add_argument("--sweep", action="append", default=[], metavar="NAME=VALUE,VALUE,...",
                        help="a run for each value, as a job array; several sweeps are combined")  # fmt: skip
    submit.add_argument(
        "--local", action="store_true", help="the same on this machine, in the background, without SLURM"
    )
    submit.add_argument("--time", default="24:00:00",
                        help="time limit of a job, after which it is requeued (24:00:00); with --local the jobs of a sweep "
                        "take turns and share the sum of their limits")  # fmt: skip
    submit.add_argument("--nodes", type=int, default=1, help="nodes of each job (default 1)")
    submit.add_argument("--gpus", type=int, default=0,
                        help="GPUs of each node, a process for each unless -p processes is given (default 0)")  # fmt: skip
    submit.add_argument("--cpus", type=int, help="CPU cores for each GPU; of each node when it has none")
    submit.add_argument("--memory", type=float, metavar="GB", help="memory of each node")
    submit.add_argument("--partition")
    submit.add_argument("--account")
    submit.add_argument("--qos")
    submit.add_argument("--slurm", action="append", default=[], metavar="NAME=VALUE",
                        help="any other option of sbatch, such as constraint=a100; may be given several times")  # fmt: skip
    submit.add_argument("--notice", type=int, default=300, metavar="SECONDS",
                        help="seconds before the limit at which the run saves and stops (default 300)")  # fmt: skip
    submit.add_argument("--requeues", type=int, default=20,
                        help="how often a job may reach its limit (default 20; with --local 5 at most)")  # fmt: skip
    submit.set_defaults(command=cli_commands.submit)

    status = commands.add_parser(
        "status", help="how far a run is: stages, step, time left, job, last lines of its log"
    )
    status.add_argument("folder", type=_path, help="a run's directory, or a folder of runs, such as outputs")
    status.add_argument("--json", action="store_true", help="everything of one run, for a program")
    status.set_defaults(command=cli_commands.status)


if __name__ == "__main__":
    raise SystemExit(main())
