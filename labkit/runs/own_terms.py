"""A run's own terms: the rewards, filters and prompt of the user's that its parameters name, loaded, tried, and kept with the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from labkit.chain.anchors import AnchorChain, parse, render
from labkit.chain.rewards import RewardSpec, own_value
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.own_code import OwnFunction, file_of, load, text_digest
from labkit.params import Params
from labkit.policy.prompts import TEMPLATES, is_file, read_template
from labkit.stages.completions import score_completion
from labkit.stages.harvest import filter_rules, keeps

TWO_ANCHORS = "a chain with two anchors"


class OwnTerms(NamedTuple):
    """What a run has of the user's own."""

    template: str
    """The prompt as `labkit.policy.prompts.messages` takes it."""
    rewards: tuple[OwnFunction, ...] = ()
    filters: tuple[OwnFunction, ...] = ()
    texts: Mapping[str, str] = {}
    """The texts by the file that the parameters name or, of a cell, by the function."""

    @property
    def tried(self) -> bool:
        """Whether there is anything to try."""
        return bool(self.rewards or self.filters)

    def prompt_name(self, prompt: str) -> str:
        """What a protocol card calls the parameter `prompt`: of one's own with what tells its text from others."""
        return prompt if self.template in TEMPLATES else f"{prompt} ({text_digest(self.template)})"

    def notes(self) -> dict[str, dict[str, str]]:
        """The texts and what tells them from others, as a manifest holds them."""
        return {name: {"sha256": text_digest(text), "text": text} for name, text in self.texts.items()}


def load_own_terms(params: Params, root: Path | None, kept: Mapping[str, str]) -> OwnTerms:
    """Load what the parameters name; `kept` are the texts of the run that is gone on with, or without a `root` read.

    Raises LabError, which names the parameter, for a file or function that is not there, a text that does not run, a name that is
    taken, or a prompt without its placeholders.
    """
    texts: dict[str, str] = {}
    found: dict[str, tuple[OwnFunction, ...]] = {}
    for parameter in ("rewards", "filters"):
        functions = []
        for reference in getattr(params, parameter):
            try:
                functions.append(load(reference, root, kept))
            except LabError as error:
                raise LabError(f"{parameter}: {error}") from error.__cause__
            texts[functions[-1].source or functions[-1].name] = functions[-1].text
        found[parameter] = tuple(functions)
    RewardSpec.of(params, own=found["rewards"])
    filter_rules(found["filters"])
    template = read_template(params.prompt, root, kept)
    if is_file(params.prompt):
        texts[params.prompt] = template
    return OwnTerms(template, found["rewards"], found["filters"], texts)


def try_own_terms(own: OwnTerms, params: Params, moment: Moment) -> None:
    """Ask each term about made-up chains over a moment.

    Raises LabError, which names the term, what it was asked about, and what it raised or returned.
    """
    spec = RewardSpec.of(params, own=own.rewards)
    for kind, chain in _chains(moment).items():
        for each in own.rewards:
            with _tried("rewards", each, kind):
                own_value(each.call(chain, moment, spec))
        if kind == TWO_ANCHORS or (chain.answer is not None and not params.min_anchors):
            for each in own.filters:
                rollout = score_completion(moment, 0, chain.text, 1, True, spec, step=1).rollout(
                    run=params.run, stage="distill", step=1, seed=params.seed, checkpoint="", advantage=0.0,
                    prompt_tokens=1, spec=spec,
                )  # fmt: skip
                with _tried("filters", each, kind):
                    keeps(each.call(chain, moment, rollout))


@contextmanager
def _tried(parameter: str, term: OwnFunction, kind: str) -> Iterator[None]:
    """Put the term, and what it was tried on, before the LabError of a block."""
    try:
        yield
    except LabError as error:
        raise LabError(f"{parameter}: '{term.reference}', tried on {kind}, {error}") from error.__cause__


def _chains(moment: Moment) -> dict[str, AnchorChain]:
    """Chains that a term will meet, over this moment."""
    answer, count = moment.targets[0], len(moment.options)
    option = 0 if count else None
    narrowing = render([Span(0.0, moment.duration), answer], answer, option=option)
    return {
        TWO_ANCHORS: parse(narrowing, options=count),
        "a chain without anchors": parse(render([], answer, option=option), options=count),
        "a text without an answer": parse("", options=count),
    }


def with_cells(params: Params, there: Mapping[str, Any]) -> Params:
    """Parameters with the cell functions of the run that they go on with, whose params.yaml holds `there`.

    Where the cell stands in one notebook, the others need not name what it gave the run.
    """
    changes: dict[str, Any] = {}
    for parameter in ("rewards", "final_rewards"):
        paid = {name: weight for name, weight in (there.get(parameter) or {}).items() if not file_of(name)}
        changes[parameter] = {**paid, **getattr(params, parameter)}
    asked = [name for name in there.get("filters") or () if not file_of(name)]
    changes["filters"] = tuple(dict.fromkeys((*params.filters, *asked)))
    changes = {name: value for name, value in changes.items() if value != getattr(params, name)}
    return params.replace(**changes) if changes else params


def only_cells_differ(own: OwnTerms, params: Params, there: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether, of the parameters and own texts in `names`, only functions of cells differ from a run's params.yaml, `there`."""

    def of_files(values: Any) -> list[Any]:
        pairs = list(values.items()) if isinstance(values, Mapping) else [(each, None) for each in values or ()]
        return [pair for pair in pairs if file_of(pair[0])]

    parameters = ("rewards", "final_rewards", "filters")
    cells = {each.name for each in (*own.rewards, *own.filters) if not each.source}
    same = all(of_files(there.get(name)) == of_files(getattr(params, name)) for name in parameters)
    return same and set(names) <= {*parameters, *cells}
