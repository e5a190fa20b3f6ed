"""What leaves a run: traces that other trainers read, a model that plain transformers load, a card that says what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import files
from labkit.chain.spans import Span
from labkit.cli import main
from labkit.data.moments import FIELDS, moment_of, read_moments, write_moments
from labkit.errors import LabError
from labkit.params import DEFAULTS
from labkit.policy.adapters import add_lora
from labkit.policy.model import Policy, ignore_renames, load_policy, save_policy
from labkit.runs.export import export_model, export_traces
from labkit.runs.model_card import model_card
from labkit.runs.run import Run
from labkit.scoring.predictions import as_predictions
from labkit.scoring.scores import score
from labkit.stages.traces import read_traces
from tests import tiny
from tests.stages import small


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six moments of three clips, of which each has a trace."""
    folder = tmp_path_factory.mktemp("data")
    moments = tiny.moments(folder)
    for split in ("train", "validation", "test"):
        write_moments(moments, folder / f"{split}.jsonl")
    rows = [trace._asdict() for trace in small.traces(moments)]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, moments


@pytest.fixture
def run(clips, tmp_path, monkeypatch) -> Run:
    """A run that was given its traces; no stage of it has been walked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_locks", {})
    params = DEFAULTS.replace(run="x", data=str(clips[0]), traces=str(clips[0] / "traces.jsonl"), prompt="anchors")
    return Run.open(params)


def finish_stage(run: Run, policy: Policy, stage: str = "04_grpo_final") -> None:
    save_policy(policy, run.folder(stage) / "final")


@pytest.fixture
def adapted() -> Policy:
    """A tiny model under LoRA whose adapter does something."""
    made = tiny.policy()
    with ignore_renames():
        policy = Policy(add_lora(made.model, 4, 8, 0), made.tokenizer, "tiny")
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    return policy


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- traces


def test_traces_hold_the_exact_prompt_and_answer_in_each_form(run, clips, tmp_path):
    moment, trace = clips[1][0], small.traces(clips[1])[0]
    words = {"jsonl": "prompt", "trl": "", "swift": "", "llamafactory": ""}
    found = {form: rows_of(tmp_path / form) for form in words if export_traces(run.path, tmp_path / form, form)}
    assert {form: len(rows) for form, rows in found.items()} == dict.fromkeys(words, 6)
    prompt = found["jsonl"][0]["prompt"]
    assert prompt.startswith("<video>") and moment.query in prompt and "<timestamp>" in prompt
    plain = found["jsonl"][0]
    assert (plain["qid"], plain["text"], plain["video"], plain["duration"]) == (*trace, moment.video, 8.0)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": trace.text}]
    assert found["swift"][0] == found["llamafactory"][0] == {"messages": turns, "videos": [moment.video]}
    assert found["trl"][0]["prompt"][0]["content"] == [
        {"type": "video"}, {"type": "text", "text": prompt.removeprefix("<video>")}
    ]  # fmt: skip
    assert read_traces(tmp_path / "jsonl") == small.traces(clips[1]), "a run's `traces` takes them again"
    known = json.loads((tmp_path / "dataset_info.json").read_text())
    assert known["llamafactory"]["columns"]["videos"] == "videos"


def test_a_second_file_for_llamafactory_leaves_the_first_entry(run, tmp_path):
    for name in ("a", "b"):
        export_traces(run.path, tmp_path / f"{name}.jsonl", "llamafactory")
    assert list(json.loads((tmp_path / "dataset_info.json").read_text())) == ["a", "b"]


@pytest.mark.slow
def test_trl_trains_a_step_on_the_text_of_exported_traces(run, tmp_path):
    import trl
    from datasets import load_dataset

    export_traces(run.path, tmp_path / "trl.jsonl", "trl")
    data = load_dataset(
        "json", data_files=str(tmp_path / "trl.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(data.column_names) == {"prompt", "completion", "videos"} and len(data) == 6
    policy = load_policy("embedded", device="cpu")
    before = small.weights(policy)
    with ignore_renames():  # TRL calls transformers by names that it has changed
        arguments = trl.SFTConfig(
            str(tmp_path / "sft"), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[], use_cpu=True,
            bf16=False, save_strategy="no", disable_tqdm=True, logging_steps=1, max_length=None,
        )  # fmt: skip
        trainer = trl.SFTTrainer(policy.model, arguments, train_dataset=data, processing_class=policy.tokenizer)
    shown = policy.tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert shown.count("<|video_pad|>") == 1 and "reaches the border" in shown.replace("<unk>", "reaches the border")
    with ignore_renames():
        trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"]) and small.farthest(before, small.weights(policy)) > 0


def test_windows_of_longer_videos_are_refused_where_a_form_cannot_say_them(run, clips, tmp_path, monkeypatch):
    cut = [dataclasses.replace(moment, clip=Span(0, 8)) for moment in clips[1]]
    monkeypatch.setattr(Run, "moments", lambda self, split: cut, raising=False)
    monkeypatch.setattr("labkit.runs.workbench.Workbench.moments", lambda self, split: cut)
    with pytest.raises(LabError, match="6 of 6 queries .* window of a longer video, and swift has no word for that"):
        export_traces(run.path, tmp_path / "f", "swift")
    export_traces(run.path, tmp_path / "f", "jsonl")
    assert rows_of(tmp_path / "f")[0]["clip"] == [0, 8]


def test_a_trace_in_our_own_form_says_all_of_its_moment(run, clips, tmp_path, monkeypatch):
    two = (Span(1.0, 2.5), Span(4.0, 7.0))
    asked = [
        dataclasses.replace(moment, windows=two, as_set=at > 0, source="own") for at, moment in enumerate(clips[1])
    ]
    monkeypatch.setattr("labkit.runs.workbench.Workbench.moments", lambda self, split: asked)
    export_traces(run.path, tmp_path / "f", "jsonl")
    rows = rows_of(tmp_path / "f")
    read = [moment_of({name: row[name] for name in FIELDS if name in row}, tmp_path) for row in rows]
    assert read == asked and "as_set" not in rows[0] and rows[1]["as_set"] is True
    write_moments(read, tmp_path / "again.jsonl")
    assert read_moments(tmp_path / "again.jsonl") == asked


# --- models


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_plain_transformers_load_an_exported_model_whole(family, run, tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

    policy = tiny.policy(family=family)
    finish_stage(run, policy)
    export_model(run.path, tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == policy.family.model_class
    ids = torch.tensor([[5, 9, 40, 41]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, policy.base(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.eos_token_id
    images = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    vision = policy.base.config.vision_config
    assert (images.patch_size, images.merge_size, images.image_mean[0]) == (
        vision.patch_size,
        2,
        policy.family.mean[0],
    )
    video = json.loads((tmp_path / "out" / "video_preprocessor_config.json").read_text())
    frames = DEFAULTS.max_frames if family == "qwen3_vl" else 1
    assert video["size"]["longest_edge"] == frames * DEFAULTS.max_pixels


def test_adapters_are_merged_and_weights_sharded_under_their_published_names(run, adapted, tmp_path, monkeypatch):
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr("labkit.runs.export.SHARD", "200KB")
    tiny_base = tmp_path / "base"
    save_policy(tiny.policy(), tiny_base)
    adapted.model.peft_config["default"].base_model_name_or_path = str(tiny_base)
    finish_stage(run, adapted)
    said = export_model(run.path, tmp_path / "out")
    assert "LoRA merged, and by itself in adapter/" in said
    card = (tmp_path / "out/README.md").read_text()
    assert "LoRA of rank 4 is merged into these weights. `adapter/` holds the adapter alone" in card
    ids = torch.tensor([[5, 9, 40, 41]])
    with torch.no_grad():
        alone, whole = (load_policy(str(tmp_path / "out" / part), device="cpu") for part in ("adapter", ""))
        assert torch.equal(alone.model(input_ids=ids).logits, adapted.model(input_ids=ids).logits)
        assert (whole.model(input_ids=ids).logits - alone.model(input_ids=ids).logits).abs().max() < 1e-4
    assert any(weight.requires_grad for weight in alone.model.parameters()), "to be trained on"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    shards = set(index.values())
    assert len(shards) > 1 and all((tmp_path / "out" / shard).is_file() for shard in shards)
    with safe_open(tiny_base / "model.safetensors", "pt") as base:
        assert set(index) == set(base.keys())  # as the base's, which vLLM and others look for
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        ours, theirs = adapted.model(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(
            theirs, tiny.policy().model(input_ids=ids).logits, atol=1e-2
        )


def test_an_export_is_not_written_over_and_one_that_is_there_is_taken(run, tmp_path):
    finish_stage(run, tiny.policy())
    (tmp_path / "mine").mkdir()
    with pytest.raises(LabError, match="'.*mine' exists already and is another thing"):
        export_model(run.path, tmp_path / "mine")
    export_model(run.path, tmp_path / "out")
    assert export_model(run.path, tmp_path / "out").endswith(
        "is there already, as it was exported before; remove it to write model and card anew"
    )
    with pytest.raises(LabError, match="another thing"):
        export_model(run.path, tmp_path / "out", "sft")


@pytest.mark.parametrize(
    ("given", "stage"), [("sft_model", "sft"), ("sft_model", "grpo"), ("grpo_model", "grpo"), ("traces", "grpo")]
)
def test_a_model_that_the_run_was_given_is_not_exported_as_trained_by_it(given, stage, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = str(clips[0] / "traces.jsonl") if given == "traces" else "embedded"
    run = Run.open(DEFAULTS.replace(run="given", data=str(clips[0]), **{given: value}))
    with pytest.raises(LabError, match=rf"has trained no {stage}: 0._{stage} is skipped: .* from {given} '.*--stage"):
        export_model(run.path, tmp_path / "out", stage)
    assert main(["export", str(run.path), "--hub", "me/x", "--stage", stage]) == 2, "the hub is not asked"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say what is to leave the run"),
        (("--model", "out"), "there is no model '.*04_grpo_final/final'; run notebooks/04_grpo_final.ipynb first"),
        (("--hub", "me/x"), "there is no model '.*04_grpo_final/final'"),  # the hub is not asked
    ],
)
def test_what_cannot_be_exported_is_one_error(words, message, run, capsys):
    import re

    assert main(["export", str(run.path), *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_run_without_a_harvest_has_no_traces_to_export(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Run.open(DEFAULTS.replace(run="y", data=str(clips[0])))
    assert main(["export", str(run.path), "--traces", "t.jsonl"]) == 2
    assert "has no harvest: 02_distill is new; run it first" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--traces", "t.jsonl"]) == 2
    assert "is not a run" in capsys.readouterr().err


# --- the card


def scored(run: Run, clips: Any, answers: str, manifest_only: tuple[str, ...] = ("sft", "grpo_final")) -> None:
    """Put scores of the same answer to every query into the run's manifest."""
    made = score(as_predictions({moment.qid: answers for moment in clips[1]}), clips[1], train=clips[1])
    manifest = run.manifest
    manifest["stages"]["05_analysis"] = {
        "state": "finished", "figures": {"scores": {stage: made.as_dict() for stage in manifest_only}}
    }  # fmt: skip
    (run.path / "manifest.json").write_text(json.dumps(manifest))


