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
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.command_options import (
    ALL_FIGURES,
    FOLDER,
    JSON,
    MOMENTS,
    NEW_FOLDER,
    PARAMS,
    PROMPTED,
    VIDEOS,
    asked_options,
    command,
    escape_negative_values,
    file_option,
    holds,
    json_alone,
    named,
    option,
    overrides,
    parser,
    switch,
    with_options,
)
from labkit.errors import LabError, NotebookError, Stopped, Terminated, file_trouble
from labkit.progress import say

TEMPORARY_FAILURE = 75
"""`os.EX_TEMPFAIL`, which Windows does not know."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(escape_negative_values(sys.argv[1:] if arguments is None else arguments))
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


@command(NEW_FOLDER)
def new(options: argparse.Namespace) -> None:
    """Lay out a project: the notebooks and the params files, to be changed."""
    from labkit.runs.notebooks import lay_out

    files = lay_out(options.folder)
    notebooks = sum(file.suffix == ".ipynb" for file in files)
    say(f"{options.folder}: {notebooks} notebooks and {len(files) - notebooks} params files; go on with")
    say(f"  cd {shlex.quote(options.folder)} && labkit run params/embedded.yaml")


@command(PARAMS, *named())
def run(options: argparse.Namespace) -> None:
    """Run the five notebooks of a params file, or go on with a run."""
    from labkit.runs.notebooks import run_notebooks

    run_notebooks(options.params, overrides(options))


@command(
    file_option("params", "params files, or a folder of them, such as params/controls", nargs="+", metavar="FILE"),
    option("--seeds", default="0,1,2,3,4", metavar="N,N,...", help="seeds (default 0,1,2,3,4)"),
    option("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)"),
    option("--time", default="24:00:00", help="time limit of a run, after which it is ended and named as failed (24:00:00)"),
    *named(),
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


@command(
    file_option("params", "YAML file, such as params/embedded.yaml", nargs="?"),
    *named(),
    file_option("--clock", "instead: which of its seconds a model is shown and told, by labkit, transformers, qwen-vl-utils, vLLM, "
          "lmms-eval", metavar="VIDEO"),
    file_option("--model", "with --clock: shipped weights, a folder, a hub id or a family such as qwen2_5_vl (default: every family "
          "that is told seconds)"),
    file_option("--html", "with --clock: write a page with the picture", metavar="FILE"),
    switch("--quick", "open no video and measure nothing"),
    option("--gpu", metavar="NAMExN", help="estimate memory and hours on these GPUs, such as h100x8, by their data sheet; the "
            "model and the data need not be here"),
    switch("--rehearse", "do every stage for one step, all real but the model's depth, width and weights: its config and "
            "tokenizer suffice"),
    JSON,
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
    with json_alone(o):
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


@command(
    file_option("folders", "a run's directory, such as outputs/embedded, or several to compare, such as outputs/*", nargs="+",
          metavar="folder"),
    ALL_FIGURES,
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


@command(
    FOLDER,
    file_option("-o --output", "folder for the files (default: the run's own, or RUN-report here where that is read-only)",
          metavar="FOLDER"),
)  # fmt: skip
def report(options: argparse.Namespace) -> None:
    """A run as HTML files that need neither kernel nor network."""
    from labkit.views.report.report import report_text, write_report

    say(report_text(write_report(options.folder, options.output)))


@command(
    file_option("run", "a run's directory, such as outputs/embedded"),
    file_option("folder", "folder to write to, such as outputs/example"),
)  # fmt: skip
def publish(options: argparse.Namespace) -> None:
    """A small copy of a run with pictures only, for GitHub."""
    from labkit.views.report.markdown import publish

    files = publish(options.run, options.folder)
    say(f"{options.folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


@command(
    FOLDER,
    file_option("--traces", "write the kept traces as SFT data", metavar="FILE"),
    option("--format", choices=("jsonl", "trl", "swift", "llamafactory"), default="jsonl",
            help="who reads the traces (default jsonl, which a run's `traces` takes)"),
    file_option("--model", "write a stage's model whole: adapters merged, with a card", metavar="DIR"),
    option("--stage", choices=("grpo", "sft", "grpo_final"), default="grpo_final",
            help="whose model it is (default grpo_final)"),
    option("--hub", metavar="OWNER/NAME", help="push the model and its card there; private unless --public is given"),
    file_option("--figures", "a small copy of a finished run, or of all in a folder of runs: tables and budgets of another machine "
          "count it", metavar="DIR"),
    switch("--public", "let a repository that is made be seen by all"),
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


@command(
    file_option("video", "a video file"),
    option("sentence", help="what to look for, in quotes"),
    file_option("--model", "shipped weights, a folder or a hub id (default embedded-2, which knows only its toy world)",
          default="embedded-2"),
    option("--samples", type=int, default=0, metavar="N", help="chains to sample beside the greedy one (default 0)"),
    file_option("--html", "write a page that works offline, the video's frames in it", metavar="FILE"),
    *PROMPTED,
)  # fmt: skip
def ask(options: argparse.Namespace) -> None:
    """Ask a model when a sentence happens in a video, and see its chain over the video."""
    from labkit.asker import ask

    o = options
    if o.html and not Path(o.html).absolute().parent.is_dir():
        raise LabError(f"'{o.html}' cannot be written: its folder is not there; make it, or give another file")
    asked = ask(o.video, o.sentence, model=o.model, samples=o.samples, **with_options(o, "prompt"))
    if o.html:
        asked.save(o.html)
    say(asked.text(min(120, shutil.get_terminal_size((100, 24)).columns), not holds(sys.stdout, "█▒·–“”")))
    if o.html:
        say(f"\n{o.html}: the same as a page, with the video's frames in it")


@command(
    file_option("model", "shipped weights, a folder (also of a LoRA adapter) or a hub id"),
    switch("--json", "the score alone, for a program"),
    *asked_options(required=True),
)  # fmt: skip
def evaluate(options: argparse.Namespace) -> None:
    """A model on a benchmark: answers, score, protocol, published figures."""
    from labkit.runs.evaluate_model import evaluate_model, evaluation_text

    o = options
    with json_alone(o):
        evaluated = evaluate_model(
            o.model, o.moments, videos=o.videos, present=o.present, limit=o.limit, folder=o.output,
            overrides=with_options(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(evaluated.as_dict(), indent=1) if o.json else evaluation_text(evaluated))


@command(
    file_option("model", "a run's folder, such as outputs/embedded, or a model as `labkit evaluate` takes it", metavar="RUN_OR_MODEL"),
    option("--stage", choices=("base", "grpo", "sft", "grpo_final"), default="grpo_final",
            help="of a run, whose model it is (default grpo_final)"),
    option("--shifts", default="1,2", metavar="SECONDS", help="how far anchors are shifted, both ways (default 1,2)"),
    ALL_FIGURES,
    *asked_options(),
)  # fmt: skip
def interventions(options: argparse.Namespace) -> None:
    """Do anchors cause the answer? anchors forbidden, forced, edited; their frames hidden, shuffled."""
    from labkit.runs.intervene import both_ways, intervene

    o = options
    with json_alone(o):
        found = intervene(
            o.model, o.moments, stage=o.stage, shifts=both_ways(o.shifts), videos=o.videos, present=o.present, limit=o.limit,
            folder=o.output, overrides=with_options(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(found.as_dict(), indent=1) if o.json else str(found))


@command(
    file_option("predictions", "JSON Lines of qid and text, or of qid and windows; or what Time-R1, TimeLens, lmms-eval and others "
          "wrote; of several a row each, compared with the first", nargs="+"),
    MOMENTS,
    VIDEOS,
    option("--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote the file, or else labkit); "
            "`all` for every one, `qvhighlights` not to cut windows to the video"),
    file_option("--train", "training set, for two more baselines", metavar="FILE_OR_NAME"),
    file_option("--against", "another model's predictions to compare with", metavar="PREDICTIONS"),
    JSON,
)  # fmt: skip
def score(options: argparse.Namespace) -> None:
    """Score any model's predictions: metrics with intervals, baselines, protocol card."""
    from labkit.scoring.score_table import score_text

    o = options
    say(score_text(o.predictions, o.moments, videos=o.videos, rules=o.rules, train=o.train, against=o.against,
                    as_json=o.json))  # fmt: skip


