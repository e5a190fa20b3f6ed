"""The plain path: models without an entry through their makers' processors, and what has an entry without sharing."""

import dataclasses

import pytest
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.errors import LabError
from labkit.policy import plain, processors
from labkit.policy.families import PLAIN
from labkit.policy.generate import generate
from labkit.policy.inputs import FrameSampling, begin_completion, read_clip
from labkit.policy.model import load_policy
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.plain import completion_logits, generate_plainly
from labkit.policy.prompt_source import PromptSource
from labkit.policy.variants import FrameEdit, Variant, VariantPrompts
from labkit.stages.evaluate import evaluate
from tests import tiny
from tests.stages import small


@pytest.fixture(scope="module", params=["llava", "gemma3"])
def policy(request, tmp_path_factory):
    """LLaVA-shaped; Gemma-3-shaped, with attention both ways inside images and sliding windows between words."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.plain_checkpoint(folder, request.param)
    return load_policy(str(folder))


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    return tiny.moments(tmp_path_factory.mktemp("clips"), clips=2)


def source_of(policy, moments, folder):
    return PromptSource(
        policy, moments, template="query", sampling=FrameSampling(0.5, 8, 3136, 3136), cache=FrameCache(folder)
    )


@pytest.fixture(scope="module")
def source(policy, moments, tmp_path_factory):
    return source_of(policy, moments, tmp_path_factory.mktemp("frames"))


def test_a_processor_shows_each_frame_behind_its_second(policy, source, moments):
    prompt, text = source[moments[0].qid], policy.tokenizer.decode(source[moments[0].qid].ids)
    assert policy.family is PLAIN
    assert [text.count(f"<{second:.1f} seconds>") for second in (0, 2, 4, 6, 8)] == [1, 1, 1, 1, 0]
    assert (prompt.ids == policy.tokenizer.image_token_id).sum() == 4 * 4, "four frames of four tokens"
    assert prompt.inputs["pixel_values"].shape[0] == 4
    assert policy.tokenizer.image_token_id in policy.suppress_tokens


def test_answers_are_those_of_a_pass_without_cache_and_depend_on_the_frames(policy, source, moments):
    prompt = source[moments[0].qid]
    (completion,) = generate(policy, [prompt], max_new_tokens=12, greedy=True)
    with torch.no_grad():
        logits = completion_logits(policy.model, prompt, torch.tensor(completion.ids))
        turned = dataclasses.replace(
            prompt, inputs=prompt.inputs | {"pixel_values": prompt.inputs["pixel_values"].flip(0)}
        )
        other = completion_logits(policy.model, turned, torch.tensor(completion.ids))
    logits[:, policy.suppress_tokens] = -torch.inf
    assert logits.argmax(-1).tolist() == completion.ids
    assert (logits - other)[0, policy.tokenizer.eos_token_id + 20 :].abs().max() > 0.05, "the frames matter"


def test_samples_follow_their_seed_whatever_the_batch_and_leave_torch_alone(policy, source, moments):
    prompts = [source[moments[i].qid] for i in (0, 3)]
    state = torch.get_rng_state()
    together = generate(policy, prompts, 3, max_new_tokens=6, seed=3)
    assert together == [each for prompt in prompts for each in generate(policy, [prompt], 3, max_new_tokens=6, seed=3)]
    assert len({tuple(each.ids) for each in together}) > 3
    assert torch.equal(state, torch.get_rng_state())
    begun = begin_completion(policy, prompts[0], "<think> at")
    (goes_on,) = generate(policy, [begun], max_new_tokens=4, greedy=True)
    assert goes_on.text.startswith("<think> at")


def test_log_probs_and_entropies_are_by_definition_and_train_the_language_model_alone(policy, source, moments):
    prompts = [source[moments[i].qid] for i in (0, 3)]
    ids, mask = torch.tensor([[30, 31, 32], [33, 34, 0], [35, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    log_probs, entropies = pack_shared_prefix(prompts, ids, mask, [2, 1]).log_probs(policy.model, 0.7, entropy=True)
    table = (completion_logits(policy.model, prompts[0], ids[1, :2]) / 0.7).log_softmax(-1)
    assert torch.allclose(log_probs[1, :2], table[[0, 1], ids[1, :2]], atol=1e-5) and log_probs[1, 2] == 0
    assert torch.allclose(entropies[1, :2], -(table.exp() * table).sum(-1), atol=1e-5)
    policy.model.zero_grad()
    log_probs.sum().backward()
    towers = {id(weight) for tower in policy.towers for weight in tower.parameters()}
    assert towers and all((weight.grad is None) == (id(weight) in towers) for weight in policy.model.parameters())


@pytest.mark.parametrize("family", ["smolvlm", "internvl"])
def test_with_and_without_sharing_are_one_model(family, moments, tmp_path):
    policy = tiny.policy(family=family)
    prompts = [tiny.source(policy, moments, tmp_path)[moments[i].qid] for i in (0, 3)]
    plain = []
    for prompt, moment in zip(prompts, (moments[0], moments[3]), strict=True):
        pixels = read_clip(policy, moment, FrameCache(tmp_path), FrameSampling(1.0, 32, 3136, 3136)).patches
        inputs = {
            "pixel_values": pixels[None] if family == "smolvlm" else pixels,
            "attention_mask": torch.ones(1, len(prompt.ids)),
        }
        plain.append(dataclasses.replace(prompt, inputs=inputs))
    ids, mask = torch.randint(20, 380, (4, 6), generator=torch.Generator().manual_seed(0)), torch.ones(4, 6)
    grads, found = [], []
    for each in (prompts, plain):
        policy.model.zero_grad()
        log_probs, _ = pack_shared_prefix(each, ids, mask, [2, 2]).log_probs(policy.model)
        log_probs.sum().backward()
        found.append(log_probs.detach())
        grads.append(policy.base.lm_head.weight.grad.clone())
    assert (found[0] - found[1]).abs().max() < 1e-4 and (grads[0] - grads[1]).abs().max() < 1e-3
    assert generate(policy, prompts, 2, max_new_tokens=8, seed=5) == generate(
        policy, plain, 2, max_new_tokens=8, seed=5
    )


@pytest.mark.parametrize(("kind", "rank"), [("llava", 0), ("gemma3", 4)])
def test_it_is_trained_evaluated_saved_and_loaded(kind, rank, moments, tmp_path):
    tiny.plain_checkpoint(tmp_path / "base", kind, chains=True)
    learner = load_policy(str(tmp_path / "base"), lora_rank=rank)
    source = source_of(learner, moments, tmp_path / "frames")
    before = small.weights(learner)
    result = small.train_grpo(
        learner,
        source,
        moments,
        tmp_path / "grpo",
        grpo_steps=2,
        prompts_per_step=2,
        group_size=4,
        stop_anchor_rate=2.0,
    )
    after = small.weights(learner)
    small.train_sft(learner, source, moments[:2], tmp_path / "sft", sft_epochs=1.0, sft_batch=2)
    assert result.history[-1]["grad_norm"] > 0
    assert small.distance(before, after) > 0 and small.distance(after, small.weights(learner)) > 0
    again = load_policy(str(tmp_path / "sft" / "final"))
    asked = [evaluate(each, source, moments[:2], max_new_tokens=6, batch_size=2).rollouts for each in (learner, again)]
    assert [each.text for each in asked[0]] == [each.text for each in asked[1]]


def test_edited_frames_reach_the_processor(policy, source, moments):
    edit = FrameEdit("hide", Span(0.0, 4.0))
    variants = VariantPrompts(policy, source, {"dark": Variant(moments[0].qid, frames=edit)})
    dark, shown = variants["dark"], source[moments[0].qid]
    assert dark.qid == "dark" and torch.equal(dark.ids, shown.ids)
    same = [torch.equal(a, b) for a, b in zip(dark.inputs["pixel_values"], shown.inputs["pixel_values"], strict=True)]
    assert same == [False, False, True, True]


def test_sharded_weights_are_refused(policy, source, moments, monkeypatch):
    monkeypatch.setattr(plain, "fsdp_modules", lambda model: [model])
    with pytest.raises(LabError, match="sharding: ddp"):
        generate_plainly(policy, source[moments[0].qid], 1, 2, lambda logits, at: logits.argmax(-1, keepdim=True))


def no_template(folder, monkeypatch):
    (folder / "chat_template.jinja").unlink()


def no_images(folder, monkeypatch):
    for file in folder.glob("*processor_config.json"):
        file.unlink()


def no_package(folder, monkeypatch):
    def refuse(*_):
        raise ImportError("Package `num2words` is required. Install it with `pip install num2words`.")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", refuse)


def no_module(folder, monkeypatch):
    def refuse(*_):
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", refuse)


@pytest.mark.parametrize(
    ("spoil", "named", "reason"),
    [
        (no_template, "chat_template.jinja", "a base checkpoint that was not tuned to instructions"),
        (no_images, "preprocessor_config.json", "only weights and tokenizer were copied"),
        (no_package, "pip install num2words", "a processor that needs a package which labkit does not"),
        (no_module, "pip install sentencepiece", "an error that names the module alone"),
    ],
)
def test_a_processor_that_cannot_be_used_is_named(spoil, named, reason, tmp_path, monkeypatch):
    tiny.plain_checkpoint(tmp_path / "model")
    spoil(tmp_path / "model", monkeypatch)
    with pytest.raises(LabError, match=named) as caught:
        load_policy(str(tmp_path / "model"))
    assert str(tmp_path / "model") in str(caught.value), reason


@pytest.mark.parametrize(
    ("template", "named", "reason"),
    [
        ("{{ messages[0]['content'] + 1 }}", "cannot be made by LlavaProcessor", "content of text alone"),
        ("user asks", "cannot be made by LlavaProcessor|holds no frame", "a template that leaves images out"),
    ],
)
def test_a_chat_template_that_shows_no_frames_is_named(template, named, reason, tmp_path, moments):
    tiny.plain_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    policy = load_policy(str(tmp_path / "model"))
    moment: Moment = moments[0]
    with pytest.raises(LabError, match=named) as caught:
        source_of(policy, moments, tmp_path / "frames")[moment.qid]
    assert moment.qid in str(caught.value), reason


def test_a_message_without_a_frame_is_named():
    class Blind:
        def apply_chat_template(self, *_, **__):
            return {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}

    video = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]
    with pytest.raises(LabError, match="holds no frame"):
        processors.processor_inputs(Blind(), "q1", video, torch.zeros(1, 4, 4, 3, dtype=torch.uint8), [0.0])