def test_the_card_carries_score_interval_baselines_and_protocol(run, clips):
    scored(run, clips, "<answer>2 to 6</answer>")
    card = model_card(run.path, "grpo_final", "Qwen2.5-VL")
    assert card.startswith("---\nlibrary_name:") and "base_model:" not in card
    row = next(line for line in card.splitlines() if line.startswith("| mIoU |"))
    figures = run.manifest["stages"]["05_analysis"]["figures"]["scores"]["grpo_final"]
    assert f"| {100 * figures['figures']['miou']:.1f} |" in row and "best constant" in card and "| sft |" in card
    assert "questions scored" in card and "clustered by 3 source videos" in card
    assert "- This run begins with 03_sft." in card
    manifest = run.manifest
    manifest["stages"]["01_grpo"]["why"] = "in other words"
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    assert "- This run begins with 03_sft." in model_card(run.path, "grpo_final", "Qwen2.5-VL")
    assert str(run.path.parent) not in card and str(clips[0]) not in card, (
        "folders of this machine are nobody's business"
    )


@pytest.mark.parametrize(
    ("interval", "constant", "words"),
    [
        ([0.5, 0.6], 0.4, "lies above what the best constant answer, which never looks, has: 40.0."),
        (
            [0.3, 0.6],
            0.4,
            "lies around what the best constant answer, which never looks, has: 40.0. So it is not shown",
        ),
        (
            [0.1, 0.2],
            0.4,
            "lies below what the best constant answer, which never looks, has: 40.0. So it is not shown",
        ),
        ([None, None], 0.4, "There are too few videos for an interval; the best constant answer has an mIoU of 40.0."),
    ],
)
def test_what_the_card_says_follows_from_the_figures(interval, constant, words, run, clips):
    scored(run, clips, "<answer>2 to 6</answer>")
    manifest = run.manifest
    made = manifest["stages"]["05_analysis"]["figures"]["scores"]["grpo_final"]
    made["intervals"]["miou"], made["baselines"]["best constant"]["miou"] = interval, constant
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    card = model_card(run.path, "grpo_final", "Qwen2.5-VL")
    assert words in card and ("So it is not shown" in card) == ("So it is not shown" in words)


