"""What leaves a run: kept traces as data for other trainers, its model for other programs or the hub, or a small copy of its figures.

Traces are JSON Lines in the form of a trainer, with videos as absolute paths and the very text of the prompt. A model is whole:
adapters merged, weights in safetensors under their published names, and beside them the files of tokenizer, processor and
generation, as transformers and vLLM look for them; the adapter itself, to be trained on, is in the folder `adapter` below.
From a small copy, another machine makes tables, paired tests and budgets.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from labkit.data.moments import Moment, moment_row
from labkit.errors import LabError
from labkit.files import apply_umask, project_root, replacing, write_json
from labkit.params import Params, read_params
from labkit.policy.adapters import unload
from labkit.policy.families import Family
from labkit.policy.model import Policy, copy_processor, is_path, load_policy
from labkit.policy.prompts import messages
from labkit.runs.budget import KEPT_SPENT, read_spent
from labkit.runs.model_card import model_card
from labkit.runs.own_terms import load_own_terms
from labkit.runs.run import NOTEBOOK_OF, STAGES, kept_texts, read_manifest, runs_in
from labkit.runs.workbench import Workbench, frame_sampling
from labkit.stages.rollouts import Rollout

SHARD = "5GB"
"""Of weights in one file, as the hub's own checkpoints."""
MARKER = "labkit.json"
"""In an exported model's folder: which run and stage it is of."""
ADAPTER = "adapter"
"""The folder in it of the adapter by itself."""


def open_run(folder: str | Path) -> Workbench:
    """The run in a folder, to be read; raises LabError where there is none.

    Unlike `Workbench.open`, this asks neither for the base nor for the right to write.
    """
    path = Path(folder).resolve()
    read_manifest(path)
    params = read_params(path / "params.yaml")
    return Workbench(params, path, project_root(), load_own_terms(params, None, kept_texts(path)))


def export_traces(folder: str | Path, file: str | Path, form: str) -> str:
    """Write the kept traces of the run in `folder` to `file`, and return what was written in a sentence.

    `form` is one of `FORMS`. With `llamafactory`, `dataset_info.json` beside the file gets an entry. Raises LabError where the run
    has kept no trace, and where clips are windows of longer videos, which only `jsonl` can say.
    """
    run, file = open_run(folder), Path(file)
    p = run.params
    moments = {moment.qid: moment for moment in run.moments("train")}
    if not p.traces and not run.finished("02_distill"):
        raise LabError(f"'{run.path}' has no harvest: 02_distill is {run.state('02_distill')}; run it first")
    kept = run.harvested().kept
    if not kept:
        raise LabError(
            f"'{run.path}' has kept no trace, so there is nothing to export; loosen the filter and harvest anew"
        )
    asked = {row.qid for row in kept}
    if form != "jsonl" and (cut := [qid for qid in sorted(asked) if moments[qid].clip is not None]):
        raise LabError(
            f"{len(cut):,} of {len(asked):,} queries (the first: '{cut[0]}') ask about a window of a longer video, and {form} has no "
            "word for that: cut these clips into files of their own first, or take --format jsonl"
        )
    make = FORMS[form]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as draft:
        lines = [json.dumps(make(row, moments[row.qid], run.own.template), ensure_ascii=False) + "\n" for row in kept]
        draft.write_text("".join(lines), encoding="utf-8")
    text = f"{file}: {len(kept):,} traces of {len(asked):,} queries, as {form}"
    if form == "llamafactory":
        text += f"; {_register(file)}"
    seen = f"{p.fps:g} frames a second, at most {p.max_frames}, of {p.min_pixels:,} to {p.max_pixels:,} pixels"
    if p.total_pixels:
        seen += f", {p.total_pixels:,} together, two frames counted as one"
    return f"{text}\nwhoever trains on it should show the model what this run has seen: {seen}"


def _plain(row: Rollout, moment: Moment, prompt: str) -> dict[str, Any]:
    """A form of our own, which a run's `traces` takes: the trace, its prompt, and all that the moment says."""
    return {"qid": row.qid, "text": row.text, "prompt": _prompt(moment, prompt)} | moment_row(moment)


def _trl(row: Rollout, moment: Moment, prompt: str) -> dict[str, Any]:
    """TRL's conversational prompt and completion; a place holder in the prompt stands for each of `videos`.

    A part has no key that another lacks but `text`: tables fill such keys with null, which chat templates take for a video.
    """
    parts = [{"type": "video"} if part["type"] == "video" else part for part in messages(moment, prompt)[0]["content"]]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": row.text}]}]
    return {"prompt": [{"role": "user", "content": parts}], "completion": answer, "videos": [moment.video]}


def _tagged(row: Rollout, moment: Moment, prompt: str) -> dict[str, Any]:
    """Messages of plain text with <video> where the video stands: ms-swift's and LLaMA-Factory's."""
    turns = [{"role": "user", "content": _prompt(moment, prompt)}, {"role": "assistant", "content": row.text}]
    return {"messages": turns, "videos": [moment.video]}


