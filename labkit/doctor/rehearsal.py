"""Rehearsal of a run: every stage for one step, with everything real but the model's depth, width and weights.

Real are the config's and tokenizer's vocabulary with all its rows, the chat template, the videos at the run's own frames and pixels,
prompts (the longest there are), `max_new_tokens`, adapters, number type and saving. Of the model two narrow layers are left. They have
practised, for some seconds, to write chains whose spans are chance, so that chains are read, paid, filtered and learnt from. Nothing
that is measured says how good a model is, and its seconds and memory are not the run's: for those there are the doctor's estimates.
"""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.data.video.frames import FrameCache
from labkit.doctor.dataset import SPLITS, DataReport, clip_cost
from labkit.doctor.environment import Machine, Model, read_json, target_machine
from labkit.doctor.findings import DoctorReport, Finding, size_text
from labkit.doctor.workload import per_process_params
from labkit.errors import LabError
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.policy.families import FAMILIES, Geometry
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy, save_policy
from labkit.progress import Progress, duration
from labkit.runs.own_terms import OwnTerms
from labkit.runs.results import evaluation_folder
from labkit.runs.workbench import Workbench, prompt_source
from labkit.stages.evaluate import evaluate, read_evaluation_rollouts
from labkit.stages.interventions import ANCHOR_BEGINS
from labkit.stages.rollouts import Rollout
from labkit.table import Table

