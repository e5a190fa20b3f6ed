"""Asking: a video and a sentence in, a chain over the video's timeline out, in a terminal, a notebook, or a page that works offline.

    ask("film.mp4", "she opens the door", model="Qwen/Qwen2.5-VL-3B-Instruct", samples=8)

Nobody has said when it happens, so there is no IoU, no reward and no truth to be seen: only what the model says, and how far its
chains agree.
"""

from __future__ import annotations

import functools
import gc
import html
import os
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.spans import Span, iou
from labkit.chain.steps import CORRECT_IOU
from labkit.data.moments import BadField, Moment
from labkit.data.video.frames import FrameCache
from labkit.data.video_index import SUFFIXES, walk
from labkit.errors import LabError
from labkit.files import project_root, replacing, under
from labkit.params import Params
from labkit.policy.generate import generate
from labkit.policy.model import Policy, load_policy
from labkit.policy.prompts import read_template, require_fit
from labkit.runs.evaluate_model import is_small, params_for
from labkit.runs.workbench import prompt_source, seed_everything
from labkit.stages.completions import unpaid_rollout
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.rollouts import Rollout
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import ChainExplorer, explore
from labkit.views.text_bars import BarLines

MOST_SAMPLES = 256
TOY = (
    "{model} is of the embedded lab's size: it knows only its toy world of coloured shapes. What it says of any "
    "other video means nothing; give a model that has learnt from videos (--model, model=)."
)
_LABEL, _SPAN = 10, 16
_AROUND, _ROW = 450, 28
"""Pixels of an explorer around its chains, and of each."""
MOST_OFFERED = 200
"""Videos that a picker offers."""


@dataclass(frozen=True, repr=False)
class AskedChains:
    """What a model answered to one question: the greedy chain, then the sampled ones; a notebook shows them over the video."""

    moment: Moment
    rollouts: list[Rollout]
    params: Params
    sheets: Path
    """Where the pictures of the video are kept."""

    @property
    def chains(self) -> list[AnchorChain]:
        """The same as the parser reads them."""
        return [parse(each.text, finished=each.finished) for each in self.rollouts]

    @property
    def answer(self) -> Span | None:
        """The greedy chain's answer, in seconds; None when none was read."""
        return self.chains[0].answer

    @functools.cached_property
    def explorer(self) -> ChainExplorer:
        """The chains over the video; several are shown side by side at first."""
        several = len(self.rollouts) > 1
        height = min(max(560, _AROUND + _ROW * len(self.rollouts)), 900)  # chains that do not fit are scrolled
        made = explore(self.rollouts, [self.moment], folder=self.sheets, height=height)
        made.view = "group" if several else "chain"
        return made

    @property
    def notes(self) -> list[str]:
        """What to know beside the picture: who was asked, how, how far the chains agree, and whether it can know anything."""
        p, sampled = self.params, len(self.rollouts) - 1
        how = f"greedy, and {sampled} sampled at temperature {p.temperature:g}" if sampled else "greedy"
        seen = f"{p.fps:g} frames a second, at most {p.max_frames}"
        notes = [f"model {p.model}, prompt {p.prompt}, {how}, {seen}; video {self.moment.duration:.1f} s"]
        if sampled:
            notes.append(agreement(self.chains))
        if is_small(p.model):
            notes.append(TOY.format(model=p.model))
        return notes

    def text(self, width: int = 100, ascii_only: bool = False) -> str:
        """The chains as text and bars, `width` characters wide."""
        dash = "-" if ascii_only else "–"
        bars = BarLines(self.moment.duration, width, _LABEL, _SPAN, ascii_only)

        def seconds(span: Span) -> str:
            return ", ".join(f"{part.start:.1f} {dash} {part.end:.1f}" for part in span.parts) + " s"

        def answer(label: str, chain: AnchorChain) -> str:
            if chain.answer is None:
                return bars.line(label, [], f"none, {chain.status.replace('_', ' ')}")
            return bars.line(label, [chain.answer], seconds(chain.answer))

        first, *others = self.chains
        quotes = ('"', '"') if ascii_only else ("“", "”")
        blocks = [f"{quotes[0]}{self.moment.query}{quotes[1]}  {Path(self.moment.video).name}"]
        rows = [bars.line(f"anchor {k}", [span], seconds(span), sure=False) for k, span in enumerate(first.spans, 1)]
        blocks.append("\n".join([*rows, answer("answer", first), bars.axis()]))
        words = " ".join(self.rollouts[0].text.split()) or "the model wrote nothing"
        blocks.append(textwrap.fill(words, width))
        if others:
            blocks.append("\n".join(answer(f"sample {k}", chain) for k, chain in enumerate(others, 1)))
        return "\n\n".join([*blocks, "\n".join(textwrap.fill(note, width) for note in self.notes)])

    def save(self, path: str | Path) -> None:
        """Write a page that needs neither kernel nor network, the video's frames in it."""
        title = f"“{self.moment.query}” in {Path(self.moment.video).name}"
        page = widget_page(self.explorer, title, self.notes, path)
        try:
            with replacing(path) as draft:
                draft.write_text(page, encoding="utf-8")
        except OSError as error:
            raise LabError(f"'{path}' cannot be written ({error.strerror}); give another file") from None

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<AskedChains {self.moment.query!r}: answer {self.answer}, {len(self.rollouts)} chains>"

    def _repr_html_(self) -> str:
        return notes_html(self.notes)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(self._repr_html_()))
        display(self.explorer)