FORMS: dict[str, Callable[[Rollout, Moment, str], dict[str, Any]]] = {
    "jsonl": _plain,
    "trl": _trl,
    "swift": _tagged,
    "llamafactory": _tagged,
}
"""What a trace is written as, by the trainer that reads it."""


def _prompt(moment: Moment, prompt: str) -> str:
    """The prompt with <video> where the video stands."""
    parts = messages(moment, prompt)[0]["content"]
    return "".join("<video>" if part["type"] == "video" else part["text"] for part in parts)


def _register(file: Path) -> str:
    """Put a file of traces into the dataset_info.json beside it, as LLaMA-Factory asks for."""
    path = file.with_name("dataset_info.json")
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[file.stem] = {
            "file_name": file.name, "formatting": "sharegpt", "columns": {"messages": "messages", "videos": "videos"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        }  # fmt: skip
    except (ValueError, TypeError) as error:
        raise LabError(f"'{path}' is no table of data sets ({error}); mend it, or export to another folder") from None
    write_json(path, known, indent=2)
    return f"'{file.stem}' in {path}"


def export(
    folder: str | Path,
    target: str | Path | None,
    stage: str,
    *,
    hub: str | None,
    public: bool,
    say: Callable[[str], None],
) -> None:
    """Export a stage's model to the folder `target`, to the repository `hub`, or to both, and `say` what was done.

    Raises what `export_model` and `labkit.runs.export` do; the hub is asked first.
    """
    _trained_model(open_run(folder), stage)
    if hub:
        open_repository(hub, public)
    with (
        tempfile.TemporaryDirectory(prefix=".export-", dir=Path(folder))
        if target is None
        else nullcontext(".") as made
    ):
        place = Path(made) / "model" if target is None else Path(target)
        said = export_model(folder, place, stage)
        if target is not None:
            say(said)
        if hub:
            _leave_folders_out(place / ADAPTER)
            say(push(place, hub, f"{stage} of run {open_run(folder).params.run}"))


def export_model(folder: str | Path, target: str | Path, stage: str = "grpo_final") -> str:
    """Write the model that a stage of the run in `folder` ended with to the folder `target`, and return a sentence about it.

    Its number type is the run's. Raises LabError where the stage has not ended, or `target` exists and is not this very export,
    which then is left as it is.
    """
    run, target = open_run(folder), Path(target)
    mark = {"run": run.params.run, "created": run.manifest.get("created"), "stage": stage}
    if target.exists():
        if (target / MARKER).is_file() and json.loads((target / MARKER).read_text(encoding="utf-8")) == mark:
            return f"{target}: is there already, as it was exported before; remove it to write model and card anew"
        raise LabError(f"'{target}' exists already and is another thing; name a folder that does not")
    trained, bits = _trained_model(run, stage), run.params.quantization
    policy = load_policy(trained, dtype=run.params.dtype, device="cpu", quantization=bits)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    unload(policy.model).save_pretrained(draft, max_shard_size=SHARD)
    if policy.has_adapter:
        shutil.copytree(trained, draft / ADAPTER, ignore=shutil.ignore_patterns("README.md"))  # PEFT's says nothing
    (policy.processor or policy.tokenizer).save_pretrained(draft)
    copy_processor(policy, draft)
    write_processor(policy, run.params, draft)
    (draft / "README.md").write_text(
        model_card(run.path, stage, policy.family.title, _adapter_note(policy, bits)), encoding="utf-8"
    )
    (draft / MARKER).write_text(json.dumps(mark), encoding="utf-8")
    apply_umask(draft)
    draft.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    how = f"LoRA merged, and by itself in {ADAPTER}/, " if policy.has_adapter else ""
    return f"{target}: {stage} of run '{run.params.run}', {how}{run.params.dtype}, {size / 1e9:.2g} GB, with its card"


def _adapter_note(policy: Policy, bits: str) -> str:
    """What the card says of an adapter; empty without one."""
    if not policy.has_adapter:
        return ""
    config = policy.model.peft_config["default"]
    text = f"LoRA of rank {config.r} is merged into these weights. "
    if bits != "none":
        text += f"It was trained and measured on a base in 4 bits ({bits}), and what these stood for is what it is merged into. "
    return text + f"`{ADAPTER}/` holds the adapter alone, for PEFT, and to train on."


def _leave_folders_out(adapter: Path) -> None:
    """In what is published, a base that lies on this machine has its name alone."""
    file = adapter / "adapter_config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        if is_path(base := config["base_model_name_or_path"]):
            write_json(file, config | {"base_model_name_or_path": Path(base).name}, indent=2)


def _trained_model(run: Workbench, stage: str) -> str:
    """Where the model of a stage lies; raises LabError where the run has not come to it, or skips it."""
    if why := run.skipped(NOTEBOOK_OF[stage]):
        raise LabError(f"'{run.path}' has trained no {stage}: {why} Export a stage that it has, with --stage")
    return run.model_name(stage)


def write_processor(policy: Policy, params: Params, folder: Path) -> None:
    """Write what the base lacks of its processor's files, from the family and the run's pixel budget; what is there stays.

    Only Qwen's can be written so: of the others there is what the base has.
    """
    if policy.processor is not None or policy.family.frames_as_images:
        return
    vision, family = policy.base.config.vision_config, policy.family
    shared = {
        "processor_class": _processor_class(family), "patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size, "image_mean": list(family.mean), "image_std": list(family.std),
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    # Qwen3-VL's budget is of a whole clip, that of the others of a frame.
    frames = params.max_frames if family.deepstack else 1
    video = "Qwen3VLVideoProcessor" if family.deepstack else "Qwen2VLVideoProcessor"
    files = {
        "preprocessor_config.json": {
            **shared,
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": _budget(params, 1),
        },
        "video_preprocessor_config.json": {**shared, "video_processor_type": video, "size": _budget(params, frames)},
    }
    for name, values in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _processor_class(family: Family) -> str:
    return family.model_class.removesuffix("ForConditionalGeneration") + "Processor"


def _budget(params: Params, frames: int) -> dict[str, int]:
    most = frame_sampling(params).pixels(frames)
    return {"shortest_edge": frames * params.min_pixels, "longest_edge": int(frames * most)}


_STEPS = {
    401: "log in with 'hf auth login', or set HF_TOKEN to a token that may write",
    403: "your token may not write there: take one with write access, or ask the organization for the right",
    404: "there is no such owner or repository for your token; check the id, and that the token may see it",
}
"""What to do where the hub refuses, by HTTP status."""


def open_repository(repository: str, public: bool) -> None:
    """Make a model repository on the hub unless it is there: what refuses, refuses before anything is exported."""
    from huggingface_hub import HfApi

    with _refusals(repository):
        HfApi().create_repo(repository, private=not public, exist_ok=True)


def push(folder: Path, repository: str, message: str) -> str:
    """Upload a folder to a repository that is there, and return its address; files that the hub has already are not sent again."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _refusals(repository):
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return f"{api.endpoint}/{repository}"


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    network_error: Any = HfHubHTTPError.__bases__[
        0
    ]  # of the HTTP library that the hub's client is built on: another one by version
    try:
        yield
    except HFValidationError as error:
        raise LabError(f"hub: {repository!r} is no id of a repository ({error}); write OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise LabError("hub: HF_HUB_OFFLINE forbids to push; unset it where there is a network") from None
    except LocalTokenNotFoundError:
        raise LabError(f"hub: there is no token; {_STEPS[401]}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        step = _STEPS.get(status, "try again later; nothing was lost, and what was sent is not sent again")
        reason = error.server_message or f"HTTP {status}"
        raise LabError(f"hub: {constants.ENDPOINT} refuses '{repository}' ({status}: {reason}); {step}") from None
    except (network_error, ConnectionError) as error:
        raise LabError(
            f"hub: {constants.ENDPOINT} cannot be reached ({error}); check network and HF_ENDPOINT, then give the command again"
        ) from None
    except RuntimeError as error:  # what the client makes of a file that did not come through
        raise LabError(
            f"hub: {error} ({error.__cause__}); give the command again, what was sent is not sent again"
        ) from error


FILES = (
    "manifest.json", "params.yaml", "*/start.json", "*/result.json", "*/words.json", "*/grpo_final-greedy.json",
    "*/evaluations/grpo_final-greedy/*.parquet",
)  # fmt: skip
STAYED = "The model stayed where this run was made; this is a small copy, by `labkit export --figures`.\n"


def carry(folder: str | Path, target: str | Path) -> str:
    """Copy the run in `folder`, or all finished ones that it holds, into `target`; returns what was copied and left out.

    A copy that is there is replaced. Raises LabError where none is finished, and where a run's name is taken by anything but a copy.
    """
    runs, target = runs_in(Path(folder)), Path(target)
    left_out = {}
    for run in runs:
        states = {stage: entry["state"] for stage, entry in read_manifest(run)["stages"].items()}
        if here := next((stage for stage in STAGES if states.get(stage) not in ("finished", "skipped")), ""):
            left_out[run] = f"{run.resolve().name} at {here}"
    if not (finished := [run for run in runs if run not in left_out]):
        raise LabError(f"none of the {len(runs)} runs of '{folder}' is finished ({', '.join(left_out.values())})")
    size = sum(_copy(run, target / run.resolve().name) for run in finished)
    text = f"{target}: {len(finished)} run{'s' * (len(finished) > 1)}, {size / 1e6:.2f} MB"
    return text + (f"; left out, unfinished: {', '.join(left_out.values())}" if left_out else "")


def _copy(run: Path, place: Path) -> int:
    """Copy one run and return how many bytes that takes."""
    if place.exists() and not (place / KEPT_SPENT).is_file():
        raise LabError(f"'{place}' is there and is no small copy of a run; give another folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
        draft = Path(scratch) / place.name
        for file in (file for pattern in FILES for file in run.glob(pattern)):
            to = draft / file.relative_to(run)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        for final in run.glob("*/final"):  # by which a stage has ended
            (draft / final.relative_to(run)).mkdir()
            (draft / final.relative_to(run) / "README.txt").write_text(STAYED, encoding="utf-8")
        (draft / KEPT_SPENT).write_text(json.dumps(read_spent(run)), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