def test_anchors_are_said_to_be_as_frequent_as_they_were_measured(run):
    assert "anchors" not in model_card(run.path, "grpo_final", "Qwen2.5-VL").partition("## ")[0]
    manifest = run.manifest
    greedy = {"n": 16.0, "anchor_rate": 0.0, "strict_share": 0.0}
    manifest["stages"]["04_grpo_final"] = {"state": "finished", "figures": {"grpo_final": {"greedy": greedy}}}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    card = model_card(run.path, "grpo_final", "Qwen2.5-VL")
    assert "Of its greedy answers to 16 test queries, 0.0 % hold timestamp anchors in the thought" in card


def test_a_model_that_was_not_scored_has_a_card_that_says_so(run):
    assert "It has not been scored" in model_card(run.path, "sft", "Qwen2.5-VL")


# --- the hub


class Hub:
    """A stand-in for the hub: what it was asked, what it holds, and the status with which it refuses."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.refuse = 0

    def answer(self, method: str, path: str, body: bytes, base: str) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if self.refuse:
            return self.refuse, {"error": "not for you"}
        told = json.loads(body) if body[:1] == b"{" and b"\n{" not in body else {}
        if path == "/api/repos/create":
            self.private = told.get("private", told.get("visibility") == "private")
            return 200, {"url": f"{base}/me/x", "name": "me/x", "id": "1"}
        if path.endswith("/preupload/main"):
            modes = {True: "lfs", False: "regular"}
            rows = [
                {"path": row["path"], "uploadMode": modes[row["path"].endswith("safetensors")], "shouldIgnore": False}
                for row in told["files"]
            ]
            return 200, {"files": rows}
        if path.endswith("/info/lfs/objects/batch"):
            rows = [
                {**row, "actions": {"upload": {"href": f"{base}/lfs/{row['oid']}", "header": {}}}}
                for row in told["objects"]
            ]
            return 200, {"transfer": "basic", "objects": rows}
        if path.startswith("/lfs/"):
            self.files[path.removeprefix("/lfs/")] = body
            return 200, {}
        if path.endswith("/commit/main"):
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    import base64

                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "lfsFile":
                    self.files[row["value"]["path"]] = self.files[row["value"]["oid"]]
            return 200, {"commitUrl": f"{base}/me/x/commit/{'0' * 40}", "commitOid": "0" * 40, "pullRequestUrl": None}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        return 200, {"id": "me/x", "sha": "0" * 40, "siblings": [], "xetEnabled": False}


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, made = hub.answer(
                self.command, self.path.partition("?")[0], body, f"http://{self.headers['Host']}"
            )
            data = json.dumps(made).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if hub.refuse:
                self.send_header("X-Error-Message", "not for you")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = _any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield hub
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client calls its HTTP library so
def test_a_model_is_pushed_with_its_card_and_is_private_unless_asked(run, hub, capsys):
    finish_stage(run, tiny.policy())
    assert main(["export", str(run.path), "--model", "out", "--hub", "me/x"]) == 0
    assert hub.private and capsys.readouterr().out.strip().endswith("/me/x")
    sent = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {name: hub.files.get(name) for name in sent} == sent
    assert b"# x, final" in hub.files["README.md"]
    assert main(["export", str(run.path), "--hub", "me/x", "--public"]) == 0
    assert not hub.private and not list(run.path.glob(".export-*")), "what was made on the way is gone"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_published_adapter_says_no_folder_of_this_machine(run, adapted, hub, tmp_path):
    save_policy(tiny.policy(), tmp_path / "base")
    adapted.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    finish_stage(run, adapted)
    assert main(["export", str(run.path), "--hub", "me/x"]) == 0
    config = json.loads(hub.files["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == "base"
    assert not [name for name, data in hub.files.items() if str(tmp_path).encode() in data]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "(401: not for you); log in with 'hf auth login', or set HF_TOKEN"),
        (403, "(403: not for you); your token may not write there"),
        (404, "(404: not for you); there is no such owner or repository for your token"),
    ],
)
def test_a_hub_that_refuses_is_one_error_before_anything_is_written(status, message, run, hub, capsys):
    finish_stage(run, tiny.policy())
    hub.refuse = status
    assert main(["export", str(run.path), "--model", "out", "--hub", "me/x"]) == 2
    told = capsys.readouterr().err
    assert f"refuses 'me/x' {message}" in told and told.count("\n") == 1
    assert not Path("out").exists() and hub.files == {}


def test_no_network_offline_mode_and_a_name_that_is_none_are_errors_too(run, hub, monkeypatch, capsys):
    from huggingface_hub import constants

    finish_stage(run, tiny.policy())
    assert main(["export", str(run.path), "--hub", "a/b/c"]) == 2
    assert "'a/b/c' is no id of a repository" in capsys.readouterr().err
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["export", str(run.path), "--hub", "me/x"]) == 2
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["export", str(run.path), "--hub", "me/x"]) == 2
    assert "HF_HUB_OFFLINE forbids to push" in capsys.readouterr().err
