"""What each command of `labkit.cli` does with its options: it calls the package, and prints what comes back."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.progress import say


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The parameters given by name, those of a protocol below them."""
    from labkit.params import protocol_params

    shown = {name: str(value) for name, value in protocol_params(options.protocol).items()}
    return shown | {name: value.lstrip() for name, value in options.overrides}


def new(options: argparse.Namespace) -> None:
    """Lay out a project."""
    from labkit.runs.project import lay_out

    files = lay_out(options.folder)
    notebooks = sum(file.suffix == ".ipynb" for file in files)
    say(f"{options.folder}: {notebooks} notebooks and {len(files) - notebooks} params files; go on with")
    say(f"  cd {shlex.quote(options.folder)} && labkit run params/embedded.yaml")


def run(options: argparse.Namespace) -> None:
    """Run the notebooks of a params file."""
    from labkit.runs.notebooks import run_notebooks

    run_notebooks(options.params, overrides(options))


def campaign(options: argparse.Namespace) -> int:
    """Run settings over seeds; exit code 1 where one failed."""
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


def ask(options: argparse.Namespace) -> None:
    """Ask a model about a video."""
    from labkit.asker import ask

    o = options
    if o.html and not Path(o.html).absolute().parent.is_dir():
        raise LabError(f"'{o.html}' cannot be written: its folder is not there; make it, or give another file")
    asked = ask(o.video, o.sentence, model=o.model, samples=o.samples, **_named(o, "prompt"))
    if o.html:
        asked.save(o.html)
    say(asked.text(min(120, shutil.get_terminal_size((100, 24)).columns), not _holds(sys.stdout, "█▒·–“”")))
    if o.html:
        say(f"\n{o.html}: the same as a page, with the video's frames in it")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model on moments."""
    from labkit.runs.evaluate_model import evaluate_model, evaluation_text

    o = options
    with _json_alone(o):
        evaluated = evaluate_model(
            o.model, o.moments, videos=o.videos, present=o.present, limit=o.limit, folder=o.output,
            overrides=_named(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(evaluated.as_dict(), indent=1) if o.json else evaluation_text(evaluated))


def interventions(options: argparse.Namespace) -> None:
    """Edit, forbid and force anchors."""
    from labkit.runs.intervene import both_ways, intervene

    o = options
    with _json_alone(o):
        found = intervene(
            o.model, o.moments, stage=o.stage, shifts=both_ways(o.shifts), videos=o.videos, present=o.present, limit=o.limit,
            folder=o.output, overrides=_named(o, "prompt", "processes"),
        )  # fmt: skip
    say(json.dumps(found.as_dict(), indent=1) if o.json else str(found))


def _json_alone(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """With `--json`, what is printed on the way, progress and what own code prints, goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def _named(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The overrides, with the parameters that have an option of their own."""
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return overrides(options) | given


def _holds(stream: Any, text: str) -> bool:
    """Whether a stream's encoding can write all of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def doctor(options: argparse.Namespace) -> int:
    """Examine a run before it starts; exit code 1 where it would fail."""
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
    from labkit.runs.evaluation_bench import REAL_MODEL

    o = options
    given = overrides(o)
    params = read_params(o.params, given) if o.params else Params.build({**REAL_MODEL, **given})
    audit = audit_clock(o.clock, params, o.model or (params.model if o.params else None), project_root())
    if o.html:
        audit.save(o.html)
    say(json.dumps(audit.as_dict(), indent=1) if o.json else str(audit))
    return 0


def results(options: argparse.Namespace) -> None:
    """Print figures of runs."""
    from labkit.runs.results import read_results, results_text

    first, *others = options.folders
    if not others and not (Path(first).is_dir() and any(Path(first).glob("*/manifest.json"))):
        results = read_results(first)
        say(json.dumps(results, indent=1) if options.json else results_text(results))
        return
    from labkit.runs.compare import compare_runs

    comparison = compare_runs(options.folders)
    say(json.dumps(comparison.as_dict(), indent=1) if options.json else str(comparison))


def report(options: argparse.Namespace) -> None:
    """Write a run's HTML files."""
    from labkit.views.report.report import report_text, write_report

    say(report_text(write_report(options.folder, options.output)))


def publish(options: argparse.Namespace) -> None:
    """Write a small copy of a run."""
    from labkit.views.report.markdown import publish

    files = publish(options.run, options.folder)
    say(f"{options.folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


def export(options: argparse.Namespace) -> None:
    """Export traces, a model or figures."""
    from labkit.runs.carry import carry
    from labkit.runs.export import export, export_traces

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


def score(options: argparse.Namespace) -> None:
    """Score predictions."""
    from labkit.scoring.score_table import score_text

    o = options
    say(score_text(o.predictions, o.moments, videos=o.videos, rules=o.rules, train=o.train, against=o.against,
                    as_json=o.json))  # fmt: skip


def explore(options: argparse.Namespace) -> None:
    """Show predictions over their videos."""
    from labkit.views.side_by_side import explore_files

    o = options
    plain = not _holds(sys.stdout, "█▒·")
    say(explore_files(o.predictions, o.moments, videos=o.videos, rules=o.rules, html=o.html, ascii_only=plain))


def moments(options: argparse.Namespace) -> None:
    """Read an annotation file."""
    from labkit.data.benchmarks import moments_text

    o = options
    say(moments_text(o.source, videos=o.videos, durations=o.durations, write=o.write, form=o.form,
                     listing=o.listing, strict=o.strict, as_set=o.as_set))  # fmt: skip


def world(options: argparse.Namespace) -> None:
    """Write an embedded world."""
    from labkit.embedded.world import write_world

    splits = write_world(
        options.folder, options.train, options.validation, options.test, seed=options.seed, task=options.task,
        edition=options.edition,
    )  # fmt: skip
    say(f"{options.folder}: " + ", ".join(f"{len(moments)} {split} queries" for split, moments in splits.items()))


def base(options: argparse.Namespace) -> None:
    """Train an embedded base."""
    from labkit.embedded.model import write_untrained
    from labkit.embedded.pretraining import train_base
    from labkit.embedded.second_pretraining import train_second_base

    if Path(options.folder).exists():
        raise LabError(f"'{options.folder}' exists already; name a folder that does not")
    if options.untrained:
        write_untrained(Path(options.folder), options.family, options.seed)
    elif options.family != "qwen2_5_vl":
        raise LabError(f"the recipe trains a qwen2_5_vl, not a {options.family}; add --untrained for random weights")
    elif options.name == "embedded":
        train_base(options.folder, seed=options.seed, report=say)
    else:
        train_second_base(options.folder, seed=options.seed, report=say,
                          task="gqa" if options.name == "embedded-gqa" else "grounding")  # fmt: skip


def submit(options: argparse.Namespace) -> None:
    """Give a run to SLURM."""
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


def status(options: argparse.Namespace) -> None:
    """Print how far a run is."""
    from labkit.runs.status import read_status, status_text

    say(json.dumps(read_status(options.folder), indent=1) if options.json else status_text(options.folder))