REHEARSED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families whose configs `small_config` can make small."""
HIDDEN, HEADS, LAYERS = 64, 2, 2
"""Of what is left of the language model; its vision tower has two layers of half the width."""
PRACTICE_RATE = 4e-3
PRACTICE_STEPS, PRACTICE_CHAINS, WHOLE_STEPS = 100, 8, 36
"""Updates, chains of each, all of one prompt, and how many updates, the last ones, see the whole clip and not four frames."""
THOUGHTS = (
    "The question is when this happens, so I look through the whole clip first. It seems to be somewhere in",
    ". Its borders are not right yet: it begins a little after that and is over before the end. More exactly",
    ". That is as close as the frames tell.",
)
"""The words of the chains that are practised, about as many as a model needs for two looks."""


def add_rehearsal(
    report: DoctorReport, params: Params, model: Model | None, data: DataReport, own: OwnTerms | None, machine: Machine
) -> None:
    """Rehearse a run and add a table of its stages to the report, and a finding for whatever breaks or is odd.

    Nothing is left behind: the rehearsal has its own folder. One process works, on its share where the run has several.
    """
    if params.data in WORLDS:
        message, step = "needs no rehearsal: its own model is small", "labkit run params/smoke.yaml"
        report.findings.append(Finding("note", "rehearsal", f"data = {params.data}", message, step))
        return
    if not (own and model and all(data.moments.get(split) for split in SPLITS)):
        step = "the findings above say what; of the model config and tokenizer suffice"
        report.findings.append(Finding("error", "rehearsal", "the run", "lacks what a rehearsal needs", step))
        return
    family = read_json(model.folder / "config.json").get("model_type")
    if family not in REHEARSED:
        message, step = (
            f"is not rehearsed: a small one can be made of {', '.join(REHEARSED)}",
            "labkit ask tries a model",
        )
        report.findings.append(Finding("note", "rehearsal", f"a model of the family {family}", message, step))
        return
    own_share = per_process_params(params, target_machine(machine, params)[1])
    with tempfile.TemporaryDirectory(prefix="labkit-rehearsal-") as folder:
        log = _Log()
        try:
            _rehearse(log, Path(folder), own_share, model, data, own.template, machine)
        except Exception as error:  # whatever it is, a run would have met it after hours
            log.findings.append(_failure(log.stage, error))
    note = f"{LAYERS} layers of {HIDDEN} in place of {model.shape.layers} of {model.shape.hidden:,}, all {model.shape.vocab:,} rows; "
    note += f"{params.dtype} on {machine.device}, threads = {params.threads}; chains were practised, their spans are chance"
    head = ("stage", "time", "of the CPU", "memory", "prompt tokens", "chain tokens", "what came out")
    report.tables.append(Table("rehearsal", head, log.lines, note))
    report.findings += log.findings
    report.data["rehearsal"] = log.data


class _Log:
    """What the stages took and what came out."""

    def __init__(self) -> None:
        self.stage = "the model"
        self.lines: list[tuple[str, ...]] = []
        self.findings: list[Finding] = []
        self.data: list[dict[str, Any]] = []
        self.progress = Progress("rehearsed stages", 6)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[dict[str, Any]]:
        """Within it a stage is done; what it puts into the mapping is shown."""
        self.stage, came_out = stage, dict[str, Any]()
        _reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        yield came_out
        wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, _peak_bytes()
        prompts, chains = came_out.pop("prompts", ()), came_out.pop("chains", ())
        words = "; ".join(f"{name} {value}" for name, value in came_out.items())
        self.lines.append((stage, duration(wall), duration(cpu), size_text(peak) if peak else "unknown",
                           _range(prompts), _range(chains), words))  # fmt: skip
        self.data.append({"stage": stage, "seconds": wall, "cpu_seconds": cpu, "memory_bytes": peak,
                          "prompt_tokens": list(prompts), "chain_tokens": list(chains), **came_out})  # fmt: skip
        self.progress(len(self.lines), stage)


def _rehearse(
    log: _Log, folder: Path, params: Params, model: Model, data: DataReport, template: str, machine: Machine
) -> None:
    vision = model.shape.geometry
    counts = {"train": params.prompts_per_step, "validation": 2, "test": params.eval_batch}
    for split in SPLITS:
        asked = _longest(data, split, counts[split], params, vision)
        write_moments(asked, folder / "data" / f"{split}.jsonl")
    small = params.replace(
        run="rehearsal", outputs=str(folder / "outputs"), data=str(folder / "data"), model=str(folder / "model"),
        harvester="", grpo_model="", sft_model="", traces="", compare=(), report_to=(), budget_of="", pace_of="",
        device=machine.device, generation="hf", grpo_steps=1, final_steps=1, save_steps=1, sft_epochs=1,
        train_limit=0, validation_limit=0, test_limit=0, harvest_prompts=params.prompts_per_step,
        probe_queries=min(params.probe_queries, 2),
    )  # fmt: skip
    train = _longest(data, "train", counts["train"], params, vision)
    examples = [(moment.qid, text) for moment in train for text in example_chains(moment, PRACTICE_CHAINS)]
    with log.timed("the model") as came_out:
        loss = write_model(model, small, train, examples, template, folder)
        came_out["practised to a loss of"] = f"{loss:.2f} a token"
    bench = Workbench.open(small)
    bench.seed_everything()
    with log.timed("01 grpo") as came_out:
        _grpo(log, bench, "grpo", "base", came_out)
    with log.timed("02 distill") as came_out:
        bench.run_harvest(bench.load("grpo"), _ignore)
        _chains(came_out, bench.rollouts("distill").read())
        kept = bench.harvested().kept
        came_out["kept"] = len(kept)
    with log.timed("03 sft") as came_out:
        traces = [(rollout.qid, rollout.text) for rollout in kept][: params.sft_batch]
        written = examples[:: max(1, len(examples) // params.sft_batch)][: params.sft_batch - len(traces)]
        policy = bench.load("base")
        bench.run_sft(policy, _ignore, traces=[*traces, *written])
        came_out["chains"] = _tokens(policy, [text for _, text in [*traces, *written]])
        came_out["harvested"], came_out["written for it"] = len(traces), len(written)
    with log.timed("04 grpo_final") as came_out:
        _grpo(log, bench, "grpo_final", "sft", came_out)
    with log.timed("05 analysis") as came_out:
        _evaluate(bench, came_out)


def _grpo(log: _Log, bench: Workbench, stage: str, start: str, came_out: dict[str, Any]) -> None:
    bench.run_grpo(bench.load(start), _ignore, stage=stage)
    rollouts = bench.rollouts(stage).read()
    _chains(came_out, rollouts)
    paid = [rollout.total for rollout in rollouts]
    came_out["paid"] = f"{min(paid):.1f} to {max(paid):.1f}"
    cut = sum(not rollout.finished for rollout in rollouts)
    if 2 * cut > len(rollouts):
        message = f"cut {cut} of {len(rollouts)} rehearsed chains off before their end"
        subject = f"max_new_tokens = {bench.params.max_new_tokens}"
        log.findings.append(Finding("warning", "rehearsal", subject, message, "raise it"))


def _evaluate(bench: Workbench, came_out: dict[str, Any]) -> None:
    p, policy, moments = bench.params, bench.load("grpo_final"), bench.moments("test")
    parts = [(decoding, decoding, "own") for decoding in p.decodings("grpo_final")]
    bench.run_evaluation(policy, _ignore, stage="grpo_final", notebook="05_analysis", parts=parts)
    folders = [evaluation_folder(bench.path, "05_analysis", name) for name, _, _ in parts]
    _chains(came_out, [each for folder in folders for each in read_evaluation_rollouts(folder, moments)])
    decoding: dict[str, Any] = {"max_new_tokens": p.max_new_tokens, "batch_size": 2, "forbid": ANCHOR_BEGINS}
    untagged = evaluate(policy, bench.source(policy, "test"), moments[:2], **decoding).rollouts
    came_out["tags where they are forbidden"] = sum(ANCHOR_BEGINS in rollout.text for rollout in untagged)


def _chains(came_out: dict[str, Any], rollouts: Sequence[Rollout]) -> None:
    came_out["prompts"] = [rollout.prompt_tokens for rollout in rollouts]
    came_out["chains"] = [rollout.completion_tokens for rollout in rollouts]
    statuses = Counter(rollout.status for rollout in rollouts)
    came_out |= dict(statuses.most_common())


def _longest(data: DataReport, split: str, count: int, params: Params, vision: Geometry) -> list[Moment]:
    """The moments whose clips have most tokens, of videos that can be read."""
    usable = [moment for moment in data.moments[split] if data.videos[moment.video].readable]
    if not usable:
        raise LabError(f"the {split} split has no query whose video can be read; the findings above say why")

    def tokens(moment: Moment) -> int:
        return clip_cost(moment.duration, data.videos[moment.video], params, vision).tokens

    return sorted(usable, key=tokens, reverse=True)[:count]


def example_chains(moment: Moment, count: int, seed: int = 0) -> list[str]:
    """Chains of whole form that narrow around the truth, as a harvest would keep them; the same for the same moment and seed."""
    draw = random.Random(f"{seed}/{moment.qid}")
    gold, end = moment.windows[0], round(moment.duration, 1)

    def wider(share: float) -> Span:
        start, stop = (draw.uniform(0.3, 1.0) * share * max(gold.length, 1.0) for _ in range(2))
        first = max(0.0, min(round(gold.start - start, 1), end - 0.1))
        return Span(first, max(round(first + 0.1, 1), min(end, round(gold.end + stop, 1))))

    option = 0 if moment.options else None
    return [render([wider(0.8), wider(0.25)], wider(0.05), THOUGHTS, option) for _ in range(count)]


def write_model(
    model: Model, params: Params, moments: Sequence[Moment], examples: Sequence[tuple[str, str]], template: str, folder: Path
) -> float:  # fmt: skip
    """Write the small model to `folder`/model; the loss to which it has practised, in nats a token."""
    import torch
    import transformers

    config = small_config(model.folder)
    model.tokenizer.padding_side = "left"
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(params.seed)
        made = getattr(transformers, FAMILIES[config.model_type].model_class)._from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
        for name, weight in made.named_parameters():
            if weight.dim() == 2 and "embed" not in name and "lm_head" not in name:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    with contextlib.suppress(OSError):
        made.generation_config = transformers.GenerationConfig.from_pretrained(str(model.folder))
    policy = Policy(made.eval(), model.tokenizer, "rehearsal")
    for tower in policy.towers:
        tower.requires_grad_(False)
    cache = FrameCache(Path(params.outputs) / "frames", params.video_deadline)
    lessons: list[tuple[Prompt, list[str]]] = []
    for frames, steps in ((4, PRACTICE_STEPS - WHOLE_STEPS), (params.max_frames, WHOLE_STEPS)):
        source = prompt_source(params.replace(readers=0, max_frames=frames), policy, moments[:4], cache, template)
        asked = [moments[step % len(moments[:4])].qid for step in range(steps)]
        lessons += [(source[qid], [text for other, text in examples if other == qid]) for qid in asked]
    loss = practise(policy, lessons, params.threads)
    save_policy(policy, folder / "model")
    return loss


def small_config(folder: Path) -> Any:
    """The config of a model's folder with two narrow layers, all else as it is."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
    values = config.to_dict()
    text, vision, half = values["text_config"], values["vision_config"], HIDDEN // HEADS // 2
    shares = text["rope_parameters"]["mrope_section"]
    each = max(1, half * shares[1] // sum(shares))
    text["rope_parameters"]["mrope_section"] = [half - 2 * each, each, each]
    text.pop("layer_types", None)
    text |= {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
             "num_key_value_heads": min(HEADS, text["num_key_value_heads"]), "intermediate_size": 3 * HIDDEN}  # fmt: skip
    if "head_dim" in text:
        text["head_dim"] = HIDDEN // HEADS
    vision |= {"depth": 2, "num_heads": 2}
    if "embed_dim" in vision:
        vision |= {"embed_dim": HIDDEN // 2, "hidden_size": HIDDEN}
    else:
        vision |= {"hidden_size": HIDDEN // 2, "intermediate_size": HIDDEN, "out_hidden_size": HIDDEN}
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [1]
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = [0, 1]
    small = type(config).from_dict(values)
    small._name_or_path = str(folder)  # where the processor's files are copied from
    return small


def practise(policy: Policy, lessons: Sequence[tuple[Prompt, Sequence[str]]], threads: int) -> float:
    """Train the language model to write chains, an update for each prompt and its chains; the last ones' loss in nats a token.

    Only the rows of tokens that occur take part, so that an update does not touch the whole table: logits are computed for the
    chains' tokens, and of the other rows each is taken to have logit 0, near which random ones are.
    """
    import torch
    from torch.nn.functional import cross_entropy, embedding
    from torch.nn.utils.rnn import pad_sequence

    from labkit.policy.attention import install_attention
    from labkit.policy.packed_logprobs import pack_shared_prefix

    torch.set_num_threads(threads)
    model, end = policy.base, policy.tokenizer.eos_token_id
    chains = {text: torch.tensor([*policy.completion_ids(text), end]) for _, texts in lessons for text in texts}
    known = torch.cat(list(chains.values())).unique()
    used = torch.cat([known, *(prompt.ids for prompt, _ in lessons)]).unique()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    place = torch.zeros(len(table.weight), dtype=torch.long).index_copy(0, used, torch.arange(len(used)))
    rows = {each: each.weight.detach()[used].requires_grad_() for each in (table, head)}
    if head.weight is table.weight:
        rows[head] = rows[table]
    others = torch.tensor([[math.log(len(head.weight) - len(known))]])
    layers = [each for each in model.parameters() if each.requires_grad and each.shape != table.weight.shape]
    trained = [*layers, *{id(each): each for each in rows.values()}.values()]
    optimizer = torch.optim.AdamW(trained, lr=PRACTICE_RATE, weight_decay=0.0)
    install_attention(model)
    losses: list[float] = []
    table.forward = lambda ids: embedding(place[ids], rows[table])
    head.forward = lambda hidden: hidden @ rows[head][place[known]].T
    try:
        for step, (prompt, texts) in enumerate(lessons):
            ids = pad_sequence([chains[text] for text in texts], batch_first=True, padding_value=-1)
            packed = pack_shared_prefix([prompt], ids.clamp(min=0), ids >= 0, [len(texts)])
            keep = packed.labels != -100
            logits = model(**packed.inputs, use_cache=False, logits_to_keep=keep[None]).logits.flatten(0, -2)
            logits = torch.cat([logits, others.expand(len(logits), 1)], 1)
            loss = cross_entropy(logits, torch.searchsorted(known, packed.labels[keep]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = PRACTICE_RATE * min(1.0, (step + 1) / 10, (len(lessons) - step) / 12)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    finally:
        del table.forward, head.forward
    with torch.no_grad():
        for layer, weight in rows.items():
            layer.weight[used] = weight
    return fmean(losses[-4:])


def _tokens(policy: Policy, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _ignore(event: dict[str, Any]) -> None:
    """The events of a task: a rehearsal shows its stages, not their steps."""


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts):,} to {max(counts):,}" if counts else ""


def _failure(stage: str, error: Exception) -> Finding:
    if isinstance(error, LabError):
        message, step = f"fails: {error}", ""
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        first = str(error).splitlines()[0] if str(error) else ""
        message = f"fails with {type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"
        step = "a run would end there, too"
    return Finding("error", "rehearsal", stage, message, step)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> float:
    """The largest memory since the reset, of the GPU where there is one, else of this process on Linux; 0 where unknown."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024.0 * float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0.0