class Asker:
    """What a model is asked by: parameters, the prompt as its text, and where a video is kept once it was decoded."""

    def __init__(self, params: Params, template: str, frames: Path, sheets: Path) -> None:
        """`template` is what the parameters' `prompt` names; `frames` and `sheets` are folders."""
        self.params, self.template, self.sheets = params, template, sheets
        self.cache = FrameCache(frames, params.video_deadline)

    @single_process()
    def ask(self, load: Callable[[], Policy], video: str | Path, sentence: str, samples: int = 0) -> AskedChains:
        """Ask, see `ask`; the model is had by `load` once the question is known to be one."""
        moment = self._question(video, sentence, samples)
        return AskedChains(moment, self._answers(load(), moment, samples), self.params, self.sheets)

    def _question(self, video: str | Path, sentence: str, samples: int) -> Moment:
        """The moment of a sentence about a whole video, as long as the video is; it has no windows."""
        if not 0 <= samples <= MOST_SAMPLES:
            raise LabError(
                f"samples = {samples} is out of range [0, {MOST_SAMPLES}]; give the number of sampled chains"
            )
        path = os.path.abspath(os.path.expanduser(video))
        if not os.path.isfile(path):
            what = "is a folder" if os.path.isdir(path) else "is not there"
            raise LabError(f"video '{video}' {what}; give a video file")
        try:
            moment = Moment("asked", path, " ".join(sentence.split()), (), self.cache.info(path).duration)
        except BadField as error:
            raise LabError(f"the question cannot be asked: {error}") from None
        require_fit(self.template, [moment])
        return moment

    def _answers(self, policy: Policy, moment: Moment, samples: int) -> list[Rollout]:
        """The greedy chain, then the sampled ones, numbered from 1. Nothing is paid for them."""
        p = self.params
        prompts = [prompt_source(p.replace(readers=0), policy, [moment], self.cache, self.template)[moment.qid]]
        chains = generate(policy, prompts, max_new_tokens=p.max_new_tokens, greedy=True)
        if samples:
            chains += generate(
                policy, prompts, samples, max_new_tokens=p.max_new_tokens, temperature=p.temperature, seed=p.seed
            )
        origin: dict[str, Any] = {"run": "", "stage": Path(p.model).name, "seed": p.seed, "checkpoint": policy.name}
        return [unpaid_rollout(moment, prompts[0], each, sample=k, **origin) for k, each in enumerate(chains)]


def ask(
    video: str | Path, sentence: str, *, model: str = "embedded-2", samples: int = 0, **overrides: Any
) -> AskedChains:
    """Ask a model when a sentence happens in a video: the greedy chain, and `samples` sampled ones beside it.

    `model` is a name of shipped weights, a folder or a hub id; the default knows only its toy world, which the answer says.
    `overrides` are parameters by name, such as `prompt` or `max_frames`. The model stays in memory for the next question.
    Raises LabError for a video, model or parameter that cannot be used, before the model is loaded.
    """
    params, folder = params_for(model, overrides), Path(_kept().name)
    template = read_template(params.prompt, project_root(), {})
    asker = Asker(params, template, folder / "frames", folder / "sheets")
    return asker.ask(lambda: _policy(params), video, sentence, samples)


_newest: dict[tuple[str, str, str, str, float], Policy] = {}
"""The model that was asked last, by all that makes it another: name, dtype, device, bits and when its files were written."""


def _policy(params: Params) -> Policy:
    """The model of the parameters, which stays in memory; the one before it goes first, since two may not fit."""
    seed_everything(params)
    local = under(project_root(), params.model)
    name = str(local) if local.is_dir() else params.model
    key = (name, params.dtype, params.device, params.quantization, _stamp(local))
    if key not in _newest:
        _newest.clear()
        gc.collect()
        _newest[key] = load_policy(name, dtype=params.dtype, device=params.device, quantization=params.quantization)
    return _newest[key]


