from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from labkit.doctor import checks, dataset, environment, resources
from labkit.doctor.checks import examine, run_doctor
from labkit.doctor.findings import DoctorReport, Finding
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.model import SHIPPED
from tests.data.films import CONSTANT, VARIABLE, av1_encoder, cut_off, film, remux, sound


@dataclass
class Sick:
    folder: Path
    params: Params

    def file(self, name: str) -> str:
        return str(self.folder / "videos" / name)


def row(name: str, **changes: Any) -> dict[str, Any]:
    """A question about a film of 8 s."""
    values = {
        "qid": name,
        "video": f"videos/{name}",
        "query": "a door opens",
        "windows": [[1.0, 3.0]],
        "duration": 8.0,
    }
    return values | changes


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in rows))


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Sick:
    """A data folder with 12 kinds of trouble, and a healthy film beside them."""
    folder = tmp_path_factory.mktemp("sick")
    videos = folder / "videos"
    videos.mkdir()
    well = film(videos / "well.mp4", CONSTANT, options={"g": "50"})
    (videos / "empty.mp4").touch()
    cut_off(well, videos / "index lost.mp4", 0.5)
    front = film(folder / "front.mp4", CONSTANT, faststart=True, options={"g": "50"})
    cut_off(front, videos / "broken off.mp4", 0.6)
    sound(videos / "sound.mp4")
    film(folder / "a.mkv", CONSTANT)
    shutil.copy(folder / "a.mkv", videos / "wrong.mp4")
    film(videos / "variable.mp4", VARIABLE)
    remux(well, videos / "rotated.mp4", rotate=90)
    shutil.copy(well, videos / "locked.mp4")
    (videos / "locked.mp4").chmod(0)
    shutil.copy(well, videos / "short.mp4")
    shutil.copy(well, videos / "twice.mp4")
    shutil.copy(folder / "a.mkv", videos / "twice.mkv")
    names = ["well.mp4", "gone.mp4", "empty.mp4", "index lost.mp4", "broken off.mp4", "sound.mp4", "wrong.mp4",
             "rotated.mp4", "locked.mp4", "twice.mp4"]  # fmt: skip
    rows = [row(name) for name in names] + [row("variable.mp4", duration=10.0)]
    if encoder := av1_encoder():
        film(videos / "av1.mp4", CONSTANT, codec=encoder)
        rows.append(row("av1.mp4"))
    rows.append(row("short.mp4", qid="long duration", duration=12.0))
    rows.append(row("short.mp4", qid="late window", duration=12.0, windows=[[9.0, 11.0]]))
    trimmed = {"clip": [5.0, 11.0], "duration": 6.0}
    rows.append(row("short.mp4", qid="trimmed", **trimmed))
    rows.append(row("short.mp4", qid="trimmed away", clip=[9.0, 12.0], duration=3.0))
    write(folder / "train.jsonl", rows)
    write(folder / "validation.jsonl", [row("well.mp4")])
    write(folder / "test.jsonl", [row("well.mp4")])
    small = {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 8}
    return Sick(folder, Params.build({"data": str(folder), "outputs": str(folder / "outputs"), **small}))


@pytest.fixture(scope="module")
def report(sick: Sick) -> DoctorReport:
    return examine(sick.params)


def find(report: DoctorReport, kind: str, subject: str) -> Finding:
    same = [finding for finding in report.findings if finding.kind == kind and subject in finding.subject]
    assert len(same) == 1, f"{kind}, {subject}: {same or report}"
    return same[0]


@pytest.mark.parametrize(
    ("kind", "subject", "level", "words"),
    [
        ("missing video", "gone.mp4", "error", "is not there"),
        ("empty video", "empty.mp4", "error", "0 bytes"),
        ("truncated video", "index lost.mp4", "error", "index is missing"),
        ("truncated video", "broken off.mp4", "warning", "s are left"),  # a run reads what is left
        ("audio only", "sound.mp4", "error", "no video stream"),
        ("wrong suffix", "wrong.mp4", "warning", ".mp4"),
        ("variable frame rate", "variable.mp4", "note", "on average"),  # times are true all the same
        ("rotated video", "rotated.mp4", "note", "90 degrees and shown as 96x160"),
        ("unreadable rights", "locked.mp4", "error", "mode 000"),
        ("duration past the video", "'long duration'", "warning", "12 s"),
        ("window past the video", "'late window'", "warning", "[9, 11] lies past the end"),
        ("clip past the video", "'trimmed'", "warning", "ends at 11 s"),
        ("clip past the video", "'trimmed away'", "error", "begins at 9 s"),  # no frame to show
        ("duplicate names", "twice", "warning", "2 files"),
    ],
)
def test_doctor_names_every_trouble(report: DoctorReport, kind: str, subject: str, level: str, words: str) -> None:
    finding = find(report, kind, subject)
    assert finding.level == level
    assert words in finding.message, finding
    assert finding.next_step


