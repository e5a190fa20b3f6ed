"""`labkit doctor`: checks before a run of environment, model, data and videos, with estimates of memory, hours and disk.

Nothing is trained or downloaded. All that is written is `checkups.json` in the outputs folder: the probe of each video.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from labkit.data.moments import Moment
from labkit.data.video.probe import VideoCheck
from labkit.doctor.adapters import add_adapter_report
from labkit.doctor.dataset import SPLITS, DataReport, clip_cost, inspect_folder
from labkit.doctor.environment import (
    Model,
    find_machine,
    find_model,
    launcher_findings,
    load_findings,
    machine_findings,
    machine_table,
    package_findings,
    read_json,
    requirements,
)
from labkit.doctor.findings import DoctorReport, Finding
from labkit.doctor.planned import find_gpus, find_planned_model, known_data, planned_machine
from labkit.doctor.rehearsal import add_rehearsal
from labkit.doctor.resources import add_resource_estimates, nearest_existing
from labkit.doctor.tokenizer import tokenizer_findings
from labkit.doctor.workload import Workload
from labkit.errors import LabError
from labkit.files import project_root, under
from labkit.param_fields import WORLDS
from labkit.params import Params, read_params, read_yaml
from labkit.policy.families import Geometry
from labkit.policy.inputs import chat_text
from labkit.policy.prompts import require_fit
from labkit.progress import Progress
from labkit.runs.notebooks import notebooks_of
from labkit.runs.own_terms import OwnTerms, load_own_terms, try_own_terms, with_cells
from labkit.runs.run import changed_texts, differing, kept_texts, read_manifest, runs_in
from labkit.runs.trackers import require_trackers
from labkit.stages.traces import read_traces

# Clips of the embedded world, and questions of each split, whose lengths are measured; the others are taken to be alike.
_SAMPLE_SIZE = 400


def examine(
    params: Params, *, quick: bool = False, rehearsed: bool = False,
    gpu: str = "", on_video: Callable[[int, int], None] | None = None,
) -> DoctorReport:  # fmt: skip
    """Check everything that a run of `params` will need.

    Args:
        params: of the run.
        quick: find videos without opening them, and measure nothing, so that hours are not estimated.
        rehearsed: do every stage for one step with a small model of the same vocabulary (`labkit.doctor.rehearsal`).
        gpu: estimate for GPUs of another machine, such as `h100x8`; the model and the data need not be here (`labkit.doctor.planned`).
        on_video: called with (done, all) after each video that had to be opened.
    """
    root = project_root()
    report = DoctorReport(f"doctor: run '{params.run}'" + (", quick" if quick else ""))
    python, packages = requirements()
    report.findings += package_findings(python, packages)
    machine, planned_gpu = find_machine(params.device), None
    if gpu:
        planned_gpu, count = find_gpus(gpu)
        machine = planned_machine(planned_gpu, count, params.threads)
        report.title += f", planned for {count} x {planned_gpu.name}"
        params = params.replace(processes=count, device="cuda")
    report.tables.append(machine_table(machine, packages, report.findings))
    report.findings += launcher_findings() + machine_findings(machine, params)
    own, params, findings = _own_terms(params, root)
    report.findings += findings + _run_findings(params, own, root)
    find = find_planned_model if gpu else find_model
    model, findings = find(params.start_model("sft_model") or params.model, root)
    report.findings += findings
    harvester = None
    if other := params.harvester or params.start_model("grpo_model"):
        harvester, findings = find(other, root)
        kind = "harvester" if params.harvester else "grpo_model"
        report.findings += [each._replace(kind=kind) for each in findings]
    vision = model.shape.geometry if model else Geometry()
    here = not gpu or params.data in WORLDS or under(root, params.data).is_dir()
    data = _inspect(params, root, vision, quick, on_video) if here else known_data(params, vision)
    report.findings += data.findings
    report.tables.append(data.table())
    if own and (asked := [moment for split in SPLITS for moment in data.moments.get(split, ())]):
        try:
            require_fit(own.template, asked)
            try_own_terms(own, params, asked[0])
        except LabError as error:
            report.findings.append(_own_finding(error))
            own = None
    report.data["videos"] = {path: _as_dict(check) for path, check in data.videos.items()}
    if own and model and (harvester or not other) and all(data.clips.get(split) for split in ("train", "test")):
        # A checkpoint with a LoRA adapter trains that, whatever `lora_rank` is.
        params = params.replace(lora_rank=model.lora_rank or params.lora_rank)
        add_adapter_report(report, params, model, bool(gpu))
        if model.tokenizer:
            config, asked = read_json(model.folder / "config.json"), [*data.moments["train"], *data.moments["test"]]
            report.findings += tokenizer_findings(model.tokenizer, config, params, own.template, asked)
        workload, findings = _workload(params, own.template, model, data)
        report.findings += findings
        if workload:
            if not quick and not gpu:
                report.findings += load_findings(machine)
            models = [model, harvester] if harvester else [model]
            add_resource_estimates(report, params, models, workload, data, machine, root, quick, planned_gpu)
    if rehearsed:
        add_rehearsal(report, params, model, data, own, machine)
    return report


def run_doctor(
    path: str | Path, overrides: Mapping[str, Any], write: Callable[[str], None], *, quick: bool = False,
    as_json: bool = False, rehearsed: bool = False, gpu: str = "",
) -> int:  # fmt: skip
    """Examine a params file for the command line, and return the exit code: 1 when a run would fail.

    Raises LabError when the parameters themselves are bad.
    """
    begin = time.monotonic()
    report = examine(read_params(path, overrides), quick=quick, rehearsed=rehearsed, gpu=gpu,
                     on_video=None if as_json else _video_progress())  # fmt: skip
    report.data["seconds"] = round(time.monotonic() - begin, 1)
    write(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) if as_json else str(report))
    return report.exit_code


def _video_progress() -> Callable[[int, int], None]:
    """A callback that reports how many videos have been opened; silent when all are known already."""
    started: list[Progress] = []

    def on_video(done: int, total: int) -> None:
        if not started:
            started.append(Progress("videos opened", total))
        started[0](done)

    return on_video


def _own_terms(params: Params, root: Path) -> tuple[OwnTerms | None, Params, list[Finding]]:
    """What is the user's own, None where it cannot be had; the parameters with what the run's cells have given; and what is wrong."""
    folder = under(root, params.outputs) / params.run
    try:
        exists = (folder / "manifest.json").is_file() and (folder / "params.yaml").is_file()
        if exists:
            params = with_cells(params, read_yaml(folder / "params.yaml"))
        return load_own_terms(params, root, kept_texts(folder) if exists else {}), params, []
    except LabError as error:
        return None, params, [_own_finding(error)]


def _own_finding(error: LabError) -> Finding:
    subject, _, message = str(error).partition(" ")
    return Finding("error", "prompt" if subject == "prompt" else "own terms", subject, message)


def _run_findings(params: Params, own: OwnTerms | None, root: Path) -> list[Finding]:
    """What a run would refuse: its folder, the runs that it is compared with."""
    findings = []
    try:
        notebooks_of(root)
    except LabError as error:
        findings.append(Finding("error", "notebooks", "notebooks:", str(error)))
    for other in params.compare:
        try:
            for run in runs_in(under(root, other)):
                read_manifest(run)
        except LabError as error:
            findings.append(Finding("error", "compare", "compare:", str(error)))
    checks: list[Callable[[], object]] = [lambda: require_trackers(params.report_to)]
    checks += [lambda: read_traces(under(root, params.traces))] if params.traces else []
    for check in checks:
        try:
            check()
        except LabError as error:
            kind, _, words = str(error).partition(": ")
            findings.append(Finding("error", kind, f"{kind}:", words))
    folder = under(root, params.outputs) / params.run
    if (folder / "manifest.json").exists():
        if names := [*differing(folder / "params.yaml", params), *(changed_texts(folder, own) if own else ())]:
            message = f"is a run of other parameters ({', '.join(names)})"
            findings.append(
                Finding("error", "run", f"folder {folder}", message, "choose another `run` name, or delete it")
            )
    elif folder.is_dir() and any(not name.startswith(".") and name != "params.yaml" for name in os.listdir(folder)):
        findings.append(
            Finding("error", "run", f"folder {folder}", "is not empty and holds no run", "choose another `run` name")
        )
    if not os.access(nearest_existing(folder), os.W_OK):
        findings.append(
            Finding("error", "run", f"folder {nearest_existing(folder)}", "is not writable", "set `outputs`")
        )
    return findings


def _inspect(
    params: Params, root: Path, vision: Geometry, quick: bool, on_video: Callable[[int, int], None] | None
) -> DataReport:
    if params.data in WORLDS:
        data = _inspect_world(params, vision)
    else:
        folder = under(root, params.data)
        if not folder.is_dir():
            step = "give `world-2` or a folder with train.jsonl, validation.jsonl and test.jsonl"
            return DataReport(findings=[Finding("error", "data", f"data = {params.data}", "is not a folder", step)])
        cache = under(root, params.outputs) / "checkups.json"
        data = inspect_folder(folder, params, vision, quick=quick, cache=cache, on_video=on_video)
    if 0 < data.queries.get("train", 0) < params.prompts_per_step:
        message = f"but the training split has {data.queries['train']} usable queries"
        step = "lower it or give more data"
        subject = f"prompts_per_step = {params.prompts_per_step}"
        data.findings.append(Finding("error", "training split", subject, message, step))
    return data


def _inspect_world(params: Params, vision: Geometry) -> DataReport:
    """The embedded world without writing it: its scenes follow from their seeds."""
    from labkit.embedded.clips import SIDE
    from labkit.embedded.world import draw_moments, find_edition

    data, clip, edition = DataReport(), VideoCheck("ok", width=SIDE, height=SIDE), WORLDS[params.data]
    for split in SPLITS:
        count = getattr(params, f"world_{split}")
        sample = min(count, _SAMPLE_SIZE)
        drawn = [draw_moments(split, clip, params.world_seed, edition, params.task) for clip in range(sample)]
        moments = [moment for each in drawn for moment in each]
        limit = getattr(params, f"{split}_limit")
        queries = round(len(moments) * count / sample)
        data.queries[split] = min(queries, limit or queries)
        data.moments[split] = moments[: limit or None]
        clips = -(-data.queries[split] * count // queries)
        data.clips[split] = [clip_cost(float(find_edition(edition).seconds), clip, params, vision)] * clips
    return data


def _workload(params: Params, template: str, model: Model, data: DataReport) -> tuple[Workload | None, list[Finding]]:
    """Sizes of the data for this model, and whether its prompts fit the context."""
    clips = data.clips["train"] + data.clips["test"]
    try:
        texts = [
            _text_tokens(model.tokenizer, moment, template)
            for split in ("train", "test")
            for moment in data.moments[split][:_SAMPLE_SIZE]
        ]
    except LabError as error:
        return None, [Finding("error", "prompt", "prompt:", str(error))]
    workload = Workload(
        train=data.queries["train"], test=data.queries["test"], train_clips=len(data.clips["train"]),
        test_clips=len(data.clips["test"]), prompt_tokens=fmean(clip.tokens for clip in clips) + fmean(texts),
        longest_prompt=max(clip.tokens for clip in clips) + max(texts), video_tokens=fmean(clip.tokens for clip in clips),
        frame_bytes=fmean(clip.frames * clip.size[0] * clip.size[1] * 3 for clip in clips),
    )  # fmt: skip
    longest, context = workload.longest_prompt + params.max_new_tokens, model.shape.context
    if longest <= context:
        return workload, []
    message = f"is the length of the longest prompt and its chain; the model was made for {context:,} tokens"
    step = "lower max_frames, max_pixels or max_new_tokens"
    return workload, [Finding("warning", "context", f"{longest:,} tokens", message, step)]


def _text_tokens(tokenizer: Any, moment: Moment, template: str) -> int:
    """Tokens of a prompt without its video; four characters each where there is no tokenizer."""
    if tokenizer is None:
        return len(template + moment.query) // 4
    text = chat_text(tokenizer, moment, template)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) - 1


def _as_dict(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
