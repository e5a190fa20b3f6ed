"""The card of an exported model: what it is, its score with intervals, baselines and protocol, and how it came to be.

Every figure and every word about one is taken from the run's manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.chain.steps import LEAST_GAIN
from labkit.params import DEFAULTS, format_value, read_yaml
from labkit.policy.model import SHIPPED, is_path
from labkit.runs.results import MODELS, read_results
from labkit.runs.run import NOTEBOOK_OF, STARTS, read_manifest
from labkit.runs.versions import version_text
from labkit.scoring.protocol import Protocol
from labkit.scoring.scores import TITLES
from labkit.table import Table, percent

_LOAD = """```python
from transformers import AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```"""


def model_card(run: Path, stage: str, family: str, adapter: str = "") -> str:
    """A README.md in Markdown for the model that a stage of the run in the folder `run` ended with; `family` is its title.

    `adapter` says what has become of its adapter, if it had one.
    """
    results, manifest = read_results(run), read_manifest(run)
    params = read_yaml(run / "params.yaml")
    given = {"grpo": "harvester", "grpo_final": "sft_model"}.get(stage, "")
    base = params.get(given)
    base = params.get("model", DEFAULTS.model) if base in (None, "", "base") else base
    head = {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["temporal-grounding", "labkit"],
    }
    if _is_hub_id(base):
        head["base_model"] = base
    parts = [
        "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items()) + "---",
        f"# {results['run']}, {MODELS[stage]}",
        f"A {family} that is asked when in a video something happens, thinks, and answers with two times in seconds. "
        f"{_anchors(results['models'].get(stage))}Trained by labkit {version_text(manifest)} from `{_public(base)}`.",
        "## Score",
        _score(results["scores"], stage),
        "## How it came to be",
        _history(manifest, params, stage),
        "## Loading",
        _LOAD,
        *([adapter] if adapter else []),
        "labkit builds its own inputs: frames at true seconds, and rotary positions that go on behind the video's last one, as the "
        "family was trained. `labkit score` scores what another program gets of it under the same rules.",
    ]
    return "\n\n".join(parts) + "\n"


def _anchors(evaluation: Mapping[str, Any] | None) -> str:
    """How often its thoughts hold anchors, as measured; nothing where that was not."""
    figures = (evaluation or {}).get("greedy") or {}
    if figures.get("anchor_rate") is None or figures.get("strict_share") is None:
        return ""
    return (
        f"Of its greedy answers to {figures['n']:,.0f} test queries, {percent(figures['anchor_rate'])} % hold timestamp anchors in "
        f"the thought, and in {percent(figures['strict_share'])} % each of two or more gains at least {LEAST_GAIN:g} IoU on the one "
        "before. "
    )


def _score(scores: Mapping[str, Any], stage: str) -> str:
    if stage not in scores:
        return "It has not been scored: the run's `05_analysis` has not come to it."
    score, first = scores[stage], next(iter(scores))
    figures, constant = score["figures"], score["baselines"].get("best constant", {})
    protocol = dict(score["protocol"])
    if protocol.get("parse_failure_rate") is None:
        protocol["parse_failure_rate"] = math.nan
    card = Protocol(**protocol)
    head = ["", "score", f"{100 * card.level:g} % interval", *score["baselines"]]
    others = {} if first == stage else scores[first]["figures"]
    rows = []
    for name, title in TITLES.items():
        if figures.get(name) is None:
            continue
        low, high = score["intervals"].get(name) or (None, None)
        interval = "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        cells = [
            title,
            percent(figures[name]),
            interval,
            *(percent(each.get(name)) for each in score["baselines"].values()),
        ]
        rows.append(cells + ([percent(others.get(name))] if others else []))
    table = Table("", [*head, *([MODELS[first]] if others else [])], rows, align="lr").markdown()
    words = (
        f"In percent, greedy answers to {card.rows:,} queries of {card.videos:,} videos. {_against(score, constant)}"
    )
    return (
        f"{words.strip()}\n\n{table}\n\nTo stand beside another score, all of this must be equal:\n\n```\n{card}\n```"
    )


def _against(score: Mapping[str, Any], constant: Mapping[str, Any]) -> str:
    """How the mIoU stands to that of the best answer that never looks."""
    low, high = score["intervals"].get("miou") or (None, None)
    value = constant.get("miou")
    if value is None:
        return ""
    if low is None or high is None:
        return f"There are too few videos for an interval; the best constant answer has an mIoU of {percent(value)}."
    lies = "above" if low > value else "below" if high < value else "around"
    text = f"The interval of the mIoU lies {lies} what the best constant answer, which never looks, has: {percent(value)}."
    return text if lies == "above" else f"{text} So it is not shown that the model looks at the video."


def _history(manifest: Mapping[str, Any], params: Mapping[str, Any], stage: str) -> str:
    lines = [f"This run begins with {first}." for parameter, first in STARTS.items() if params.get(parameter)]
    last = NOTEBOOK_OF[stage]
    for name, entry in manifest["stages"].items():
        if name > last or entry["state"] != "finished":
            continue
        figures = entry.get("figures", {})
        steps = f"{figures['steps']:,} steps" if "steps" in figures else ""
        kept = f"{figures['traces']:,} traces" if "traces" in figures else ""
        if name == "02_distill" and "harvest" in figures:
            kept = f"{figures['harvest']['kept']:,.0f} of {figures['harvest']['harvested']:,.0f} chains kept"
        lines.append(f"`{name}`: {', '.join(filter(None, [kept, steps])) or 'finished'}.")
    here, defaults = (
        ("run", "outputs", "compare", "second_process", "report_to"),
        DEFAULTS.as_dict(),
    )  # those of this machine are left out
    changed = {
        name: value for name, value in params.items() if value != defaults.get(name, value) and name not in here
    }
    told = ", ".join(f"{name} {_public(value)}" for name, value in changed.items())
    lines.append(f"Seed {manifest.get('seed')}. Parameters that differ from the defaults: {told or 'none'}.")
    return "\n".join(f"- {line}" for line in lines)


def _is_hub_id(name: str) -> bool:
    return name not in SHIPPED and not is_path(name) and name.count("/") == 1 and not Path(name).exists()


def _public(value: Any) -> str:
    """A parameter's value without the folders of this machine."""
    if isinstance(value, str) and "/" in value and not _is_hub_id(value):
        return f".../{Path(value).name}"
    return format_value(tuple(value) if isinstance(value, list) else value)