@pytest.mark.skipif(av1_encoder() is None, reason="LOUD: this PyAV has no AV1 encoder, so AV1 is not tested")
def test_doctor_names_av1(report: DoctorReport) -> None:
    assert "av1" in find(report, "AV1 video", "av1.mp4").message


def test_doctor_says_nothing_of_a_healthy_video(sick: Sick, report: DoctorReport) -> None:
    assert not [finding for finding in report.findings if "well.mp4" in finding.subject]
    assert report.data["videos"][sick.file("well.mp4")]["state"] == "ok"


def test_doctor_survives_and_says_that_a_run_would_fail(report: DoctorReport) -> None:
    assert report.exit_code == 1
    assert "a run would fail" in str(report) and "a run would fail" in report._repr_html_()
    assert json.loads(json.dumps(report.as_dict()))["exit_code"] == 1
    assert set(report.data["stage_seconds"]) == {"grpo", "distill", "sft", "grpo_final", "analysis"}


def test_quick_looks_and_measures_nothing(sick: Sick) -> None:
    report = examine(sick.params, quick=True)
    kinds = {finding.kind for finding in report.findings}
    assert {"missing video", "empty video", "unreadable rights", "duplicate names"} <= kinds
    assert not kinds & {"truncated video", "audio only", "AV1 video"}
    assert report.data["pace"] is None and report.data["memory_bytes"]["grpo"]["weights"] > 0


