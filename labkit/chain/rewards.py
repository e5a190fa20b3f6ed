"""What a chain earns: five terms, each with a reason, and their weighted sum.

format    1 or 0: the form was kept and there are at least `min_anchors` anchors
answer    agreement of the answer with the truth, -1 without one
anchors   soft IoU of the anchors, later ones weighted more, -1 without one
progress  the share of steps (anchor to anchor, last anchor to answer) that come strictly closer to the truth
option    1 for the right option, 0 for a wrong one, none, or a question without options

No text can earn more than the sum of the weights (without that of `option` where there are none), which an honest
chain that narrows to the truth comes as close to as it likes. What closes the shortcuts:

- Predictions are cut to the video first. A span wholly outside it is worth what silence is worth, -1.
- Only the first `max_anchors` anchors count; what is appended behind them changes nothing.
- An anchor equal to the one before is a copy: `anchors` leaves it out and `progress` counts it as a step that failed,
  so inserting one never raises either.
- A missing answer is a failed step too.
- A wrong option costs nothing against none, so choosing never pays less than keeping silent.
- A step earns only when it starts from an anchor that overlaps the truth. Making the first anchor miss on purpose
  therefore earns nothing in `progress` and costs in `anchors`, under all weights above 0 and any number of anchors
  (copies aside, which aren't counted in the first place).

What no rule that pays for strict improvement can close: where the second anchor is no better than the first, lowering
the first just below the second wins that step. With anchors and progress at 0.5 each, two anchors tied at IoU q, and
the first lowered by d, `share` pays 1/4 for a price of d/6, so it pays as long as the first anchor still overlaps the
truth; the price is higher only if anchors' weight exceeds progress' weight times 1.5/d. `gated` multiplies the share
by the mean anchor IoU: with an answer better than both it pays (q - d)/4, so that lowering by more than 0.6 q is a
loss. Hence `share` while anchors must be found, and `gated` for the last stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, get_args

from labkit.chain.anchors import AnchorChain, option_letter
from labkit.chain.spans import Span, best_value, best_window, clip_span, iou, soft_iou
from labkit.errors import LabError

TERMS = ("format", "answer", "anchors", "progress", "option")
WORST = -1.0
"""What a missing answer and a missing anchor are worth: below every wrong one, so that silence never pays."""

AnswerReward = Literal["soft_iou", "iou", "timer1"]
ProgressReward = Literal["share", "gated"]

_MEASURES: Mapping[str, Callable[[Span, Span], float]] = {"soft_iou": soft_iou, "iou": iou}

DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"format": 1.0, "answer": 1.0, "anchors": 0.5, "progress": 0.5, "option": 1.0}
)


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Which terms count how much, and which form of each is meant.

    `min_anchors=0` makes `format` accept a thought without anchors: the plain control, with the weights of `anchors`
    and `progress` at 0. Terms with weight 0 are computed and recorded all the same.
    Raises: LabError for a missing or unknown term, a weight below 0, an unknown name, or anchors out of order.
    Source: the terms, but for `option`, and the two anchors are the TAR-TVG paper's; weights, upper bound and `option`
    are our choice.

    >>> RewardSpec().weights["anchors"]
    0.5
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    answer: AnswerReward = "soft_iou"
    progress: ProgressReward = "share"
    min_anchors: int = 2
    max_anchors: int = 4

    def __post_init__(self) -> None:
        """Check the values once, so that scoring never meets a bad one."""
        if set(self.weights) != set(TERMS):
            raise LabError(f"reward weights {sorted(self.weights)}: give exactly one for each of {', '.join(TERMS)}")
        for term, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise LabError(f"reward weight {term}={weight}: must be a finite number, 0 or above")
        if self.answer not in get_args(AnswerReward):
            raise LabError(f"answer reward {self.answer!r}: choose one of {', '.join(get_args(AnswerReward))}")
        if self.progress not in get_args(ProgressReward):
            raise LabError(f"progress reward {self.progress!r}: choose one of {', '.join(get_args(ProgressReward))}")
        if not 0 <= self.min_anchors <= self.max_anchors or self.max_anchors < 1:
            raise LabError(
                f"min_anchors={self.min_anchors}, max_anchors={self.max_anchors}: "
                "need 0 <= min_anchors <= max_anchors and max_anchors >= 1"
            )


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one chain earned: every term before its weight, the weighted total, and a reason for each term."""

    terms: dict[str, float]
    total: float
    reasons: dict[str, str]


def timer1_iou(pred: Span, gold: Span, duration: float) -> float:
    """IoU, made smaller by how far each end is off in parts of the video.

    Source: Time-R1's reward code (iou_v2).

    >>> timer1_iou(Span(0, 10), Span(0, 5), 20.0)
    0.375
    """
    return iou(pred, gold) * (1 - abs(pred.start - gold.start) / duration) * (1 - abs(pred.end - gold.end) / duration)