@functools.cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """A folder for frames that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="labkit-ask-")


def _stamp(path: Path) -> float:
    """When a file, or the newest in a folder, was written; 0 where there is none."""
    files = path.iterdir() if path.is_dir() else [path] if path.is_file() else []
    return max((file.stat().st_mtime for file in files), default=0.0)


def agreement(chains: Sequence[AnchorChain]) -> str:
    """How many of the sampled chains, those behind the first, agree with the greedy answer.

    >>> from labkit.chain.anchors import render
    >>> agreement([parse(render([], Span(2, 6))), parse(render([], Span(2, 5))), parse("no idea")])
    'of 2 sampled answers 1 overlaps the greedy one by IoU 0.5 or more; 1 gives none'
    """
    first, *others = [chain.answer for chain in chains]
    none = sum(answer is None for answer in others)
    silent = f"; {none} give{'s' * (none == 1)} none" if none else ""
    if first is None:
        return f"the greedy chain gives no answer; of {len(others)} sampled ones {len(others) - none} do"
    near = sum(answer is not None and iou(answer, first) >= CORRECT_IOU for answer in others)
    return f"of {len(others)} sampled answers {near} overlap{'s' * (near == 1)} the greedy one by IoU {CORRECT_IOU:g} or more{silent}"


def notes_html(notes: Sequence[str]) -> str:
    """Lines of small text above an explorer."""
    return "".join(f'<p style="margin:0 0 6px;opacity:.75">{html.escape(note)}</p>' for note in notes)


class AskBox(widgets.VBox):
    """A text box and a file picker: type a sentence, press enter, and see the chain over the video; made by `ask_box`."""

    def __init__(self, model: str, samples: int, videos: Path, overrides: Mapping[str, Any]) -> None:
        """Take what `ask_box` was given."""
        self.asked: AskedChains | None = None
        """The newest answer."""
        self._answered: tuple[Any, ...] = ()
        self.terms: dict[str, Any] = {"model": model, "samples": samples, **overrides}
        wide = {
            "style": {"description_width": "70px"},
            "layout": widgets.Layout(width="auto", flex="1 1 auto", max_width="720px"),
        }
        self.video = widgets.Combobox(
            description="video", placeholder="a video file: type its path, choose one, or upload", ensure_option=False,
            options=tuple(_videos_below(videos)), **wide,
        )  # fmt: skip
        self.upload = widgets.FileUpload(accept="video/*,.mkv,.avi", multiple=False, description="upload a video")
        self.sentence = widgets.Text(
            description="sentence", placeholder="what happens? press enter", continuous_update=False, **wide
        )
        self.button = widgets.Button(description="ask", button_style="primary")
        self.status = widgets.HTML()
        self.upload.observe(self._take_upload, "value")
        self.sentence.observe(lambda _: self.ask(), "value")
        self.button.on_click(lambda _: self.ask())
        rows = [widgets.HBox([self.video, self.upload]), widgets.HBox([self.sentence, self.button])]
        self._parts: list[Any] = [*rows, self.status]
        super().__init__(self._parts)

    def ask(self) -> None:
        """Ask what stands in the boxes and show it below; what cannot be asked is said in its place."""
        if not self.sentence.value.strip() or not self.video.value.strip():
            self.status.value = notes_html(
                [f"give a {'sentence' if self.video.value.strip() else 'video'}, then press enter"]
            )
            return
        # A click on the button takes the cursor out of the box of the sentence, which has asked then.
        if self.asked is not None and self._question() == self._answered:
            return
        self.button.disabled, self.children, self.asked = True, self._parts, None
        self.status.value = notes_html([f"asking “{self.sentence.value}” …"])
        try:
            question = self._question()
            self.asked = ask(self.video.value.strip(), self.sentence.value, **self.terms)
        except LabError as error:
            self._alert(str(error))
            return
        except BaseException as error:  # out of memory, or interrupted: said in the notebook, too
            self._alert(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.button.disabled = False
        self._answered = question
        self.status.value = notes_html(self.asked.notes)
        self.children = [*self._parts, self.asked.explorer]

    def _question(self) -> tuple[Any, ...]:
        """What is asked, of whom; another once the video's or the model's files are others."""
        files = (Path(os.path.expanduser(self.video.value.strip())), under(project_root(), self.terms["model"]))
        return self.video.value.strip(), self.sentence.value, dict(self.terms), *map(_stamp, files)

    def _alert(self, words: str) -> None:
        self.status.value = f'<p role="alert" style="margin:0;color:#b3261e">{html.escape(words)}</p>'

    def _take_upload(self, change: Any) -> None:
        for file in change["new"]:
            target = Path(_kept().name) / "uploads" / Path(file["name"]).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file["content"])
            self.video.value = str(target)


def ask_box(model: str = "embedded-2", *, samples: int = 0, videos: str | Path = "", **overrides: Any) -> AskBox:
    """A text box and a file picker in a notebook: type a sentence, press enter, and see the chain over the video.

    The picker offers the videos below the folder `videos`, by default the project's, and takes uploads; the rest is as for `ask`.
    Raises LabError for a model or parameter that cannot be used, before anything is asked.
    """
    params_for(model, overrides)
    return AskBox(model, samples, under(project_root(), videos), overrides)


def _videos_below(folder: Path) -> Iterator[str]:
    """The first videos below a folder, as paths to type."""
    found = (
        str(Path(where) / name)
        for where, names in walk(str(folder))
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES) and "/." not in where
    )
    return islice(found, MOST_OFFERED)
