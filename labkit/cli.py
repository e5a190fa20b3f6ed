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
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError, NotebookError, Stopped, Terminated, file_trouble
from labkit.progress import say

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


_Function = Callable[[argparse.Namespace], Any]
_Option = tuple[list[str], dict[str, Any]]
"""An option's names, and how argparse takes it."""
_COMMANDS: dict[str, tuple[_Function, tuple[_Option, ...]]] = {}
"""By name, in the order in which `labkit --help` lists them."""


def _command(*options: _Option) -> Callable[[_Function], _Function]:
    """Make a function a command of its name, with its docstring as the help."""

    def register(function: _Function) -> _Function:
        _COMMANDS[function.__name__] = function, options
        return function

    return register


def _option(names: str, **settings: Any) -> _Option:
    return names.split(), settings


def _switch(name: str, help: str) -> _Option:
    return _option(name, action="store_true", help=help)


def _file(names: str, help: str, **settings: Any) -> _Option:
    return _option(names, type=_path, help=help, **settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labkit", description="A lab for video grounding with verifiable anchors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, options) in _COMMANDS.items():
        words = (function.__doc__ or "").rstrip(".")
        command = commands.add_parser(name, help=words[0].lower() + words[1:])
        for names, settings in options:
            command.add_argument(*names, **settings)
        command.set_defaults(command=function)
    return parser


def _named(example: str = "rewards FILE.py:NAME=0.5") -> list[_Option]:
    """Options for parameters by name."""
    return [
        _option("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides",
                help=f"a parameter, such as {example}, which goes before all others; may be given several times"),
        _option("--protocol", metavar="NAME", help="frames and pixels as a benchmark's owners show them: timelens, "
                "timelens2, timelens2-ego4d, timer1, nextgqa"),
    ]  # fmt: skip


def _asked(**moments: Any) -> list[_Option]:
    """Options of what a model is asked; `moments` are settings of --moments."""
    return [
        _file("--moments", "such as charades-sta/test, an annotation file, or world-2/test for the embedded world",
              default="", metavar="NAME_OR_FILE", **moments),
        _file("--videos", "folder of the videos (default: videos beside the file)", metavar="DIR"),
        _switch("--present", "ask only about the videos that are there, and say how many"),
        _option("--limit", type=int, default=0, metavar="N", help="ask the first so many questions"),
        _option("--processes", metavar="N", help="processes that share the work, a GPU each; 0 is one for each GPU"),
        _file("-o --output", "folder for all, in which the same command goes on (default: outputs/evaluate-...)",
              metavar="FOLDER"),
        *_PROMPTED,
    ]  # fmt: skip


_PARAMS = _file("params", "YAML file, such as params/embedded.yaml")
_FOLDER = _file("folder", "a run's directory, such as outputs/embedded")
_NEW_FOLDER = _file("folder", "folder to write to")
_MOMENTS = _file(
    "--moments", "annotation file, or a name such as charades-sta/test", required=True, metavar="FILE_OR_NAME"
)
_VIDEOS = _file("--videos", "folder of the videos", metavar="DIR")
_JSON = _switch("--json", "everything, for a program")
_ALL_FIGURES = _switch("--json", "all figures, for a program")
_PROMPTED = [
    _option("--prompt", metavar="PROMPT", help="a template's name, a text file, or the text itself with {query} in it "
            "(default: anchors; of embedded models query)"),
    *_named("max_frames 32"),
]  # fmt: skip


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The parameters given by name, those of a protocol below them."""
    from labkit.params import protocol_params

    shown = {name: str(value) for name, value in protocol_params(options.protocol).items()}
    return shown | {name: value.lstrip() for name, value in options.overrides}


def _with_options(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The overrides, with the parameters that have an option of their own."""
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return overrides(options) | given