def score_chain(
    chain: AnchorChain,
    windows: Sequence[Span],
    duration: float,
    spec: RewardSpec | None = None,
    choice: int | None = None,
) -> Ledger:
    """Score one chain against the truth; of several windows the best one counts, for every step by itself.

    `choice` is the right option, None for a moment without options; the chain must have been read with as many options
    as the moment has.
    Raises: ValueError when there is no window or the duration isn't above 0 (a fault of the data, never of the text).
    Source: soft IoU, later anchors weighted more and pay for progress are the TAR-TVG paper's; the anchor weights
    i / sum(i), the share over the steps, the gate, the -1 and the option are our choice.

    >>> from labkit.chain.anchors import parse, render
    >>> truth = Span(10.0, 20.0)
    >>> chain = parse(render([Span(5.0, 25.0), Span(10.0, 25.0)], truth))
    >>> ledger = score_chain(chain, [truth], duration=60.0)
    >>> {term: round(value, 3) for term, value in ledger.terms.items()}
    {'format': 1.0, 'answer': 1.0, 'anchors': 0.611, 'progress': 1.0, 'option': 0.0}
    >>> round(ledger.total, 3)
    2.806
    """
    spec = spec or RewardSpec()
    scored = chain.anchors[: spec.max_anchors]
    kept = [clip_span(anchor.span, duration) for anchor in scored]
    values = [_worth(span, windows, soft_iou) for span in kept]
    answer_span = None if chain.answer is None else clip_span(chain.answer, duration)
    answer_value = _worth(answer_span, windows, soft_iou)
    distinct = [value for i, value in enumerate(values) if i == 0 or kept[i] != kept[i - 1]]

    terms: dict[str, float] = {}
    reasons: dict[str, str] = {}
    terms["format"], reasons["format"] = _format(chain, spec)
    terms["answer"], reasons["answer"] = _answer(chain, answer_span, windows, duration, spec)
    terms["anchors"], reasons["anchors"] = _anchors(distinct, len(chain.anchors), len(scored))
    terms["progress"], reasons["progress"] = _progress([*values, answer_value], distinct, spec)
    terms["option"], reasons["option"] = _option(chain, choice)
    return Ledger(terms, math.fsum([spec.weights[term] * terms[term] for term in TERMS]), reasons)


def _worth(span: Span | None, windows: Sequence[Span], measure: Callable[[Span, Span], float]) -> float:
    return WORST if span is None else best_value(span, windows, measure)


def _format(chain: AnchorChain, spec: RewardSpec) -> tuple[float, str]:
    found = len(chain.anchors)
    if chain.status not in ("ok", "no_anchor"):
        return 0.0, f"status {chain.status}"
    if found < spec.min_anchors:
        return 0.0, f"{found} of at least {spec.min_anchors} anchors"
    return 1.0, f"form kept, {found} anchors"


def _answer(
    chain: AnchorChain, span: Span | None, windows: Sequence[Span], duration: float, spec: RewardSpec
) -> tuple[float, str]:
    if span is None:
        return WORST, "no answer" if chain.answer is None else f"answer lies outside the video of {duration:g} s"
    measure = partial(timer1_iou, duration=duration) if spec.answer == "timer1" else _MEASURES[spec.answer]
    if len(windows) == 1:
        value = measure(span, windows[0])
        return value, f"{spec.answer} {value:.3f}"
    best = best_window(span, windows, measure)
    return best.value, f"{spec.answer} {best.value:.3f}, window {best.index + 1} of {len(windows)}"


def _anchors(distinct: Sequence[float], found: int, scored: int) -> tuple[float, str]:
    if not distinct:
        return WORST, "no anchor"
    # Lists where a generator would do: twice as fast for a handful of values, and asked for each chain of a harvest.
    value = sum([weight * worth for weight, worth in enumerate(distinct, 1)]) / sum(range(1, len(distinct) + 1))
    notes = [f"soft IoU {' '.join([f'{worth:.3f}' for worth in distinct])}"]
    if found > scored:
        notes.append(f"{found - scored} anchors over the limit not counted")
    if scored > len(distinct):
        notes.append(f"{scored - len(distinct)} copies not counted")
    return value, ", ".join(notes)


def _progress(steps: Sequence[float], distinct: Sequence[float], spec: RewardSpec) -> tuple[float, str]:
    if not distinct:
        return 0.0, "no anchor to start from"
    won = sum([after > before > 0 for before, after in pairwise(steps)])
    share = won / (len(steps) - 1)
    reason = f"{won} of {len(steps) - 1} steps closer"
    if spec.progress == "share":
        return share, reason
    gate = sum(max(0.0, worth) for worth in distinct) / len(distinct)
    return share * gate, f"{reason}, times mean anchor IoU {gate:.3f}"


def _option(chain: AnchorChain, choice: int | None) -> tuple[float, str]:
    if choice is None:
        return 0.0, "no options to choose from"
    if chain.option is None:
        return 0.0, f"no option, {option_letter(choice)} is right"
    if chain.option != choice:
        return 0.0, f"option {option_letter(chain.option)}, {option_letter(choice)} is right"
    return 1.0, f"option {option_letter(choice)}, right"
