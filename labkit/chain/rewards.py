"""What a chain earns: five terms, each with a reason, and their weighted sum.

format    1 or 0: the form was kept and there are at least `min_anchors` anchors
answer    agreement of the answer with the truth, -1 without one; of several spans as a set
anchors   soft IoU of the anchors, later ones weighted more, none above the answer's; -1 without one
progress  mean score of the steps (anchor to anchor, last anchor to answer), as `labkit.chain.steps` defines it
option    1 for the right option, 0 for a wrong one, none, or a question without options

No text can earn more than the sum of the weights (without that of `option` where there are none). What closes the shortcuts:

- Predictions are cut to the video first. A span wholly outside it counts as a missing one, -1.
- Only the first `max_anchors` anchors count; what is appended behind them changes nothing.
- A copy of an earlier anchor (by temporal IoU) is left out of `anchors` and is a step that failed in `progress`, so inserting
  one never raises either.
- A step is paid by its gain: 0.01 IoU is a tenth of a step. What shaves hundredths of a second off the answer earns what exact
  copies earn.
- Gains are counted from the best span before, so that going back and forth earns once.
- No anchor counts for more than the answer. Who finds the truth on the way and answers something else has not narrowed, and
  who misses, or gives no answer, earns nothing in `progress`.
- A better answer with the same anchors never earns less (measured by soft IoU or by IoU).
- Naming more spans than there are is no second try: an answer of several is measured as a whole, against one window or a set of them.
- A wrong option costs nothing against none, so choosing never pays less than keeping silent.

A bad first anchor, in sums. Let two anchors tie at IoU q, with an answer at q + FULL_GAIN or better, and lower the first by d.
Its step then pays progress' weight x min(1, d / 0.1) x min(1, (q - d) / 0.5) / 2, and anchors lose their weight x d / 3. With
equal weights w, which both stages have by default, and q = 0.8:

    d      0.05    0.1     0.2     0.3     0.4     0.5     0.6     0.7     0.8
    sum  +0.23w  +0.47w  +0.43w  +0.40w  +0.27w  +0.13w    0w   -0.13w  -0.27w

So any rule that pays for a step pays for making one, but it pays most for the smallest that is paid in full, and less for
every bit beyond: the best first anchor stands 0.1 below the second. A chain whose steps gain that much already loses by
lowering any anchor, under all weights. An anchor that misses starts no step and costs in `anchors`
(copies aside, which are not counted at all).

A user's own terms (`labkit.own_code`) stand beside these with weights of their own, and nothing here bounds what they open.

How much can be had beyond an honest chain with the same answer is searched for by `benchmarks/exploits.py`.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, get_args

from labkit.chain.anchors import AnchorChain, option_letter
from labkit.chain.span_sets import set_f1, wasserstein_score
from labkit.chain.spans import Span, best_value, best_window, clip_span, iou, soft_iou
from labkit.chain.steps import copies, step_scores
from labkit.errors import LabError
from labkit.own_code import OwnFunction
from labkit.param_fields import AnswerReward, RewardParams

TERMS = ("format", "answer", "anchors", "progress", "option")
MISSING_PENALTY = -1.0
"""Value of a missing answer and of missing anchors: below every wrong one, so that leaving them out never pays."""

_MEASURES: Mapping[str, Callable[[Span, Span], float]] = {
    "soft_iou": soft_iou,
    "iou": iou,
    "f1": set_f1,
    "wasserstein": wasserstein_score,
}


def _weights(params: RewardParams, final: bool) -> dict[str, float]:
    return {
        "format": params.format_weight,
        "answer": params.final_answer_weight if final else params.answer_weight,
        "anchors": params.anchors_weight,
        "progress": params.final_progress_weight if final else params.progress_weight,
        "option": params.option_weight,
    }


_DEFAULTS = RewardParams()
DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(_weights(_DEFAULTS, final=False))
"""What stage 1 pays by default."""


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """Which terms count how much, and which form of the answer's is meant.

    The defaults are those of `labkit.param_fields.RewardParams` for stage 1; `of` makes the spec of any parameters.
    `min_anchors=0` makes `format` accept a thought without anchors: the plain control, with the weights of `anchors`
    and `progress` at 0; `max_anchors=0` makes it refuse one with anchors. Terms with weight 0 are computed and recorded all the same.
    `own` are a user's terms, by whose names there are weights too; of a spec that was read from a file they have no function.
    Raises: LabError for a missing or unknown term, a weight below 0, an unknown name, a name twice, or anchors out of order.
    Source: the terms, but for `option`, and the two anchors are the TAR-TVG paper's; weights, upper bound and `option`
    are our choice.

    >>> RewardSpec() == RewardSpec.of(RewardParams())
    True
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    answer: AnswerReward = _DEFAULTS.answer_reward
    min_anchors: int = _DEFAULTS.min_anchors
    max_anchors: int = _DEFAULTS.max_anchors
    own: tuple[OwnFunction, ...] = ()

    @classmethod
    def of(cls, params: RewardParams, final: bool = False, own: Iterable[OwnFunction] = ()) -> RewardSpec:
        """What parameters say is paid in stage 1, or in the final stage; `own` are the functions that they name.

        Raises LabError for a name that is taken.
        """
        own = tuple(own)
        check_names(own)
        paid = {**params.rewards, **(params.final_rewards if final else {})}
        weights = _weights(params, final) | {each.name: paid[each.reference] for each in own}
        return cls(weights, params.answer_reward, params.min_anchors, params.max_anchors, own)

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of all terms, in the order in which they are shown."""
        return (*TERMS, *[each.name for each in self.own])

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data; `RewardSpec(**spec.as_dict())` is equal to it."""
        names = ("answer", "min_anchors", "max_anchors")
        own = {"own": [each.as_dict() for each in self.own]} if self.own else {}
        return {"weights": dict(self.weights), **{name: getattr(self, name) for name in names}, **own}

    def __post_init__(self) -> None:
        """Check the values once, so that scoring never meets a bad one."""
        if self.own:  # of a file, plain data
            own: Iterable[Any] = self.own
            object.__setattr__(self, "own", tuple(OwnFunction(**e) if isinstance(e, dict) else e for e in own))
            check_names(self.own)
        if set(self.weights) != set(self.terms):
            raise LabError(
                f"reward weights {sorted(self.weights)}: give exactly one for each of {', '.join(self.terms)}"
            )
        for term, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise LabError(f"reward weight {term}={weight}: must be a finite number, 0 or above")
        if self.answer not in get_args(AnswerReward):
            raise LabError(f"answer reward {self.answer!r}: choose one of {', '.join(get_args(AnswerReward))}")
        if not 0 <= self.min_anchors <= self.max_anchors:
            raise LabError(
                f"min_anchors={self.min_anchors}, max_anchors={self.max_anchors}: need 0 <= min_anchors <= max_anchors"
            )


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """Reward of one chain, term by term: every term before its weight, the weighted total, and a reason for each term."""

    terms: dict[str, float]
    total: float
    reasons: dict[str, str]