def healthy(folder: Path, **changes: Any) -> Params:
    """Parameters of a folder with one film and four questions about it."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    if not (folder / "videos" / "a.mp4").exists():
        film(folder / "videos" / "a.mp4", CONSTANT)
        for split in dataset.SPLITS:
            write(folder / f"{split}.jsonl", [row("a.mp4", qid=f"q{k}") for k in range(4)])
    values = {"data": str(folder), "outputs": str(folder / "outputs"), "prompts_per_step": 2}
    return Params.build(values | changes)


def test_a_run_that_begins_later_costs_what_its_stages_cost(tmp_path: Path) -> None:
    report = examine(healthy(tmp_path, sft_model="embedded"), quick=True)
    assert list(report.data["memory_bytes"]) == ["grpo_final", "analysis"] and report.exit_code == 0


def test_a_healthy_folder_has_nothing_wrong(tmp_path: Path) -> None:
    report = examine(healthy(tmp_path), quick=True)
    assert (report.exit_code, report.of("error"), report.of("warning")) == (0, [], [])
    assert not list((tmp_path / "outputs").glob("*")), "quick writes nothing"


def test_every_bad_row_is_listed(tmp_path: Path) -> None:
    params = healthy(tmp_path)
    rows = [row("a.mp4", qid="q0"), "not json", row("a.mp4", qid="q0"), row("a.mp4", qid="q1", windows=[[3, 1]]),
            row("a.mp4", qid="q2", query=" "), row("a.mp4", qid="q3")]  # fmt: skip
    write(tmp_path / "train.jsonl", rows)
    bad = [finding for finding in examine(params, quick=True).findings if finding.kind == "bad row"]
    assert [finding.subject.rsplit(" ", 1)[1] for finding in bad] == ["2:", "3:", "4:", "5:"]
    assert "was used before, on line 1" in bad[1].message


def test_files_that_hold_no_moments_are_told_for_what_they_are(tmp_path: Path) -> None:
    params = healthy(tmp_path)
    write(tmp_path / "train.jsonl", [[row("a.mp4")]])
    write(tmp_path / "validation.jsonl", [{"qid": "q0", "text": "2 to 8"}])
    write(tmp_path / "test.jsonl", [row("a.mp4", qid="\ud83d"), row("a.mp4", query="half \ud83d") | {"\ud83d": 1}])
    report = examine(params, quick=True)
    said = {
        finding.subject.rpartition("/")[2]: finding.message for finding in report.findings if finding.kind == "bad row"
    }
    assert "is not a JSON object" in said["train.jsonl, line 1:"]
    assert "`labkit moments FILE --write NEW.jsonl` makes moments of it" in said["train.jsonl, line 1:"]
    assert "is a prediction, not a moment; `labkit score" in said["validation.jsonl, line 1:"]
    assert "holds half a character" in said["test.jsonl, line 1:"] and str(report).encode()


def empty_model(folder: Path) -> dict[str, Any]:
    (folder / "model").mkdir()
    return {"model": str(folder / "model")}


def other_family(folder: Path) -> dict[str, Any]:
    model = folder / "other"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    return {"model": str(model)}


def test_a_family_without_an_entry_is_told_what_the_plain_path_costs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    model, findings = environment.find_model(str(tmp_path), tmp_path)
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert model is None and "a step of GRPO takes about 3 to 5 times as long" in findings[-1].message
    ratios = [float(each) for each in re.findall(r"\| (\d\.\d) \(\d+ tokens\) \|", page.read_text())]
    assert (round(min(ratios)), round(max(ratios))) == (3, 5) and len(ratios) == 6, "what docs/families.md measured"


def broken_download(folder: Path) -> Path:
    """A model of which config and tokenizer have come, and no weights."""
    model = folder / "broken"
    model.mkdir()
    for file in SHIPPED["embedded"].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, model)
    return model


def other_run(folder: Path) -> dict[str, Any]:
    run = folder / "outputs" / "taken"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    (run / "params.yaml").write_text("seed: 3\n")
    return {"run": "taken"}


def lost_split(folder: Path) -> dict[str, Any]:
    (folder / "test.jsonl").unlink()
    return {}


@pytest.mark.parametrize(
    ("spoil", "level", "kind", "words"),
    [
        (lambda folder: {"prompts_per_step": 12}, "error", "training split", "4 usable queries"),
        (lambda folder: {"prompt": "nonsense"}, "error", "prompt", "is not a template"),
        (lambda folder: {"prompt": "options"}, "error", "prompt", "does not fit"),  # questions without options
        (lambda folder: {"compare": [str(folder)]}, "error", "compare", "is not a run"),
        (lambda folder: {"threads": 250}, "warning", "threads", "cores"),
        (lambda folder: {"dtype": "bfloat16", "device": "cpu"}, "warning", "dtype", "slow"),
        (lambda folder: {"model": "./nowhere"}, "error", "model", "is not a directory"),
        (lambda folder: {"model": "nobody/has-fetched-this"}, "warning", "model", "would download it"),
        (lambda folder: {"data": str(folder / "nowhere")}, "error", "data", "is not a folder"),
        (lambda folder: {"max_new_tokens": 2000}, "warning", "context", "1,024"),
        (empty_model, "error", "model", "is not a checkpoint"),
        (other_family, "error", "model", "'llama'"),
        (other_run, "error", "run", "seed"),
        (lost_split, "error", "moments file", "is not there"),
        (lambda folder: {"harvester": "./nowhere"}, "error", "harvester", "is not a directory"),
        (lambda folder: {"harvester": "nobody/has-fetched-this"}, "warning", "harvester", "hf download nobody"),
        (lambda folder: {"sft_model": "./nowhere"}, "error", "model", "is not a directory"),
        (lambda folder: {"grpo_model": "./nowhere"}, "error", "grpo_model", "is not a directory"),
        (lambda folder: {"traces": "none.jsonl"}, "error", "traces", "there is no file"),
        (lambda folder: {"model": str(broken_download(folder))}, "error", "model", "lacks model.safetensors"),
        # The embedded model's own rate; all weights are trained in the type that they are kept in.
        (
            lambda folder: {"dtype": "bfloat16", "learning_rate": 1e-6},
            "warning",
            "rounding",
            "1e-06: updates this small",
        ),
    ],
)
def test_what_would_spoil_a_run_is_told(tmp_path: Path, spoil: Any, level: str, kind: str, words: str) -> None:
    healthy(tmp_path)
    report = examine(healthy(tmp_path, **spoil(tmp_path)), quick=True)
    found = [finding for finding in report.of(level) if finding.kind == kind]
    assert any(words in finding.line() for finding in found), report
    assert report.exit_code == int(bool(report.of("error")))


def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = examine(healthy(tmp_path, device="cuda"), quick=True)
    assert find(report, "device", "cuda").level == "error"


def test_a_model_that_may_not_be_fetched_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    report = examine(healthy(tmp_path, model="nobody/has-fetched-this"), quick=True)
    finding = find(report, "model", "nobody")
    assert finding.level == "error" and "HF_HUB_OFFLINE" in finding.message and "hf download" in finding.next_step


def test_a_gpu_that_is_elsewhere_is_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    params = healthy(tmp_path, device="cuda", dtype="bfloat16", sharding="fsdp2", processes=2)
    report = examine(params)
    assert report.data["processes"] == 2 and report.data["pace"] is None
    assert report.data["memory_bytes"]["grpo"]["gathered"] > 0
    assert "on each of 2 GPUs" in str(report)
    assert not {"dtype", "rounding", "memory"} & {finding.kind for finding in report.findings}


@pytest.mark.slow
def test_what_a_model_costs_is_known_before_its_weights_are_here(tmp_path: Path) -> None:
    params = healthy(tmp_path, model=str(broken_download(tmp_path)), harvester="embedded")
    report = examine(params)
    assert report.exit_code == 1
    whole = examine(params.replace(model="embedded"), quick=True)
    assert report.data["memory_bytes"]["sft"] == pytest.approx(whole.data["memory_bytes"]["sft"], rel=0.1)
    assert "not loaded" in report.data["pace"]["basis"]


@pytest.mark.parametrize(
    ("change", "rounded"),
    [
        ({}, True),
        ({"dtype": "float32"}, False),
        ({"lora_rank": 4}, False),  # adapters are kept in float32
        ({"processes": 2}, True),  # each has the whole model
        ({"processes": 2, "sharding": "fsdp2"}, False),  # what is shared out is kept in float32
        ({"learning_rate": 1e-3, "sft_learning_rate": 1e-3}, False),
    ],
)
def test_steps_that_bfloat16_swallows_are_told(change: dict[str, Any], rounded: bool) -> None:
    params = Params.build({"dtype": "bfloat16", "learning_rate": 1e-6} | change)
    machine = environment.Machine("cuda", "a GPU", 80e9, 8, True)
    kinds = [finding.kind for finding in environment.machine_findings(machine, params)]
    assert kinds == ["rounding"] * rounded


def test_generation_by_vllm_is_told_where_it_cannot_run() -> None:
    here = environment.Machine("cpu", "here", 80e9, 8, True)
    found = {
        device: [
            finding.level for finding in environment.machine_findings(here, params) if finding.kind == "generation"
        ]
        for device in ("cpu", "cuda")
        for params in [Params(generation="vllm", device=device)]
    }
    assert found["cpu"] == ["error"]
    assert found["cuda"] in ([], ["warning"])  # planned for another machine; it may be installed here


@pytest.mark.parametrize(("processes", "gpus", "told"), [(8, 4, True), (4, 4, False), (0, 4, False), (2, 0, False)])
def test_more_processes_than_gpus_are_told(processes: int, gpus: int, told: bool) -> None:
    machine = environment.Machine("cuda" if gpus else "cpu", "here", 80e9, 8, True, gpus)
    params = Params(processes=processes, prompts_per_step=16)
    assert ["processes"] * told == [finding.kind for finding in environment.machine_findings(machine, params)]
    assert environment.target_machine(machine, params)[1] == (processes or gpus)


def test_bfloat16_weights_do_swallow_such_steps() -> None:
    import torch

    def moved(rate: float, dtype: torch.dtype) -> float:
        weight = torch.nn.Parameter(torch.full((64,), 0.02, dtype=dtype))
        start = weight.detach().clone()
        optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return float((start - weight.detach()).mean()) / (20 * rate)

    assert moved(1e-6, torch.float32) == pytest.approx(1, rel=0.1)
    assert moved(1e-6, torch.bfloat16) == 0, "not one of 20 steps was taken"


def test_the_embedded_world_is_known_before_it_is_written(tmp_path: Path) -> None:
    params = Params.build({"outputs": str(tmp_path), "world_train": 12, "world_test": 6, "test_limit": 16})
    report = examine(params, quick=True)
    assert report.exit_code == 0
    load = report.data["load"]
    assert (load["train"], load["test"], load["train_clips"], load["video_tokens"]) == (47, 16, 12, 96)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("memory", "free", "expected"),
    [
        (1e12, 1e12, []),
        (1e9, 1e12, 5 * [("error", "memory")]),  # torch and the libraries alone take as much
        (1e12, 1e6, [("error", "disk")]),
        (0.0, 1e12, []),  # a system that does not say how much it has
    ],
)
def test_what_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: float, free: float, expected: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(environment, "_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    report = examine(healthy(tmp_path, device="cpu"), quick=True)
    assert [finding[:2] for finding in report.findings] == expected


@pytest.mark.parametrize(
    ("stage", "parts", "words"),
    [
        ("sft", {"logits": 9e9, "weights": 1e9}, "sft_batch"),
        ("grpo", {"activations": 9e9, "weights": 1e9}, "prompts_per_pass or set gradient_checkpointing"),
        ("distill", {"cache": 9e9, "weights": 1e9}, "harvest_samples"),
        ("analysis", {"features": 9e9, "weights": 1e9}, "feature_memory"),
        ("grpo", {"optimizer": 9e9, "weights": 1e9}, "lora_rank"),
        ("distill", {"weights": 6e9, "merged adapter": 4e9}, "lora_merge: false"),  # which is enough
    ],
)
def test_the_step_against_too_little_memory_is_that_of_the_largest_part(
    stage: str, parts: dict[str, float], words: str
) -> None:
    (finding,) = resources._memory_findings(stage, parts, 1e9, 10e9)
    assert finding.level == "error" and words in finding.next_step
    assert finding.message == f"may not suffice: about 11 GB of 10 GB, most of it {max(parts, key=parts.__getitem__)}"
    assert resources._memory_findings(stage, parts, 0.0, 11e9)[0].level == "warning"
    assert resources._memory_findings(stage, parts, 0.0, 20e9) == []


@pytest.mark.parametrize(
    ("needed", "level", "words"),
    [
        ("numpy>=1", None, ""),
        ("numpy>=1000", "warning", "needs >=1000"),
        ("no-such-package>=2", "error", "not installed"),
        ('no-such-package>=2; sys_platform == "amiga"', None, ""),  # not needed here
        ('no-such-package>=2; extra == "test"', None, ""),  # nor for a run
    ],
)
def test_packages_are_compared_with_what_is_needed(needed: str, level: str | None, words: str) -> None:
    found = environment.package_findings(">=3.11", [needed])
    assert [finding.level for finding in found] == ([level] if level else [])
    assert words in "".join(finding.message for finding in found)


def test_python_is_compared_with_what_is_needed() -> None:
    assert [finding.level for finding in environment.package_findings("<3.9", [])] == ["error"]


@pytest.mark.parametrize(("load", "count"), [(0.0, 0), (1.4, 0), (1.6, 1)])
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, load: float, count: int) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    machine = environment.Machine("cpu", "two cores", 1e10, 2, False)
    assert len(environment.load_findings(machine)) == count


def test_requirements_come_from_the_checkout_or_the_installation(tmp_path: Path) -> None:
    python, packages = environment.requirements()
    assert python.startswith(">=3.11") and any(name.startswith("torch>=") for name in packages)
    assert isinstance(environment.requirements(tmp_path / "nowhere.toml")[1], list)


def test_the_command_tells_how_many_videos_are_opened(capsys: pytest.CaptureFixture[str]) -> None:
    tell = checks._video_progress()
    tell(1, 2)
    tell(2, 2)
    assert capsys.readouterr().out == "videos opened: 2 of 2, 0 s\n"


def test_the_command_prints_a_report_or_json(tmp_path: Path) -> None:
    healthy(tmp_path)
    (tmp_path / "p.yaml").write_text(f"data: {tmp_path}\noutputs: {tmp_path / 'outputs'}\n")
    said: list[str] = []
    assert run_doctor(tmp_path / "p.yaml", {"prompts_per_step": "2"}, said.append, quick=True) == 0
    assert run_doctor(tmp_path / "p.yaml", {}, said.append, quick=True, as_json=True) == 1
    assert said[0].endswith("a run can start")
    assert json.loads(said[1])["findings"][0]["kind"] == "training split"
    with pytest.raises(LabError, match="unknown parameter"):
        run_doctor(tmp_path / "p.yaml", {"nonsense": "1"}, said.append)