def _json_alone(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """With `--json`, what is printed on the way, progress and what own code prints, goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def _holds(stream: Any, text: str) -> bool:
    """Whether a stream's encoding can write all of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


@_command(_NEW_FOLDER)
def new(options: argparse.Namespace) -> None:
    """Lay out a project: the notebooks and the params files, to be changed."""
    from labkit.runs.notebooks import lay_out

    files = lay_out(options.folder)
    notebooks = sum(file.suffix == ".ipynb" for file in files)
    say(f"{options.folder}: {notebooks} notebooks and {len(files) - notebooks} params files; go on with")
    say(f"  cd {shlex.quote(options.folder)} && labkit run params/embedded.yaml")


@_command(_PARAMS, *_named())
def run(options: argparse.Namespace) -> None:
    """Run the five notebooks of a params file, or go on with a run."""
    from labkit.runs.notebooks import run_notebooks

    run_notebooks(options.params, overrides(options))


@_command(
    _file("params", "params files, or a folder of them, such as params/controls", nargs="+", metavar="FILE"),
    _option("--seeds", default="0,1,2,3,4", metavar="N,N,...", help="seeds (default 0,1,2,3,4)"),
    _option("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)"),
    _option("--time", default="24:00:00", help="time limit of a run, after which it is ended and named as failed (24:00:00)"),
    *_named(),
)  # fmt: skip
def campaign(options: argparse.Namespace) -> int:
    """Run several params files over several seeds, unattended; go on with what is not finished."""
    from labkit.runs.campaign import run_campaign

    o = options
    if not all(seed.strip().isdecimal() for seed in o.seeds.split(",")):
        raise LabError(f"seeds: '{o.seeds}' must be whole numbers, such as 0,1,2")
    result = run_campaign(
        o.params, [int(seed) for seed in o.seeds.split(",")], overrides(o), jobs=o.jobs, time_limit=o.time, say=say
    )
    say(f"{len(result.finished)} runs are finished, {len(result.failed)} failed" + ":" * bool(result.failed))
    for name, why in result.failed.items():
        say(f"  {name}: {why}")
    return 1 if result.failed else 0


@_command(
    _file("params", "YAML file, such as params/embedded.yaml", nargs="?"),
    *_named(),
    _file("--clock", "instead: which of its seconds a model is shown and told, by labkit, transformers, qwen-vl-utils, vLLM, "
          "lmms-eval", metavar="VIDEO"),
    _file("--model", "with --clock: shipped weights, a folder, a hub id or a family such as qwen2_5_vl (default: every family "
          "that is told seconds)"),
    _file("--html", "with --clock: write a page with the picture", metavar="FILE"),
    _switch("--quick", "open no video and measure nothing"),
    _option("--gpu", metavar="NAMExN", help="estimate memory and hours on these GPUs, such as h100x8, by their data sheet; the "
            "model and the data need not be here"),
    _switch("--rehearse", "do every stage for one step, all real but the model's depth, width and weights: its config and "
            "tokenizer suffice"),
    _JSON,
)  # fmt: skip
def doctor(options: argparse.Namespace) -> int:
    """Check environment, model, data and videos before a run; estimate memory, hours, disk."""
    from labkit.doctor.checks import run_doctor

    o, said = options, list[str]()
    if o.clock:
        return _clock(o)
    if lost := [name for name in ("model", "html") if getattr(o, name)]:
        raise LabError(f"doctor: --{lost[0]} goes with --clock VIDEO; a run's model stands in its params file")
    if o.gpu and o.rehearse:
        raise LabError("doctor: --rehearse runs here and --gpu plans for elsewhere; give one of them")
    if not o.params:
        raise LabError("doctor: give a params file, such as params/embedded.yaml, or --clock VIDEO")
    with _json_alone(o):
        code = run_doctor(o.params, overrides(o), said.append, quick=o.quick, as_json=o.json,
                          rehearsed=o.rehearse, gpu=o.gpu or "")  # fmt: skip
    say("\n".join(said))
    return code


def _clock(options: argparse.Namespace) -> int:
    """Compare the seconds that a model is told."""
    from labkit.doctor.clock import audit_clock
    from labkit.files import project_root
    from labkit.params import Params, read_params
    from labkit.runs.evaluate_model import REAL_MODEL

    o = options
    given = overrides(o)
    params = read_params(o.params, given) if o.params else Params.build({**REAL_MODEL, **given})
    audit = audit_clock(o.clock, params, o.model or (params.model if o.params else None), project_root())
    if o.html:
        audit.save(o.html)
    say(json.dumps(audit.as_dict(), indent=1) if o.json else str(audit))
    return 0


@_command(
    _file("folders", "a run's directory, such as outputs/embedded, or several to compare, such as outputs/*", nargs="+",
          metavar="folder"),
    _ALL_FIGURES,
)  # fmt: skip
def results(options: argparse.Namespace) -> None:
    """Every stage's figures at a glance, true words among them; of several runs over seeds, paired, and with what differs."""
    from labkit.runs.results import read_results, results_text

    first, *others = options.folders
    if not others and not (Path(first).is_dir() and any(Path(first).glob("*/manifest.json"))):
        results = read_results(first)
        say(json.dumps(results, indent=1) if options.json else results_text(results))
        return
    from labkit.runs.compare import compare_runs

    comparison = compare_runs(options.folders)
    say(json.dumps(comparison.as_dict(), indent=1) if options.json else str(comparison))


@_command(
    _FOLDER,
    _file("-o --output", "folder for the files (default: the run's own, or RUN-report here where that is read-only)",
          metavar="FOLDER"),
)  # fmt: skip
def report(options: argparse.Namespace) -> None:
    """A run as HTML files that need neither kernel nor network."""
    from labkit.views.report.report import report_text, write_report

    say(report_text(write_report(options.folder, options.output)))


@_command(
    _file("run", "a run's directory, such as outputs/embedded"),
    _file("folder", "folder to write to, such as outputs/example"),
)  # fmt: skip
def publish(options: argparse.Namespace) -> None:
    """A small copy of a run with pictures only, for GitHub."""
    from labkit.views.report.markdown import publish

    files = publish(options.run, options.folder)
    say(f"{options.folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


@_command(
    _FOLDER,
    _file("--traces", "write the kept traces as SFT data", metavar="FILE"),
    _option("--format", choices=("jsonl", "trl", "swift", "llamafactory"), default="jsonl",
            help="who reads the traces (default jsonl, which a run's `traces` takes)"),
    _file("--model", "write a stage's model whole: adapters merged, with a card", metavar="DIR"),
    _option("--stage", choices=("grpo", "sft", "grpo_final"), default="grpo_final",
            help="whose model it is (default grpo_final)"),
    _option("--hub", metavar="OWNER/NAME", help="push the model and its card there; private unless --public is given"),
    _file("--figures", "a small copy of a finished run, or of all in a folder of runs: tables and budgets of another machine "
          "count it", metavar="DIR"),
    _switch("--public", "let a repository that is made be seen by all"),
)  # fmt: skip
def export(options: argparse.Namespace) -> None:
    """A run's kept traces for other trainers, its model for other programs or the hub, or its figures alone."""
    from labkit.runs.export import carry, export, export_traces

    o = options
    if not (o.traces or o.model or o.hub or o.figures):
        raise LabError(
            "export: say what is to leave the run: --traces FILE, --model DIR, --hub OWNER/NAME or --figures DIR"
        )
    if o.figures:
        say(carry(o.folder, o.figures))
    if o.traces:
        say(export_traces(o.folder, o.traces, o.format))
    if o.model or o.hub:
        export(o.folder, o.model, o.stage, hub=o.hub, public=o.public, say=say)


@_command(
    _file("video", "a video file"),
    _option("sentence", help="what to look for, in quotes"),
    _file("--model", "shipped weights, a folder or a hub id (default embedded-2, which knows only its toy world)",
          default="embedded-2"),
    _option("--samples", type=int, default=0, metavar="N", help="chains to sample beside the greedy one (default 0)"),
    _file("--html", "write a page that works offline, the video's frames in it", metavar="FILE"),
    *_PROMPTED,
)  # fmt: skip
def ask(options: argparse.Namespace) -> None:
    """Ask a model when a sentence happens in a video, and see its chain over the video."""
    from labkit.asker import ask

    o = options
    if o.html and not Path(o.html).absolute().parent.is_dir():
        raise LabError(f"'{o.html}' cannot be written: its folder is not there; make it, or give another file")
    asked = ask(o.video, o.sentence, model=o.model, samples=o.samples, **_with_options(o, "prompt"))
    if o.html:
        asked.save(o.html)
    say(asked.text(min(120, shutil.get_terminal_size((100, 24)).columns), not _holds(sys.stdout, "█▒·–“”")))
    if o.html:
        say(f"\n{o.html}: the same as a page, with the video's frames in it")


@_command(
    _file("model", "shipped weights, a folder (also of a LoRA adapter) or a hub id"),
    _switch("--json", "the score alone, for a program"),
    *_asked(required=True),
)  # fmt: skip
def evaluate(options: argparse.Namespace) -> None:
    """A model on a benchmark: answers, score, protocol, published figures."""
    from labkit.runs.evaluate_model import evaluate_model, evaluation_text

    o = options
    with _json_alone(o):
        evaluated = evaluate_model(
            o.model, o.moments, videos=o.videos, present=o.present, limit=o.limit, folder=o.output,
            overrides=_with_options(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(evaluated.as_dict(), indent=1) if o.json else evaluation_text(evaluated))


@_command(
    _file("model", "a run's folder, such as outputs/embedded, or a model as `labkit evaluate` takes it", metavar="RUN_OR_MODEL"),
    _option("--stage", choices=("base", "grpo", "sft", "grpo_final"), default="grpo_final",
            help="of a run, whose model it is (default grpo_final)"),
    _option("--shifts", default="1,2", metavar="SECONDS", help="how far anchors are shifted, both ways (default 1,2)"),
    _ALL_FIGURES,
    *_asked(),
)  # fmt: skip
def interventions(options: argparse.Namespace) -> None:
    """Do anchors cause the answer? anchors forbidden, forced, edited; their frames hidden, shuffled."""
    from labkit.runs.intervene import both_ways, intervene

    o = options
    with _json_alone(o):
        found = intervene(
            o.model, o.moments, stage=o.stage, shifts=both_ways(o.shifts), videos=o.videos, present=o.present, limit=o.limit,
            folder=o.output, overrides=_with_options(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(found.as_dict(), indent=1) if o.json else str(found))


@_command(
    _file("predictions", "JSON Lines of qid and text, or of qid and windows; or what Time-R1, TimeLens, lmms-eval and others "
          "wrote; of several a row each, compared with the first", nargs="+"),
    _MOMENTS,
    _VIDEOS,
    _option("--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote the file, or else labkit); "
            "`all` for every one, `qvhighlights` not to cut windows to the video"),
    _file("--train", "training set, for two more baselines", metavar="FILE_OR_NAME"),
    _file("--against", "another model's predictions to compare with", metavar="PREDICTIONS"),
    _JSON,
)  # fmt: skip
def score(options: argparse.Namespace) -> None:
    """Score any model's predictions: metrics with intervals, baselines, protocol card."""
    from labkit.scoring.score_table import score_text

    o = options
    say(score_text(o.predictions, o.moments, videos=o.videos, rules=o.rules, train=o.train, against=o.against,
                    as_json=o.json))  # fmt: skip


@_command(
    _file("predictions", "predictions, as `labkit score` takes them", nargs="+", metavar="FILE"),
    _MOMENTS,
    _VIDEOS,
    _option("--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote each file)"),
    _file("--html", "page to write, which needs neither kernel nor network", metavar="OUT"),
)  # fmt: skip
def explore(options: argparse.Namespace) -> None:
    """Look at any models' predictions, side by side over the video."""
    from labkit.views.side_by_side import explore_files

    o = options
    plain = not _holds(sys.stdout, "█▒·")
    say(explore_files(o.predictions, o.moments, videos=o.videos, rules=o.rules, html=o.html, ascii_only=plain))


@_command(
    _file("source", "such as charades-sta/test, or a file", metavar="NAME_OR_PATH"),
    _file("--videos", "folder of the videos (default: beside it)", metavar="DIR"),
    _file("--durations", "columns id and length, for rows without", metavar="CSV"),
    _file("--write", "write the usable moments", metavar="FILE"),
    _option("--form", default="labkit", help="form to write in: labkit's own jsonl, or timelens-bench, which holds one span a "
            "query (default labkit)"),
    _option("--list", nargs="?", const="", metavar="KIND", dest="listing",
            help="list what was found, or what was found of one kind"),
    _switch("--as-set", "write moments that ask for all windows of a query as one answer"),
    _switch("--strict", "stop at the first fault"),
)  # fmt: skip
def moments(options: argparse.Namespace) -> None:
    """Read a benchmark or an annotation file, and say what is wrong in it."""
    from labkit.data.benchmarks import moments_text

    o = options
    say(moments_text(o.source, videos=o.videos, durations=o.durations, write=o.write, form=o.form,
                     listing=o.listing, strict=o.strict, as_set=o.as_set))  # fmt: skip


@_command(
    _NEW_FOLDER,
    *(
        _option(f"--{split}", type=int, default=clips, help=f"clips, about 4 queries each (default {clips})")
        for split, clips in (("train", 300), ("validation", 40), ("test", 150))
    ),
    _option("--seed", type=int, default=0, help="world of that number (default 0)"),
    _option("--task", choices=("grounding", "gqa"), default="grounding", help="what is asked (default grounding)"),
    _option("--edition", type=int, default=2, choices=(1, 2, 3), help="2: half of the queries take two looks (default); 1: one "
            "look is enough; 3: half of them are for what happens twice"),
)  # fmt: skip
def world(options: argparse.Namespace) -> None:
    """Write clips and queries of the embedded world."""
    from labkit.embedded.world import write_world

    splits = write_world(
        options.folder, options.train, options.validation, options.test, seed=options.seed, task=options.task,
        edition=options.edition,
    )  # fmt: skip
    say(f"{options.folder}: " + ", ".join(f"{len(moments)} {split} queries" for split, moments in splits.items()))


@_command(
    _file("folder", "folder to write to; must not exist"),
    _option("--seed", type=int, default=0, help="seed of weights and training targets (default 0)"),
    _option("--name", choices=("embedded-2", "embedded", "embedded-gqa"), default="embedded-2",
            help="which of the shipped ones (default embedded-2)"),
    _option("--family", default="qwen2_5_vl", help="of an untrained model (default qwen2_5_vl)"),
    _switch("--untrained", "in seconds: random weights that only know how a chain is written"),
)  # fmt: skip
def base(options: argparse.Namespace) -> None:
    """Train the embedded base anew, about ten minutes on one CPU core."""
    from labkit.embedded.model import write_untrained

    o = options
    if Path(o.folder).exists():
        raise LabError(f"'{o.folder}' exists already; name a folder that does not")
    if o.untrained:
        return write_untrained(Path(o.folder), o.family, o.seed)
    if o.family != "qwen2_5_vl":
        raise LabError(f"the recipe trains a qwen2_5_vl, not a {o.family}; add --untrained for random weights")
    from labkit.embedded.recipes.first_base import train_base
    from labkit.embedded.recipes.second_base import train_second_base

    if o.name == "embedded":
        train_base(o.folder, seed=o.seed, report=say)
    else:
        train_second_base(o.folder, seed=o.seed, report=say, task="gqa" if o.name == "embedded-gqa" else "grounding")


@_command(
    _PARAMS,
    *_named(),
    _option("--sweep", action="append", default=[], metavar="NAME=VALUE,VALUE,...",
            help="a run for each value, as a job array; several sweeps are combined"),
    _switch("--local", "the same on this machine, in the background, without SLURM"),
    _option("--time", default="24:00:00", help="time limit of a job, after which it is requeued (24:00:00); with --local the jobs "
            "of a sweep take turns and share the sum of their limits"),
    _option("--nodes", type=int, default=1, help="nodes of each job (default 1)"),
    _option("--gpus", type=int, default=0,
            help="GPUs of each node, a process for each unless -p processes is given (default 0)"),
    _option("--cpus", type=int, help="CPU cores for each GPU; of each node when it has none"),
    _option("--memory", type=float, metavar="GB", help="memory of each node"),
    *(_option(f"--{name}") for name in ("partition", "account", "qos")),
    _option("--slurm", action="append", default=[], metavar="NAME=VALUE",
            help="any other option of sbatch, such as constraint=a100; may be given several times"),
    _option("--notice", type=int, default=300, metavar="SECONDS",
            help="seconds before the limit at which the run saves and stops (default 300)"),
    _option("--requeues", type=int, default=20,
            help="how often a job may reach its limit (default 20; with --local 5 at most)"),
)  # fmt: skip
def submit(options: argparse.Namespace) -> None:
    """Give a run, or a sweep of runs, to SLURM as a job for all notebooks."""
    from labkit.runs.submit import Resources, submit

    o = options
    if bad := [text for text in o.slurm if not text.partition("=")[2]]:
        raise LabError(f"slurm: '{bad[0]}' must be an option of sbatch and its value, such as constraint=a100")
    resources = Resources(
        time=o.time, nodes=o.nodes, gpus=o.gpus, cpus=o.cpus, memory=o.memory, partition=o.partition,
        account=o.account, qos=o.qos, options=dict(text.split("=", 1) for text in o.slurm), notice=o.notice,
        requeues=o.requeues,
    )  # fmt: skip
    submit(o.params, overrides(o), resources, o.sweep, local=o.local, say=say)


@_command(
    _file("folder", "a run's directory, or a folder of runs, such as outputs"),
    _switch("--json", "everything of one run, for a program"),
)  # fmt: skip
def status(options: argparse.Namespace) -> None:
    """How far a run is: stages, step, time left, job, last lines of its log."""
    from labkit.runs.status import read_status, status_text

    say(json.dumps(read_status(options.folder), indent=1) if options.json else status_text(options.folder))


if __name__ == "__main__":
    raise SystemExit(main())