class OwnValue(NamedTuple):
    """What a user's term said of one chain."""

    value: float
    reason: str


class Asked(Protocol):
    """What a chain is scored against: a `labkit.data.moments.Moment` is one."""

    @property
    def qid(self) -> str: ...  # noqa: D102
    @property
    def targets(self) -> tuple[Span, ...]: ...  # noqa: D102
    @property
    def duration(self) -> float: ...  # noqa: D102
    @property
    def choice(self) -> int | None: ...  # noqa: D102


def check_names(own: Sequence[OwnFunction]) -> None:
    """Raise LabError where one of a user's terms has the name of another term."""
    seen: dict[str, str] = {term: "a built-in term" for term in (*TERMS, "total")}
    for each in own:
        if each.name in seen:
            raise LabError(f"rewards: '{each.reference}' has the name of {seen[each.name]}; rename the function")
        seen[each.name] = f"'{each.reference}'"


def timer1_iou(pred: Span, gold: Span, duration: float) -> float:
    """IoU, made smaller by how far each end is off in parts of the video; of sets the ends of the whole count.

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
) -> RewardBreakdown:
    """Score one chain against the truth; of several windows the best one counts, for every step by itself.

    What all together are the truth is one window, a `labkit.chain.spans.SpanSet`: see `labkit.Moment.targets`.
    `choice` is the right option, None for a moment without options; the chain must have been read with as many options
    as the moment has.
    Raises: ValueError when there is no window or the duration isn't above 0 (a fault of the data, never of the text).
    Source: soft IoU, later anchors weighted more and pay for progress are the TAR-TVG paper's; the anchor weights
    i / sum(i), the answer as their bound, the score of a step, the -1 and the option are our choice.

    >>> from labkit.chain.anchors import parse, render
    >>> truth = Span(10.0, 20.0)
    >>> chain = parse(render([Span(5.0, 25.0), Span(10.0, 25.0)], truth))
    >>> breakdown = score_chain(chain, [truth], duration=60.0)
    >>> {term: round(value, 3) for term, value in breakdown.terms.items()}
    {'format': 1.0, 'answer': 1.0, 'anchors': 0.611, 'progress': 1.0, 'option': 0.0}
    >>> round(breakdown.total, 3)
    4.208
    """
    spec = spec or RewardSpec()
    if spec.own:
        raise ValueError(f"{spec.own[0].name} needs the moment: score_moment(chain, moment, spec)")
    terms, reasons = _built_in(chain, windows, duration, spec, choice)
    return RewardBreakdown(terms, math.fsum([spec.weights[term] * terms[term] for term in TERMS]), reasons)


def score_moment(
    chain: AnchorChain,
    moment: Asked,
    spec: RewardSpec,
    place: str = "",
    recorded: Mapping[str, OwnValue] | None = None,
) -> RewardBreakdown:
    """The same against a moment, with the user's own terms, which also see the moment and the spec.

    `place` tells this chain from others of its moment where an own term fails. Values that are `recorded` are taken in the place
    of asking again; a term that has neither them nor a function is NaN, and so is the total then.
    Raises LabError, which names the term and the chain, for a term that raises or returns anything but a finite number or that
    and a text.

    >>> from labkit import Moment, parse
    >>> moment = Moment("q1", "/videos/a.mp4", "she opens the door", (Span(1.0, 4.0),), 12.0)
    >>> round(score_moment(parse("<think></think><answer>1 to 4</answer>"), moment, RewardSpec(min_anchors=0)).total, 2)
    2.25
    """
    terms, reasons = _built_in(chain, moment.targets, moment.duration, spec, moment.choice)
    for each in spec.own:
        if recorded and each.name in recorded:
            value, reason = recorded[each.name]
        elif each.function is None:
            value, reason = math.nan, ""
        else:
            try:
                value, reason = own_value(each.call(chain, moment, spec))
            except LabError as error:
                where = f"qid {moment.qid}" + f", {place}" * bool(place)
                raise LabError(f"reward '{each.reference}', chain of {where}: {error}") from error.__cause__
        terms[each.name], reasons[each.name] = value, reason
    return RewardBreakdown(terms, math.fsum([spec.weights[term] * terms[term] for term in spec.terms]), reasons)


def own_value(returned: Any) -> OwnValue:
    """What an own term returned; raises LabError unless it is a finite number, or that and a text.

    >>> own_value(1), own_value((-0.5, "half a second late"))
    (OwnValue(value=1.0, reason=''), OwnValue(value=-0.5, reason='half a second late'))
    """
    value, reason = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, "")
    number = math.nan
    if isinstance(value, numbers.Real):
        with suppress(OverflowError):  # a whole number that no float can hold
            number = float(value)
    if not math.isfinite(number) or not isinstance(reason, str):
        raise LabError(f"returned {reprlib.repr(returned)}; return a finite number, or (number, reason)")
    return OwnValue(number, reason)


def _built_in(
    chain: AnchorChain, windows: Sequence[Span], duration: float, spec: RewardSpec, choice: int | None
) -> tuple[dict[str, float], dict[str, str]]:
    """The value and the reason of each of `TERMS`."""
    if not windows:  # a chain without a span would be charged for missing a truth that nobody has told
        raise ValueError("no ground-truth window to score against; a chain of an open question has no reward")
    scored = [anchor.span for anchor in chain.anchors[: spec.max_anchors]]
    answer_span = None if chain.answer is None else clip_span(chain.answer, duration)
    answer_value = _value_or_penalty(answer_span, windows)
    cut = [clip_span(span, duration) for span in scored]
    # As `labkit.chain.steps.clip_spans`.
    copied = copies([part or span for part, span in zip(cut, scored, strict=True)])
    found = [_value_or_penalty(part, windows) for part, copy in zip(cut, copied, strict=True) if not copy]
    bounded = [value if value < answer_value else answer_value for value in found]

    terms: dict[str, float] = {}
    reasons: dict[str, str] = {}
    terms["format"], reasons["format"] = _format(chain, spec)
    terms["answer"], reasons["answer"] = _answer(chain, answer_span, windows, duration, spec)
    terms["anchors"], reasons["anchors"] = _anchors(found, bounded, len(chain.anchors), len(scored))
    terms["progress"], reasons["progress"] = _progress([*bounded, answer_value], len(scored))
    terms["option"], reasons["option"] = _option(chain, choice)
    return terms, reasons


def _value_or_penalty(span: Span | None, windows: Sequence[Span]) -> float:
    return MISSING_PENALTY if span is None else best_value(span, windows, soft_iou)


def _format(chain: AnchorChain, spec: RewardSpec) -> tuple[float, str]:
    found = len(chain.anchors)
    if chain.status not in ("ok", "no_anchor"):
        return 0.0, f"status {chain.status}"
    if found < spec.min_anchors:
        return 0.0, f"{found} of at least {spec.min_anchors} anchors"
    if found and not spec.max_anchors:
        return 0.0, f"{found} anchors, where none is wanted"
    return 1.0, f"form kept, {found} anchors"


def _answer(
    chain: AnchorChain, span: Span | None, windows: Sequence[Span], duration: float, spec: RewardSpec
) -> tuple[float, str]:
    if span is None:
        return (
            MISSING_PENALTY,
            "no answer" if chain.answer is None else f"answer lies outside the video of {duration:g} s",
        )
    measure = partial(timer1_iou, duration=duration) if spec.answer == "timer1" else _MEASURES[spec.answer]
    if len(windows) == 1:
        value, counts = measure(span, windows[0]), (len(span.parts), len(windows[0].parts))
        return value, f"{spec.answer} {value:.3f}" + (f", spans {counts[0]} of {counts[1]}" if max(counts) > 1 else "")
    best = best_window(span, windows, measure)
    return best.value, f"{spec.answer} {best.value:.3f}, window {best.index + 1} of {len(windows)}"


def _anchors(ious: Sequence[float], bounded: Sequence[float], written: int, scored: int) -> tuple[float, str]:
    if not ious:
        return MISSING_PENALTY, "no anchor"
    # Lists where a generator would do: twice as fast for a handful of values, and asked for each chain of a harvest.
    value = sum([weight * iou for weight, iou in enumerate(bounded, 1)]) / sum(range(1, len(bounded) + 1))
    notes = [f"soft IoU {' '.join([f'{iou:.3f}' for iou in ious])}"]
    if bounded != ious:
        above = sum([bound < iou for bound, iou in zip(bounded, ious, strict=True)])
        notes.append(f"{above} counted as the answer, which is worse")
    if written > scored:
        notes.append(f"{written - scored} anchors over the limit not counted")
    if scored > len(ious):
        notes.append(f"{scored - len(ious)} copies not counted")
    return value, ", ".join(notes)


def _progress(steps: Sequence[float], scored: int) -> tuple[float, str]:
    """Mean score of as many steps as anchors were scored; `steps` are the values of those that are no copies, then the answer's."""
    if not scored:
        return 0.0, "no anchor to start from"
    scores = step_scores(steps)
    reason = f"step scores {' '.join([f'{score:.2f}' for score in scores])}"
    if scored > len(scores):
        reason += f", {scored - len(scores)} copies score 0"
    return sum(scores) / scored, reason


def _option(chain: AnchorChain, choice: int | None) -> tuple[float, str]:
    if choice is None:
        return 0.0, "no options to choose from"
    if chain.option is None:
        return 0.0, f"no option, {option_letter(choice)} is right"
    if chain.option != choice:
        return 0.0, f"option {option_letter(chain.option)}, {option_letter(choice)} is right"
    return 1.0, f"option {option_letter(choice)}, right"