@command(
    file_option("predictions", "predictions, as `labkit score` takes them", nargs="+", metavar="FILE"),
    MOMENTS,
    VIDEOS,
    option("--rules", metavar="NAME", help="whose reading rules (default: of the program that wrote each file)"),
    file_option("--html", "page to write, which needs neither kernel nor network", metavar="OUT"),
)  # fmt: skip
def explore(options: argparse.Namespace) -> None:
    """Look at any models' predictions, side by side over the video."""
    from labkit.views.side_by_side import explore_files

    o = options
    plain = not holds(sys.stdout, "█▒·")
    say(explore_files(o.predictions, o.moments, videos=o.videos, rules=o.rules, html=o.html, ascii_only=plain))


@command(
    file_option("source", "such as charades-sta/test, or a file", metavar="NAME_OR_PATH"),
    file_option("--videos", "folder of the videos (default: beside it)", metavar="DIR"),
    file_option("--durations", "columns id and length, for rows without", metavar="CSV"),
    file_option("--write", "write the usable moments", metavar="FILE"),
    option("--form", default="labkit", help="form to write in: labkit's own jsonl, or timelens-bench, which holds one span a "
            "query (default labkit)"),
    option("--list", nargs="?", const="", metavar="KIND", dest="listing",
            help="list what was found, or what was found of one kind"),
    switch("--as-set", "write moments that ask for all windows of a query as one answer"),
    switch("--strict", "stop at the first fault"),
)  # fmt: skip
def moments(options: argparse.Namespace) -> None:
    """Read a benchmark or an annotation file, and say what is wrong in it."""
    from labkit.data.benchmarks import moments_text

    o = options
    say(moments_text(o.source, videos=o.videos, durations=o.durations, write=o.write, form=o.form,
                     listing=o.listing, strict=o.strict, as_set=o.as_set))  # fmt: skip


