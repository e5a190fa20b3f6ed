"""Runs: one directory for one set of parameters, and its manifest.

A stage is finished when the manifest says so, which is written last. A notebook or `labkit run` that opens the run
again skips finished stages and resumes the first that is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from labkit.errors import LabError
from labkit.files import lock, locked, project_root, replacing, under, unlock, write_json
from labkit.param_fields import WORLDS
from labkit.params import DEFAULTS, Params, read_yaml
from labkit.progress import now
from labkit.runs.budget import CHANGEABLE, as_counted, count_budget
from labkit.runs.own_terms import OwnTerms, load_own_terms, only_cells_differ, try_own_terms, with_cells
from labkit.runs.trackers import require_trackers
from labkit.runs.versions import package_version, package_versions, source_version
from labkit.stages.rollouts import RolloutStore

STAGES = ("01_grpo", "02_distill", "03_sft", "04_grpo_final", "05_analysis")
"""The notebooks, in order; each needs the one before."""
NOTEBOOK_OF = {"grpo": "01_grpo", "distill": "02_distill", "sft": "03_sft", "grpo_final": "04_grpo_final"}
"""Where the rollouts of a stage stand."""
STARTS = {"grpo_model": "02_distill", "traces": "03_sft", "sft_model": "04_grpo_final"}
"""The notebook that a run begins with where a parameter gives what those before would have made."""
STAGE_LOCK = ".stage.lock"
"""Held by the process that works on a stage."""
MANIFEST_LOCK_TIMEOUT = 60.0
"""Seconds to wait for somebody else who writes the manifest: a moment, unless the file system is very busy."""


class Run:
    """A run's directory: parameters in force, manifest, and a folder for each stage."""

    def __init__(self, params: Params, folder: Path, root: Path, own: OwnTerms | None = None) -> None:
        """Use `Run.open`, which checks that the directory belongs to these parameters."""
        self.params, self.path, self.root = params, folder, root
        self.own = own or OwnTerms(params.prompt)

    @classmethod
    def open(cls, params: Params, check: Callable[[Path], Any] = lambda root: None) -> Self:
        """Open the run that `params` names, or make it; `check` is called with the project's root before anything is written.

        Raises LabError, before anything is written, when the directory belongs to other parameters or other texts of own terms, or is
        no run, when a model or data folder that the parameters name is not one, and when an own term fails on a made-up chain.
        """
        root = project_root()
        folder = under(root, params.outputs) / params.run
        exists = (folder / "manifest.json").is_file() and (folder / "params.yaml").is_file()
        if exists:
            there = read_yaml(folder / "params.yaml")
            params = as_counted(with_cells(params, there), there)
        else:
            params = count_budget(params, root)
        if params.quantization != "none" and not (params.lora_rank or params.grpo_model or params.sft_model):
            raise LabError(
                f"quantization: weights in {params.quantization} are not trained themselves; set lora_rank, such as 64"
            )
        run = cls(params, folder, root, check_inputs(params, root, kept_texts(folder) if exists else {}))
        if run.path.exists() and not run.path.is_dir():
            raise LabError(f"'{run.path}' is a file, so it cannot be the run's directory; choose another `run` name")
        # In this order, since another process may make the run in the meantime.
        has_other_files = run.path.is_dir() and any(run._contents())
        if run._manifest_path.exists():
            run._refuse_other_parameters()
        elif has_other_files and not run._manifest_path.exists():
            raise LabError(
                f"'{run.path}' is not a run (it has no manifest.json) and not empty; choose another `run` name or "
                "remove the directory"
            )
        check(root)
        run.path.mkdir(parents=True, exist_ok=True)
        if not run._manifest_path.exists() and not run._create():
            run._refuse_other_parameters()
        return run

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {self.state(name)}" for name in STAGES)
        return f"Run('{self.path}': {states})"

    @property
    def manifest(self) -> dict[str, Any]:
        """What is written in manifest.json, read anew each time."""
        return read_manifest(self.path)

    def state(self, name: str) -> str:
        """`new`, `running` (or broken off), `finished`, or `skipped` where the run begins with a later stage."""
        return self.manifest["stages"].get(name, {}).get("state", "new")

    def finished(self, name: str) -> bool:
        """Whether the stage has ended, so that a notebook run again loads its results and does not train."""
        return self.state(name) == "finished"

    def skipped(self, name: str) -> str:
        """Why the run has no such stage, as a sentence; empty where it has."""
        return skipped_stages(self.params).get(name, "")

    def figures(self, name: str) -> dict[str, Any]:
        """What the stage reported when it finished."""
        return self.manifest["stages"].get(name, {}).get("figures", {})

    def folder(self, name: str) -> Path:
        """The stage's folder, made when it is not there."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def rollouts(self, stage: str) -> RolloutStore:
        """The store of a stage, named as in its rollouts (`grpo`) or as its notebook (`01_grpo`)."""
        return RolloutStore(self.folder(NOTEBOOK_OF.get(stage, stage)) / "rollouts")

    def probes(self, stage: str) -> RolloutStore:
        """What `grpo` or `grpo_final` answered to the probe queries while it trained, by updates seen."""
        return RolloutStore(self.path / NOTEBOOK_OF.get(stage, stage) / "probes")

    def resolve(self, path: str | Path) -> Path:
        """A path of the parameters, relative ones taken from the project's root."""
        return under(self.root, path)

    def start(self, name: str) -> bool:
        """Claim the run's directory for a stage; True when it is finished already, or skipped: there is nothing to do.

        Raises LabError when an earlier stage is not finished, or another process works in the directory.
        """
        if name not in STAGES:
            raise LabError(f"there is no stage '{name}'; the stages are {', '.join(STAGES)}")
        if self.finished(name) or self.skipped(name):
            return True
        for earlier in STAGES[: STAGES.index(name)]:
            if not self.finished(earlier) and not self.skipped(earlier):
                raise LabError(
                    f"{name} needs {earlier}, which is {self.state(earlier)} in '{self.path}'; "
                    f"run notebooks/{earlier}.ipynb with the same parameters first"
                )
        lock(self.path / STAGE_LOCK, "a notebook")
        if self.finished(name):  # by another process, for which the lock had to be waited for
            unlock(self.path / STAGE_LOCK)
            return True
        entry = {"state": "running", "started": now()}
        self._update(name, {**entry, **source_version()})
        return False

    def finish(self, name: str, figures: Mapping[str, Any]) -> None:
        """Write the stage's figures into the manifest, which makes it finished, and release the directory.

        A stage that is finished stays as it is, so that a notebook may be run again to the end.
        """
        if self.finished(name) or self.skipped(name):
            return
        entry = self.manifest["stages"].get(name)
        if entry is None:
            raise ValueError(f"{name} cannot be finished: it has not started")
        seconds = (datetime.now(UTC) - datetime.fromisoformat(entry["started"])).total_seconds()
        self._update(name, {**entry, "state": "finished", "finished": now(), "seconds": round(seconds, 1),
                            "figures": _plain(figures)})  # fmt: skip
        unlock(self.path / STAGE_LOCK)

    def cached_json(self, name: str, what: str, work: Callable[[], Any]) -> Any:
        """Do `work` once: its result, plain data, is stored as 01_grpo/`what`.json and read from there next time."""
        path = self.folder(name) / f"{what}.json"
        if not path.exists():
            write_json(path, _plain(work()))
        return json.loads(path.read_text(encoding="utf-8"))

    def fingerprint(self, name: str, path: str | Path) -> str:
        """Note a data file in the manifest, and return its digest; raises LabError when it is not the file that the run began with."""
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        before = self.manifest["data"].get(name)
        if before is None:
            with self._manifest_lock():
                manifest = self.manifest
                before = manifest["data"].setdefault(name, digest)
                self._write(manifest)
        if before != digest:
            raise LabError(
                f"'{path}' has changed since run '{self.params.run}' began ({before}, now {digest}); "
                "put it back or choose another `run` name"
            )
        return digest

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def _contents(self) -> list[str]:
        # params.yaml alone, and lock files, are what a kill leaves between making the directory and its manifest.
        return [p.name for p in self.path.iterdir() if p.name != "params.yaml" and not p.name.startswith(".")]

    def _write(self, manifest: Mapping[str, Any]) -> None:
        write_json(self._manifest_path, manifest)

    def _create(self) -> bool:
        """Write parameters and manifest of a new run; False where another process has done so in the meantime."""
        with self._manifest_lock():
            new = not self._manifest_path.exists()
            if new:
                self._write_params()
                skipped = {name: {"state": "skipped", "why": why} for name, why in skipped_stages(self.params).items()}
                self._write({"labkit": package_version("labkit"), **source_version(), "created": now(),
                             "versions": package_versions(), "seed": self.params.seed, "data": {}, "stages": skipped,
                             **self._own_notes()})  # fmt: skip
        return new

    def _own_notes(self) -> dict[str, Any]:
        return {"own": self.own.notes()} if self.own.texts else {}

    def _update(self, name: str, entry: Mapping[str, Any] | None) -> None:
        with self._manifest_lock():
            manifest = self.manifest
            manifest["stages"].pop(name, None)
            if entry is not None:
                manifest["stages"][name] = dict(entry)
            self._write(manifest)

    def _manifest_lock(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else writes the manifest within the block: what is read there is still so when it is written."""
        return locked(self.path / ".manifest.lock", "labkit, for a moment", MANIFEST_LOCK_TIMEOUT)

    def _write_params(self) -> None:
        import yaml

        with replacing(self.path / "params.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.params.as_dict(), sort_keys=False), encoding="utf-8")

    def _refuse_other_parameters(self) -> None:
        there, here = read_yaml(self.path / "params.yaml"), self.params.as_dict()
        names, texts = differing(self.path / "params.yaml", self.params), changed_texts(self.path, self.own)
        if self._take_cells(there, names, texts):
            return
        kept, notes = self.manifest.get("own", {}), self.own.notes()
        differences = [
            f"  {name}: there {there.get(name, 'absent')}, here {here.get(name, 'absent')}" for name in names
        ]
        differences += [
            f"  text of {name}: there {kept[name]['sha256']}, here {notes[name]['sha256']} (manifest.json has the text)"
            for name in texts
        ]
        if differences:
            raise LabError(
                "\n".join([f"'{self.path}' is a run of other parameters", *differences])
                + "\nchoose another `run` name, or delete the directory to start over"
            )
        if there.get("compare") != here["compare"]:
            # The comparison is shown by the last notebook alone, which is therefore to be run again.
            self._update("05_analysis", None)
            self._write_params()
        elif there.get("run") != here["run"]:
            with contextlib.suppress(OSError):  # whoever only looks at another's run may not write there
                self._write_params()  # the folder was renamed or copied, and its name is the run's

    def _take_cells(self, there: Mapping[str, Any], names: Sequence[str], texts: Sequence[str]) -> bool:
        """Take what cells have given or changed into a run of which no stage has started; whether that is all that is new."""
        if not (names or texts) or not only_cells_differ(self.own, self.params, there, [*names, *texts]):
            return False
        with self._manifest_lock():
            manifest = self.manifest
            if any(stage["state"] != "skipped" for stage in manifest["stages"].values()):
                return False
            self._write_params()
            self._write({**manifest, **self._own_notes()})
        return True


def kept_texts(folder: Path) -> dict[str, str]:
    """The texts of the user's own that the run in `folder` keeps, by the file that the parameters name or by a cell's function."""
    return {name: note["text"] for name, note in read_manifest(folder).get("own", {}).items()}


def changed_texts(folder: Path, own: OwnTerms) -> list[str]:
    """The names of those own texts that are others than the run in `folder` began with."""
    kept = kept_texts(folder)
    return [name for name, text in own.texts.items() if kept.get(name, text) != text]


def skipped_stages(params: Params) -> dict[str, str]:
    """The notebooks that a run of `params` skips, and a sentence for each that says why.

    >>> skipped_stages(DEFAULTS.replace(grpo_model="models/mine"))
    {'01_grpo': "01_grpo is skipped: this run begins with 02_distill, from grpo_model 'models/mine'."}
    """
    for parameter, first in STARTS.items():
        if value := getattr(params, parameter):
            start = f"the base, '{params.model}'" if value == "base" else f"{parameter} '{value}'"
            reason = f"is skipped: this run begins with {first}, from {start}."
            return {name: f"{name} {reason}" for name in STAGES[: STAGES.index(first)]}
    return {}


def differing(written: Path, params: Params) -> list[str]:
    """Names of the parameters whose values in `params` differ from the params.yaml `written`, so that its run cannot be resumed.

    A run that is older than a parameter had its default: labkit changes no default without a new name.
    """
    there, here = read_yaml(written), params.as_dict()
    defaults = DEFAULTS.as_dict()
    return [
        name
        for name in {**there, **here}
        if name not in CHANGEABLE and there.get(name, defaults.get(name)) != here.get(name, "absent")
    ]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the run in `folder`; raises LabError when the folder holds no run."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise LabError(f"'{folder}' is not a run: it has no manifest.json; `labkit run` makes one under outputs/")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["stages"], manifest["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"'{path}' is damaged ({error!r}); restore it, or delete the run's directory") from None
    return manifest


def runs_in(folder: Path) -> list[Path]:
    """The folders of the runs that `folder` holds, by name; itself where it is a run, or holds none."""
    runs = [] if (folder / "manifest.json").is_file() else sorted(folder.glob("*/manifest.json"))
    return [path.parent for path in runs] or [folder]


def check_inputs(params: Params, root: Path, kept: Mapping[str, str] | None = None) -> OwnTerms:
    """Load what is the user's own, of a run that exists with the texts that it has `kept`.

    Raises LabError when a model or the data that the parameters name are visibly not there, or an own term fails on a made-up chain
    over the first moment. Every line of the moments files is read, and every video is looked for; none is opened.
    """
    from labkit.embedded.world import draw_moments
    from labkit.policy.adapters import require_nf4
    from labkit.policy.model import require_model
    from labkit.policy.prompts import require_fit
    from labkit.stages.traces import read_traces

    own = load_own_terms(params, root, kept or {})
    starts = {parameter: params.start_model(parameter) for parameter in ("grpo_model", "sft_model")}
    for parameter, name in {"model": params.model, "harvester": params.harvester, **starts}.items():
        if name:
            require_model(name, root, parameter)
    require_trackers(params.report_to)
    if params.quantization == "nf4":
        require_nf4(params.device)
    if params.traces:
        read_traces(under(root, params.traces))
    for other in params.compare:
        for run in runs_in(under(root, other)):
            read_manifest(run)
    if params.data in WORLDS:
        if own.tried:
            first = draw_moments("train", 0, params.world_seed, WORLDS[params.data], params.task)[0]
            try_own_terms(own, params, first)
        return own
    from labkit.data.moments import read_moments, require_videos

    folder = under(root, params.data)
    if not folder.is_dir():
        raise LabError(f"data: there is no folder '{folder}'; give `world-2` or a folder with train.jsonl and so on")
    splits = [read_moments(folder / f"{split}.jsonl") for split in ("train", "validation", "test")]
    every = [moment for split in splits for moment in split]
    require_videos(every)
    require_fit(own.template, every)
    if own.tried:
        try_own_terms(own, params, every[0])
    return own


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: numpy numbers plain, what is not finite null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
