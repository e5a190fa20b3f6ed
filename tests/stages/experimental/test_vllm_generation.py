"""vLLM as the writer of rollouts: what it is asked, how its answers are read, and when it is refused. No vLLM is run here: see
`test_with_vllm`."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy, load_policy
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import ClipFrames
from labkit.stages.experimental.vllm_generation import collapse_placeholders, generate_with_vllm, require_vllm
from labkit.stages.rollouts import RolloutStore
from tests import tiny
from tests.stages import small
from tests.stages.small import farthest, weights


class Engine:
    """Stands for `vllm.LLM`: keeps what it is asked, and writes `script` for each sample."""

    def __init__(self, script: list[list[int]]) -> None:
        self.script, self.asked, self.sampling = script, [], []

    def generate(self, requests: list[Any], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked, self.sampling = requests, sampling_params
        return [SimpleNamespace(outputs=[self.sample(ids) for ids in self.script]) for _ in requests]

    def sample(self, ids: list[int]) -> Any:
        steps = [{token: SimpleNamespace(logprob=-0.5 * at, rank=1)} for at, token in enumerate(ids)]
        return SimpleNamespace(token_ids=tuple(ids), logprobs=steps)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny.policy()


@pytest.fixture
def prompts(policy: Policy) -> list[Prompt]:
    video = policy.base.config.video_token_id
    ids = torch.tensor([50, video, video, video, video, 51])
    rest = dict(positions=torch.zeros(3, 6), grid=(1, 4, 4), seconds_per_grid=1.0, features=torch.zeros(4, 8))
    return [Prompt(qid="a", ids=ids, **rest), Prompt(qid="b", ids=ids, **rest)]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.grpo_trainer  # noqa: F401 - looks for vllm collapse_placeholders, and shall not find this

    stand_in = types.ModuleType("vllm")
    stand_in.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)


def write(engine: Engine, policy: Policy, prompts: list[Prompt]) -> Any:
    frames = {
        "a": ClipFrames(np.zeros((4, 56, 56, 3), np.uint8), 2.0, np.arange(4) / 2.0),
        "b": ClipFrames(np.ones((4, 56, 56, 3), np.uint8), 0.5, np.arange(4) / 0.5),
    }
    return generate_with_vllm(
        engine, policy, prompts, frames.__getitem__, 2, max_new_tokens=9, temperature=0.7, seed=3
    )


@pytest.mark.usefixtures("vllm")
def test_each_prompt_is_asked_once_with_its_own_frames_and_rate(policy: Policy, prompts: list[Prompt]) -> None:
    end = policy.tokenizer.eos_token_id
    engine = Engine([[10, 11, end], [12]])
    write(engine, policy, prompts)
    video = policy.base.config.video_token_id
    assert [request["prompt_token_ids"] for request in engine.asked] == [[50, video, 51]] * 2
    # The checkpoint's own pixel budget shall not fit them a second time.
    assert all(not request["mm_processor_kwargs"]["do_resize"] for request in engine.asked)
    shown = [request["multi_modal_data"]["video"] for request in engine.asked]
    assert [int(rgb.max()) for rgb, _ in shown] == [0, 1]
    # vLLM hands the metadata to transformers, whose processor computes the seconds between two patches from it, and keeps 24 bits.
    for (_, metadata), seconds in zip(shown, (1.0, 4.0), strict=True):
        told = VideoMetadata(**{k: v for k, v in metadata.items() if k != "do_sample_frames"}).sampled_fps
        assert seconds <= np.float32(2 / told) < seconds * (1 + 1e-6)


@pytest.mark.usefixtures("vllm")
def test_what_may_not_be_written_is_made_impossible_and_queries_draw_apart(
    policy: Policy, prompts: list[Prompt]
) -> None:
    engine = Engine([[10], [11]])
    write(engine, policy, prompts)
    first, second = engine.sampling
    assert set(first.logit_bias) == set(policy.suppress_tokens)
    assert (first.n, first.max_tokens, first.temperature) == (2, 9, 0.7)
    assert first.seed != second.seed


@pytest.mark.usefixtures("vllm")
def test_answers_come_prompt_by_prompt_with_a_log_prob_for_each_token(policy: Policy, prompts: list[Prompt]) -> None:
    end = policy.tokenizer.eos_token_id
    written = write(Engine([[10, 11, end], [12]]), policy, prompts)
    assert [completion.ids for completion in written.completions] == [[10, 11, end], [12]] * 2
    assert [completion.finished for completion in written.completions] == [True, False] * 2
    assert written.log_probs == [[0.0, -0.5, -1.0], [0.0]] * 2


def test_it_is_refused_with_the_next_step_where_it_is_not_installed(policy: Policy) -> None:
    with pytest.raises(LabError, match=r"vllm is not installed; 'pip install .* or set generation: hf"):
        require_vllm(policy)


@pytest.mark.parametrize(
    ("device", "family", "message"),
    [
        ("cpu", "qwen2_5_vl", r"needs a GPU .* and the model is on cpu"),  # weights of vLLM's CPU build stay as loaded
        (
            "cuda",
            "qwen3_vl",
            "writes for qwen2_5_vl, and the model is of 'qwen3_vl'",
        ),  # its timestamps are text that we write
        (
            "cuda",
            "qwen2_5_vl",
            "has no preprocessor_config.json; copy it from the base",
        ),  # as the embedded model's folder
    ],
)
def test_it_is_refused_for_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch, device: str, family: str, message: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("labkit.stages.experimental.vllm_generation.find_spec", lambda name: name)
    config = SimpleNamespace(model_type=family)
    model = SimpleNamespace(device=torch.device(device), config=config, name_or_path=str(tmp_path))
    with pytest.raises(LabError, match=message):
        require_vllm(Policy(model, None, "x"))


class Colocated:
    """Stands for TRL's engine beside the model: writes by labkit's own decoding, and says how likely each token was."""

    synced = 0

    def __init__(self, model: Any, processing_class: Any, **kwargs: Any) -> None:
        self.policy, self.llm = Policy(model, processing_class, "embedded"), self

    def sync_weights(self) -> None:
        Colocated.synced += 1

    def generate(self, requests: list[Any], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
        found = []
        for request, sampling in zip(requests, sampling_params, strict=True):
            prompt = self.prompts[tuple(request["prompt_token_ids"])]
            assert request["multi_modal_data"]["video"][0].shape[1:] == (56, 56, 3)
            done = generate(self.policy, [prompt], sampling.n, max_new_tokens=sampling.max_tokens, seed=sampling.seed)
            ids = [torch.tensor(each.ids) for each in done]
            rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
            with torch.no_grad():
                log_probs, _ = pack_shared_prefix([prompt], rows, mask, [len(rows)]).log_probs(self.policy.model)
            outputs = [
                SimpleNamespace(
                    token_ids=each.ids,
                    logprobs=[
                        {token: SimpleNamespace(logprob=float(value))}
                        for token, value in zip(each.ids, row, strict=False)
                    ],
                )
                for each, row in zip(done, log_probs, strict=True)
            ]
            found.append(SimpleNamespace(outputs=outputs))
        return found


@pytest.mark.usefixtures("vllm")
@pytest.mark.slow
def test_a_stage_learns_from_what_the_engine_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moments: list[Any]
) -> None:
    """TRL's own path for vLLM, with the engine played: weights are handed over before each step."""
    policy = load_policy("embedded", device="cpu")
    source = small.source(policy, moments, tmp_path / "frames")
    video = policy.base.config.video_token_id
    asked = {tuple(collapse_placeholders(source[qid].ids.tolist(), video)): source[qid] for qid in source}
    monkeypatch.setattr(Colocated, "prompts", asked, raising=False)
    monkeypatch.setattr(Colocated, "synced", 0)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Colocated)
    monkeypatch.setattr("labkit.stages.experimental.vllm_generation.require_vllm", lambda policy: None)
    before = weights(policy)
    result = small.train_grpo(
        policy, source, moments, tmp_path / "run", grpo_steps=2, generation="vllm", max_new_tokens=48
    )
    assert Colocated.synced == 2
    assert result.steps == 2 and farthest(before, weights(policy)) > 0
    assert len(RolloutStore(tmp_path / "run" / "rollouts").read()) > 0
