"""Tokenizer checks: what a model's vocabulary makes of a chain and a turn, before any weight is there.

A vocabulary of whole words, as the embedded models have, hides all of this: a chain's tags are three tokens or one, numbers are
written digit by digit, special tokens vanish from texts, templates end turns, and rows of the model and tokens need not agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.doctor.findings import Finding
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.families import FAMILIES, Family
from labkit.policy.inputs import chat_text


def tokenizer_findings(
    tokenizer: Any, config: dict[str, Any], params: Params, template: str, moments: Sequence[Moment]
) -> list[Finding]:
    """What would go wrong with this tokenizer beside a model of this config.json; of families without an entry less is known.

    `moments` are those that are asked, of which the longest gives the numbers that a chain must write.
    """
    moment = max(moments, key=lambda moment: moment.duration)
    family = FAMILIES.get(config.get("model_type", ""))
    findings = _row_findings(tokenizer, config, family)
    if family and not family.template_of:
        try:
            findings += _turn_findings(tokenizer, chat_text(tokenizer, moment, template), family)
        except LabError as error:
            return [Finding("error", "prompt", "prompt:", str(error))]
    return findings + _chain_findings(tokenizer, params, moment)


def shortest_chain(params: Params, moment: Moment) -> str:
    """The shortest text of whole form: `min_anchors` anchors and the answer, without a word of thought."""
    end = round(moment.duration, 1) or 1.0
    span = Span(round(end / 2, 1) if end > 0.1 else 0.0, end)
    return render([span] * params.min_anchors, span, option=0 if moment.options else None)


def _row_findings(tokenizer: Any, config: dict[str, Any], family: Family | None) -> list[Finding]:
    """Whether each token has a row in the model, and the placeholders are those of its config."""
    findings = []
    rows = int((config.get("text_config") or config).get("vocab_size") or len(tokenizer))
    if len(tokenizer) > rows:
        message = (
            f"knows {len(tokenizer):,} tokens, and the model has rows for {rows:,}: the first of the others ends a run"
        )
        step = "give the tokenizer that belongs to the model, or resize the model's embeddings and save it"
        findings.append(Finding("error", "tokenizer", "the tokenizer", message, step))
    if family and (wanted := config.get(family.video_token)) is not None:
        frame = family.render_video([0.5], 1, 1.0)
        if tokenizer(frame, add_special_tokens=False)["input_ids"].count(wanted) != 1:
            message = f"does not write a frame's token as {family.video_token} of config.json, {wanted}: no frame finds its place"
            step = "give the tokenizer that belongs to the model"
            findings.append(Finding("error", "tokenizer", "the tokenizer", message, step))
    return findings


def _turn_findings(tokenizer: Any, prompt: str, family: Family) -> list[Finding]:
    """Whether the template shows the video and ends turns as SFT does."""
    findings = []
    if prompt.count(family.placeholder) != 1:
        message = f"writes {prompt.count(family.placeholder)} video placeholders into a prompt with one video"
        step = "copy chat_template.jinja of the published model beside the tokenizer"
        findings.append(Finding("error", "chat template", "the chat template", message, step))
    said = [(role, [{"type": "text", "text": text}]) for role, text in (("user", "a"), ("assistant", "b"))]
    turn = tokenizer.apply_chat_template([{"role": role, "content": parts} for role, parts in said], tokenize=False)
    end = str(tokenizer.eos_token)
    if not turn.rstrip().endswith(end):
        message = f"is {end}, and the chat template does not end an answer with it: SFT would teach another end than the base's"
        step = "set eos_token in tokenizer_config.json to what ends a turn (Qwen: <|im_end|>)"
        findings.append(Finding("error", "end of turn", "the tokenizer's eos_token", message, step))
    return findings


def _chain_findings(tokenizer: Any, params: Params, moment: Moment) -> list[Finding]:
    """Whether a chain comes back from its tokens as it was, and has room."""
    chain = shortest_chain(params, moment)
    ids = tokenizer(chain, add_special_tokens=False)["input_ids"]
    options = len(moment.options)
    back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    there, here = parse(chain, options=options), parse(back, options=options)
    if (here.status, here.steps, here.option) != (there.status, there.steps, there.option):
        message = f"reads its own tokens of {chain!r} back as {back!r}, which is no such chain ({here.status})"
        step = "tags that were added must not be special tokens (special: false in tokenizer.json), and numbers need their digits"
        return [Finding("warning", "chain", "the tokenizer", message, step)]
    need, limit = len(ids) + 1, params.max_new_tokens
    if 2 * need <= limit:
        return []
    message = f"cuts {'every chain' if need > limit else 'chains'} off: the shortest has {need} tokens without a word of thought"
    step = f"set it to {-(-4 * need // 64) * 64} or more"
    subject = f"max_new_tokens = {limit}"
    return [Finding("warning", "chain", subject, message, step)]
