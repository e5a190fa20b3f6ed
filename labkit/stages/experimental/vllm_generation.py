"""Generation of rollouts by labkit's own decoding or, experimental, by vLLM.

TRL keeps a vLLM engine beside the model on each GPU, puts the newest weights into it before rollouts are asked for, and corrects
the loss for what vLLM's log-probs differ from ours. Here prompts are put as vLLM wants them: the video's placeholder once, the
frames that our own tower saw, and the rate at which they were taken, from which vLLM counts the same seconds as we do.

What has been run: vLLM 0.32 as built for CPUs, with the embedded model: tokens, positions, log-probs, seeds, and the sync of weights
(`tests/stages/experimental/test_with_vllm.py`, where vLLM is installed). What has not: a GPU, several processes, real weights. Hold
`sampling/sampling_logp_difference/mean` of TRL's log against 0 before a long run is trusted to it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.policy.generate import Completion, generate
from labkit.stages.sharding import summon_full_params

if TYPE_CHECKING:
    from labkit.policy.inputs import Prompt
    from labkit.policy.model import Policy
    from labkit.policy.prompt_source import ClipFrames

FAMILIES = ("qwen2_5_vl",)
"""Whose videos vLLM places in time as labkit does."""
TEXT_TOKENS = 1024
"""Tokens of a prompt beside its video, at most."""
SLOWER = 1 - 2e-7
"""Told with the frame rate: vLLM rounds seconds to 24 bits, and a hair below a whole position is the position before."""
IMPORTANCE_SAMPLING: dict[str, Any] = {
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
}
"""A chain counts by its probability here over that in vLLM, and not at all above 3. TRL's choice."""


class Generations(NamedTuple):
    """Completions in the order of `labkit.policy.generate.generate`, and the log-prob of each of their tokens."""

    completions: list[Completion]
    log_probs: list[list[float]] | None
    """None where the policy itself has written: nothing needs to be corrected then."""


def vllm_options(policy: Policy, source: Any, max_new_tokens: int) -> dict[str, Any]:
    """Options of `trl.GRPOConfig` that keep a vLLM engine beside the model; `source` is a `PromptSource`.

    Raises LabError as `require_vllm`.
    """
    require_vllm(policy)
    config, sampling = policy.base.config, source.sampling
    vision, longest = config.vision_config, config.get_text_config().max_position_embeddings
    side = vision.patch_size * vision.spatial_merge_size
    video = math.ceil(sampling.max_frames / vision.temporal_patch_size) * math.ceil(
        sampling.pixels(sampling.max_frames) / side**2
    )
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": min(longest, video + TEXT_TOKENS + max_new_tokens),
        **IMPORTANCE_SAMPLING,
    }


def generate_rollouts(trainer: Any, num: int, **options: Any) -> Generations:
    """`num` completions of each prompt of a `VideoGRPOTrainer`'s step, by vLLM or by `generate`, whose `options` these are."""
    if trainer.use_vllm:
        engine, frames_for = trainer.vllm_generation.llm, trainer.source.frames_for
        return generate_with_vllm(engine, trainer.policy, trainer.asked, frames_for, num, **options)
    with summon_full_params(trainer.policy.model):
        return Generations(generate(trainer.policy, trainer.asked, num, **options), None)


def require_vllm(policy: Policy) -> None:
    """Raise LabError where vLLM cannot write for this policy: not installed, no GPU, another family, no files of a processor."""
    family, folder = policy.base.config.model_type, Path(policy.base.name_or_path)
    lacks_processor = folder.is_dir() and not (folder / "preprocessor_config.json").is_file()
    reasons = {
        "is not installed; 'pip install \"trl[vllm]\"' on a machine with a GPU": find_spec("vllm") is None,
        "needs a GPU (its build for CPUs packs weights when it loads them, and takes no new ones) and the model is on "
        f"{policy.device}; set device: cuda": policy.device.type != "cuda",
        f"writes for {', '.join(FAMILIES)}, and the model is of {family!r}; take one of those": family not in FAMILIES,
        f"reads the model's processor, and '{folder}' has no preprocessor_config.json; copy it from the base, give a model that "
        "'labkit export' wrote": lacks_processor,
    }
    for reason, holds in reasons.items():
        if holds:
            raise LabError(f"generation: vllm {reason}, or set generation: hf")


def generate_with_vllm(
    engine: Any,
    policy: Policy,
    prompts: Sequence[Prompt],
    frames_for: Callable[[str], ClipFrames],
    num: int,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Generations:
    """`num` completions of each prompt by the `vllm.LLM` that TRL keeps, each prompt read once.

    Tokens that stand for pixels or padding are made impossible, as in labkit's own decoding. Draws come from vLLM's own streams: they
    depend on the seed and the query, but are not those of `generation: hf`. Frames are given at the model's size, and vLLM would fit
    them to the pixel budget that stands beside the model once more.
    """
    from vllm import SamplingParams

    video = policy.base.config.video_token_id
    requests = []
    for prompt in prompts:
        clip = frames_for(prompt.qid)
        requests.append({
            "prompt_token_ids": collapse_placeholders(prompt.ids.tolist(), video),
            "multi_modal_data": {"video": (clip.rgb, frame_metadata(clip))},
            "mm_processor_kwargs": {"do_sample_frames": False, "do_resize": False},
        })  # fmt: skip
    sampling = [
        SamplingParams(
            n=num, temperature=temperature, max_tokens=max_new_tokens, logprobs=0, stop_token_ids=policy.eos_ids,
            logit_bias=dict.fromkeys(policy.suppress_tokens, -100.0), seed=zlib.crc32(f"{seed}/{prompt.qid}".encode()),
        )
        for prompt in prompts
    ]  # fmt: skip
    answers = engine.generate(requests, sampling_params=sampling, use_tqdm=False)
    written = [answer for request in answers for answer in request.outputs]
    rows = [list(answer.token_ids) for answer in written]
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ends = set(policy.eos_ids)
    return Generations(
        [Completion(ids, text, ids[-1] in ends) for ids, text in zip(rows, texts, strict=True)],
        [
            [step[token].logprob for token, step in zip(ids, answer.logprobs, strict=True)]
            for ids, answer in zip(rows, written, strict=True)
        ],
    )


def frame_metadata(clip: ClipFrames) -> dict[str, Any]:
    """When the frames were taken, as vLLM asks for it (it refuses frames without): all of a film of `fps` frames a second."""
    frames, fps = len(clip.rgb), clip.fps * SLOWER
    return {
        "fps": fps, "total_num_frames": frames, "frames_indices": list(range(frames)), "duration": frames / fps,
        "video_backend": "labkit", "do_sample_frames": False,
    }  # fmt: skip


def collapse_placeholders(ids: Sequence[int], placeholder: int) -> list[int]:
    """Token ids with each run of the placeholder shortened to one: the engine counts the video's tokens itself.

    >>> collapse_placeholders([5, 9, 9, 9, 6, 7], placeholder=9)
    [5, 9, 6, 7]
    """
    return [token for token, before in zip(ids, [None, *ids], strict=False) if not token == before == placeholder]