@command(
    NEW_FOLDER,
    *(
        option(f"--{split}", type=int, default=clips, help=f"clips, about 4 queries each (default {clips})")
        for split, clips in (("train", 300), ("validation", 40), ("test", 150))
    ),
    option("--seed", type=int, default=0, help="world of that number (default 0)"),
    option("--task", choices=("grounding", "gqa"), default="grounding", help="what is asked (default grounding)"),
    option("--edition", type=int, default=2, choices=(1, 2, 3), help="2: half of the queries take two looks (default); 1: one "
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


@command(
    file_option("folder", "folder to write to; must not exist"),
    option("--seed", type=int, default=0, help="seed of weights and training targets (default 0)"),
    option("--name", choices=("embedded-2", "embedded", "embedded-gqa"), default="embedded-2",
            help="which of the shipped ones (default embedded-2)"),
    option("--family", default="qwen2_5_vl", help="of an untrained model (default qwen2_5_vl)"),
    switch("--untrained", "in seconds: random weights that only know how a chain is written"),
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


@command(
    PARAMS,
    *named(),
    option("--sweep", action="append", default=[], metavar="NAME=VALUE,VALUE,...",
            help="a run for each value, as a job array; several sweeps are combined"),
    switch("--local", "the same on this machine, in the background, without SLURM"),
    option("--time", default="24:00:00", help="time limit of a job, after which it is requeued (24:00:00); with --local the jobs "
            "of a sweep take turns and share the sum of their limits"),
    option("--nodes", type=int, default=1, help="nodes of each job (default 1)"),
    option("--gpus", type=int, default=0,
            help="GPUs of each node, a process for each unless -p processes is given (default 0)"),
    option("--cpus", type=int, help="CPU cores for each GPU; of each node when it has none"),
    option("--memory", type=float, metavar="GB", help="memory of each node"),
    *(option(f"--{name}") for name in ("partition", "account", "qos")),
    option("--slurm", action="append", default=[], metavar="NAME=VALUE",
            help="any other option of sbatch, such as constraint=a100; may be given several times"),
    option("--notice", type=int, default=300, metavar="SECONDS",
            help="seconds before the limit at which the run saves and stops (default 300)"),
    option("--requeues", type=int, default=20,
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


@command(
    file_option("folder", "a run's directory, or a folder of runs, such as outputs"),
    switch("--json", "everything of one run, for a program"),
)  # fmt: skip
def status(options: argparse.Namespace) -> None:
    """How far a run is: stages, step, time left, job, last lines of its log."""
    from labkit.runs.status import read_status, status_text

    say(json.dumps(read_status(options.folder), indent=1) if options.json else status_text(options.folder))


if __name__ == "__main__":
    raise SystemExit(main())
