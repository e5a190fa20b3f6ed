"""What the embedded models' vocabulary of whole words hides: Qwen's own byte pairs, all 151,936 rows, a run's true lengths."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from labkit.chain.anchors import parse
from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.doctor.checks import examine
from labkit.doctor.dataset import DataReport
from labkit.doctor.environment import Machine
from labkit.doctor.findings import DoctorReport
from labkit.doctor.rehearsal import add_rehearsal
from labkit.doctor.tokenizer import shortest_chain, tokenizer_findings
from labkit.embedded.model import build_tokenizer
from labkit.params import Params, read_params
from labkit.policy.forbidden_text import ForbiddenText
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.stages.sft import collate
from tests import test_charades
from tests.data.films import film
from tests.true_vocabulary import ADDED_QWEN3, ROWS, config, tokenizer, write_folder

TAGS = ["<think>", "</think>", "<timestamp>", "</timestamp>", "<answer>", "</answer>"]
MOMENT = Moment("q", "/a.mp4", "a person opens the door", (Span(22.3, 33.0),), 35.04)
PARAMS = Params(prompt="anchors", max_new_tokens=512)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # The beginning of every prompt of Qwen2.5-VL.
        ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
         [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]),
        ("<think>", [13708, 766, 29]),  # three tokens, and none of them the word
        ("12.5 to 3.25", [16, 17, 13, 20, 311, 220, 18, 13, 17, 20]),  # digit by digit, the blank before one alone
        ("<timestamp>", [27, 13035, 29]),
        (" <timestamp>", [366, 13035, 29]),  # behind a blank another token begins it
        ("<|vision_start|><|video_pad|><|vision_end|>", [151652, 151656, 151653]),
    ],
)  # fmt: skip
def test_the_true_tokenizer_writes_the_published_ids(text: str, ids: list[int]) -> None:
    assert tokenizer()(text)["input_ids"] == ids
    assert tokenizer().decode(ids) == text


def changed(**changes: Any) -> Any:
    made = copy.deepcopy(tokenizer())
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def with_tokens(*tokens: str, special: bool) -> Any:
    made = changed()
    made.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    return made


def told(tok: Any, params: Params = PARAMS, **text: Any) -> dict[str, str]:
    """Findings by kind."""
    findings = tokenizer_findings(tok, config("qwen2_5_vl", **text), params, params.prompt, [MOMENT])
    return {finding.kind: f"{finding.level}: {finding.line()}" for finding in findings}


def test_the_published_tokenizers_are_told_nothing() -> None:
    assert told(tokenizer()) == {}
    assert told(with_tokens(*ADDED_QWEN3, special=False)) == {}  # Qwen3-VL: <think> is one token, and no special one
    assert told(with_tokens(*TAGS, special=False)) == {}  # 271 rows are spare


@pytest.mark.parametrize(
    ("kind", "words", "spoil"),
    [
        # 48 tokens hold a chain of the embedded world, where a number is one token.
        ("chain", "warning: max_new_tokens = 48 cuts every chain off: the shortest has 53 tokens",
         lambda: told(tokenizer(), PARAMS.replace(max_new_tokens=48))),
        # Its default leaves 11 tokens to think.
        ("chain", "warning: max_new_tokens = 64 cuts chains off", lambda: told(tokenizer(), PARAMS.replace(max_new_tokens=64))),
        # Tags added as special tokens, as many SFT recipes do, vanish when a text is decoded: every chain would be `no_think`.
        ("chain", "warning: the tokenizer reads its own tokens", lambda: told(with_tokens(*TAGS, special=True))),
        # The base models' tokenizer_config.json has the end of a document in place of that of a turn.
        ("end of turn", "SFT would teach another end", lambda: told(changed(eos_token="<|endoftext|>"))),
        # More tokens than rows: on a GPU an assertion of the device, after the model is loaded.
        ("tokenizer", "knows 151,671 tokens, and the model has rows for 151,665",
         lambda: told(with_tokens(*TAGS, special=False), vocab_size=151_665)),
        ("chat template", "writes 0 video placeholders",  # a text model's
         lambda: told(changed(chat_template=tokenizer().chat_template.replace("<|video_pad|>", "")))),
        ("prompt", "no chat template; copy", lambda: told(changed(chat_template=None))),
    ],
)  # fmt: skip
def test_what_a_tokenizer_would_spoil_is_told(kind: str, words: str, spoil: Any) -> None:
    assert words in spoil()[kind]


def test_the_embedded_vocabulary_hides_it() -> None:
    words, pairs = (
        len(made(shortest_chain(PARAMS, MOMENT))["input_ids"]) for made in (build_tokenizer(), tokenizer())
    )
    assert (words, pairs) == (17, 52)


def test_the_tag_is_forbidden_however_its_tokens_begin() -> None:
    head = SimpleNamespace(weight=torch.zeros(ROWS, 1))
    policy: Any = SimpleNamespace(
        tokenizer=tokenizer(), device="cpu", base=SimpleNamespace(get_output_embeddings=lambda: head)
    )
    forbidden = ForbiddenText(policy, "<ti", ["at <", "at<", "at <t", "at "])
    masked = forbidden.mask(torch.zeros(4, ROWS)).isinf()
    (timestamp, imestamp, title) = (tokenizer().convert_tokens_to_ids(each) for each in ("timestamp", "im", "<title"))
    assert masked[:, timestamp].tolist() == [True, True, False, False]
    assert masked[:, imestamp].tolist() == [False, False, True, False]
    assert masked[:, title].tolist() == [True, True, True, True]  # it holds <ti itself
    forbidden.follow(torch.tensor([[366]] * 4))  # " <" ends in the text's first character
    assert forbidden.mask(torch.zeros(4, ROWS)).isinf()[:, timestamp].all()


def test_a_special_token_that_is_spelt_out_stays_text_in_sft() -> None:
    """A model may write `<|video_pad|>` letter by letter: as a token it would want frames of its own."""
    policy = Policy(None, tokenizer(), "true")
    text = f"<think>{'<|video_pad|>'}</think>\n<answer>1.0 to 2.0</answer>"
    prompt = Prompt("q", torch.tensor([1]), torch.zeros(3, 1), (1, 2, 2), 1.0, torch.zeros(1, 4))
    labels = collate(policy, {"q": prompt}, [{"qid": "q", "text": text}])["labels"][0]
    assert 151656 not in labels and labels[-1] == 151645
    assert tokenizer().decode(labels[:-1]) == text and parse(text).answer == Span(1.0, 2.0)


@pytest.mark.parametrize(
    ("params", "level", "words"),
    [
        (Params(), "note", "needs no rehearsal"),  # the embedded lab's own model is small
        (Params(data="somewhere"), "error", "lacks what a rehearsal needs"),  # no model and no data were found
    ],
)
def test_what_cannot_be_rehearsed_is_said(params: Params, level: str, words: str) -> None:
    report = DoctorReport("doctor")
    add_rehearsal(report, params, None, DataReport(), None, Machine("cpu", "here", 8e9, 2, False))
    (finding,) = report.findings
    assert (finding.level, finding.kind) == (level, "rehearsal") and words in finding.message


def data(folder: Path) -> Path:
    """The real Charades video with its six queries; a generated film where it is absent."""
    if test_charades.VIDEO.exists():
        asked = test_charades.real_moments()
    else:
        path = film(folder / "film.mp4", range(0, 36_000, 100))
        asked = [
            replace(MOMENT, qid=f"film-{k}", video=str(path), windows=(Span(4.0 + k, 9.0 + k),)) for k in range(6)
        ]
    for split in ("train", "validation", "test"):
        write_moments(asked, folder / "data" / f"{split}.jsonl")
    return folder / "data"


@pytest.mark.slow
def test_every_stage_of_the_3b_is_rehearsed_in_its_true_vocabulary(tmp_path: Path) -> None:
    few = {
        "prompts_per_step": 2,
        "group_size": 2,
        "harvest_samples": 4,
        "sft_batch": 2,
        "eval_batch": 2,
        "probe_queries": 0,
    }
    here = {
        "model": str(write_folder(tmp_path / "3b")),
        "data": str(data(tmp_path)),
        "outputs": str(tmp_path / "outputs"),
    }
    params = read_params(
        "params/qwen2.5-vl-3b-lora.yaml", few | here | {"threads": 1, "dtype": "float32", "readers": 0}
    )
    report = examine(params, quick=True, rehearsed=True)
    assert not [each for each in report.findings if each.kind == "rehearsal"], report
    stages = {each["stage"]: each for each in report.data["rehearsal"]}
    assert list(stages) == ["the model", "01 grpo", "02 distill", "03 sft", "04 grpo_final", "05 analysis"]
    assert stages["05 analysis"]["tags where they are forbidden"] == 0
    chains = stages["01 grpo"]["chain_tokens"]
    assert len(chains) == 2 * 2 and all(chain <= params.max_new_tokens for chain in chains)
    if test_charades.VIDEO.exists():
        assert min(stages["01 grpo"]["prompt_tokens"]) > 2200, "70 frames of 35 s, two in a patch, and the text"
    assert not list(tmp_path.glob("outputs/*")), "nothing is left behind"
