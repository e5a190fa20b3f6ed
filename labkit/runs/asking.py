"""Asking a model about a video outside of a run: a question whose truth nobody has told, answered greedily and by sampling."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.data.moments import BadField, Moment
from labkit.data.video.frames import FrameCache
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.generate import generate
from labkit.policy.model import Policy
from labkit.policy.prompts import require_fit
from labkit.runs.workbench import prompt_source
from labkit.stages.completions import unpaid_rollout
from labkit.stages.rollouts import Rollout

MOST_SAMPLES = 256


def open_question(video: str | Path, sentence: str, samples: int, template: str, cache: FrameCache) -> Moment:
    """The moment of a sentence about a whole video, as long as the video is; it has no windows.

    Raises LabError when the video is not there or cannot be read, when the sentence is empty, for a number of `samples` out of
    range, and when the prompt `template` does not fit: before a model is loaded.
    """
    if not 0 <= samples <= MOST_SAMPLES:
        raise LabError(f"samples = {samples} is out of range [0, {MOST_SAMPLES}]; give the number of sampled chains")
    path = os.path.abspath(os.path.expanduser(video))
    if not os.path.isfile(path):
        raise LabError(
            f"video '{video}' {'is a folder' if os.path.isdir(path) else 'is not there'}; give a video file"
        )
    try:
        moment = Moment("asked", path, " ".join(sentence.split()), (), cache.info(path).duration)
    except BadField as error:
        raise LabError(f"the question cannot be asked: {error}") from None
    require_fit(template, [moment])
    return moment


def ask_model(
    policy: Policy,
    params: Params,
    template: str,
    moment: Moment,
    cache: FrameCache,
    *,
    samples: int = 0,
    stage: str = "",
) -> list[Rollout]:
    """What a policy answers: the greedy chain, then `samples` sampled ones, numbered from 1. Nothing is paid for them.

    `template` is what the parameters' `prompt` names. The same policy, parameters and question give the same chains.
    """
    p = params
    prompt = prompt_source(p.replace(readers=0), policy, [moment], cache, template)[moment.qid]
    chains = generate(policy, [prompt], max_new_tokens=p.max_new_tokens, greedy=True)
    if samples:
        chains += generate(
            policy, [prompt], samples, max_new_tokens=p.max_new_tokens, temperature=p.temperature, seed=p.seed
        )
    return [
        unpaid_rollout(moment, prompt, chain, sample=sample, run="", stage=stage, seed=p.seed, checkpoint=policy.name)
        for sample, chain in enumerate(chains)
    ]
