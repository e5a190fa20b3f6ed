import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from labkit.errors import LabError
from labkit.policy.model import load_policy
from labkit.stages import checkpoints
from labkit.stages.checkpoints import COMPLETE, finish_stage, load_weights, newest_checkpoint, shuffled_order
from labkit.stages.grpo_steps import WINDOW
from labkit.stages.rollouts import RolloutStore
from labkit.stages.sft import SftResult
from labkit.stages.sharding import require_same_sharding
from tests.stages import small
from tests.stages.small import distance, weights


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def timeless(history):
    """As text: means over nothing are NaN, which equals nothing."""
    return repr(
        [{name: value for name, value in row.items() if name not in ("step_time", "cpu_seconds")} for row in history]
    )


def recorded_probes(folder):
    """As text: their rewards are NaN, which equals nothing."""
    return repr(RolloutStore(folder / "probes").read())


@pytest.fixture(scope="module")
def uninterrupted(source, moments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    policy = load_policy("embedded", device="cpu")
    result = small.train_grpo(policy, source, moments, folder, probe_every=3)
    assert (result.steps, result.stopped_by) == (WINDOW, "condition")
    assert RolloutStore(folder / "probes").steps() == [0, 1, 2, 3, WINDOW], "before the first step, and after the last"
    return weights(policy), RolloutStore(folder / "rollouts").read(), result, recorded_probes(folder)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step3", "save4"])
def test_grpo_killed_ends_as_if_it_never_was(world, moments, policy, source, tmp_path, uninterrupted, place):
    """Killed between two checkpoints, and while it writes one; the resumed run stops by the condition."""
    folder = tmp_path / "run"
    start = weights(policy)
    assert small.train_and_kill("grpo", world, folder, place) == -9
    assert (folder / "checkpoint-2" / COMPLETE).exists()
    assert (folder / "checkpoint-4").exists() == (place == "save4")
    assert not (folder / "checkpoint-4" / COMPLETE).exists()
    assert RolloutStore(folder / "rollouts").steps() == list(range(1, int(place[-1]) + 1))
    heard, before = [], []
    result = small.train_grpo(
        policy, source, moments, folder, on_step=heard.append, on_resume=before.extend, probe_every=3
    )
    expected, rollouts, whole, probed = uninterrupted
    assert recorded_probes(folder) == probed, "none lost, none doubled, none other"
    assert [row["step"] for row in heard] == [3, 4, 5]
    assert timeless(before + heard) == timeless(whole.history)
    assert equal(weights(policy), expected) and distance(start, expected) > 0.1
    assert RolloutStore(folder / "rollouts").read() == rollouts  # none lost, none doubled, none other
    assert (result.steps, result.stopped_by) == (whole.steps, whole.stopped_by)
    assert timeless(result.history) == timeless(whole.history)
    assert all(row["cpu_seconds"] > 0 for row in result.history), "steps before the kill have theirs"
    assert equal(weights(load_policy(str(folder / "final"), device="cpu")), expected)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_grpo_killed_after_its_last_step_takes_no_other(policy, source, moments, tmp_path, monkeypatch, uninterrupted):
    """The last step is a checkpoint of its own, its model not yet written."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_policy", die)
        with pytest.raises(Killed):
            small.train_grpo(policy, source, moments, tmp_path / "run", save_steps=WINDOW)
    assert (tmp_path / "run" / f"checkpoint-{WINDOW}").is_dir()
    fresh = load_policy("embedded", device="cpu")
    result = small.train_grpo(
        fresh, source, moments, tmp_path / "run", save_steps=WINDOW, on_step=pytest.fail, probe_every=3
    )
    expected, rollouts, whole, _ = uninterrupted
    assert RolloutStore(tmp_path / "run" / "probes").steps() == [WINDOW], "what can still be asked is"
    assert equal(weights(fresh), expected)
    assert RolloutStore(tmp_path / "run" / "rollouts").read() == rollouts
    assert (result.steps, result.stopped_by) == (WINDOW, "condition")
    assert timeless(result.history) == timeless(whole.history)


@pytest.mark.slow
def test_sft_killed_ends_as_if_it_never_was(world, moments, policy, source, tmp_path):
    whole = load_policy("embedded", device="cpu")
    expected = small.train_sft(whole, source, moments, tmp_path / "whole")
    folder = tmp_path / "run"
    assert small.train_and_kill("sft", world, folder, "step3") == -9
    (folder / "checkpoint-4").mkdir()  # the next kill comes while it is written
    (folder / "checkpoint-4" / "config.json").write_text("{}")
    heard = []
    result = small.train_sft(policy, source, moments, folder, on_step=heard.append)
    assert [row["step"] for row in heard] == list(range(3, expected.steps + 1))
    assert equal(weights(policy), weights(whole))
    assert small.untimed(result.history) == small.untimed(expected.history)
    assert equal(weights(load_policy(str(folder / "final"), device="cpu")), weights(whole))
    assert repr(small.train_sft(policy, source, moments, folder, on_step=pytest.fail)) == repr(result)


@pytest.mark.slow
def test_an_adapter_resumes_too(source, moments, tmp_path):
    def stop(row):
        if row["step"] == 3:
            raise Killed

    def adapted():
        torch.manual_seed(0)
        return load_policy("embedded", device="cpu", lora_rank=4)

    whole, broken, resumed, before = adapted(), adapted(), adapted(), []
    expected = small.train_sft(whole, source, moments, tmp_path / "whole", sft_epochs=1.2)
    with pytest.raises(Killed):
        small.train_sft(broken, source, moments, tmp_path / "run", sft_epochs=1.2, on_step=stop)
    small.train_sft(resumed, source, moments, tmp_path / "run", sft_epochs=1.2, on_resume=before.extend)
    assert small.untimed(before) == small.untimed(expected.history[:2]), (
        "the steps that the checkpoint has seen are told"
    )
    assert equal(weights(resumed), weights(whole))
    assert distance(weights(resumed), weights(adapted())) > 1e-2


def test_an_incomplete_checkpoint_is_left_out_and_removed(tmp_path):
    for step, complete in [(9, True), (10, True), (11, False)]:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / COMPLETE).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by name
    assert not (tmp_path / "checkpoint-11").exists()
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_what_a_user_keeps_beside_the_checkpoints_is_no_checkpoint_and_stays(policy, tmp_path):
    kept, done = [tmp_path / name for name in ("checkpoint-best", "checkpoint-4-before")], tmp_path / "checkpoint-4"
    for folder in (*kept, done):
        folder.mkdir()
        (folder / COMPLETE).touch()
    assert newest_checkpoint(tmp_path) == done
    finish_stage(policy, SftResult(steps=4, history=[], seconds=1.0), tmp_path)
    assert all(folder.is_dir() for folder in kept) and not done.exists()


@pytest.mark.parametrize(
    ("spoil", "said", "reason"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
            "has 5 bytes, of 9",
            "cut off by a full disk",
        ),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt", "lost when the run was copied"),
        (lambda folder: (folder / COMPLETE).write_text("{"), "Expecting", "the marker itself"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(spoil, said, reason, tmp_path, capsys):
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"9 letters")
        (folder / "optimizer.pt").write_bytes(b"7 bytes")
        (folder / COMPLETE).write_text(json.dumps({"model.safetensors": 9, "optimizer.pt": 7}))
    assert newest_checkpoint(tmp_path) == folder
    spoil(folder)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2", reason
    line = capsys.readouterr().out
    assert f"'{folder}' is damaged" in line and said in line and not folder.exists()


def test_a_checkpoint_is_kept_with_the_sizes_of_its_files(policy, source, moments, tmp_path):
    def stop(row):
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        small.train_sft(policy, source, moments, tmp_path, on_step=stop)
    sizes = json.loads((tmp_path / "checkpoint-2" / COMPLETE).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= sizes.keys()
    assert all((tmp_path / "checkpoint-2" / name).stat().st_size == size for name, size in sizes.items())


@pytest.mark.parametrize(
    ("written", "processes", "sharding", "refused", "reason"),
    [
        ("optimizer_0", 8, "fsdp2", None, "in shards before, in shards now"),
        ("optimizer.bin", 8, "fsdp2", "by a labkit that saved no shards", "as the first versions wrote it"),
        ("optimizer_0", 1, "fsdp2", "by several processes .* let `processes` be more than 1", "one has it whole"),
        ("optimizer.pt", 8, "fsdp2", "by one process .*, and 8 cannot .* let `processes` be 1", "eight have parts"),
        ("optimizer.pt", 1, "fsdp2", None, "one has it whole, as it had"),
        ("optimizer.pt", 8, "ddp", None, "each has it whole, however many they are"),
    ],
)
def test_an_optimizer_in_parts_is_not_read_whole(written, processes, sharding, refused, reason, tmp_path, monkeypatch):
    (tmp_path / written).touch()
    for name, number in {"LABKIT_WORKERS": tmp_path, "RANK": 0, "WORLD_SIZE": processes, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(number))
    require_same_sharding(None, sharding)
    with pytest.raises(LabError, match=refused) if refused else nullcontext():
        require_same_sharding(tmp_path, sharding)
        assert not refused, reason


def test_no_block_of_the_order_holds_an_item_twice():
    order = shuffled_order(range(7), 30, seed=1, block=3)
    assert len(order) == 30
    assert all(len(set(order[i : i + 3])) == 3 for i in range(0, 30, 3))
    assert order[:12] == shuffled_order(range(7), 12, seed=1, block=3)  # a longer stage begins as a shorter one
    with pytest.raises(ValueError, match="2 items do not fill a block of 3"):
        shuffled_order(range(2), 3, seed=1, block=3)


def test_a_checkpoint_is_loaded_under_the_names_it_was_saved_with(policy, tmp_path):
    """Saved weights carry the published names; a loader that looks for the running model's finds none of them."""
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.25)
    policy.model.save_pretrained(tmp_path)
    fresh = load_policy("embedded", device="cpu")
    load_weights(fresh.model, tmp_path)
    assert equal(weights(fresh), weights(policy))


def test_trained_weights_in_float32_are_loaded_as_they_are_beside_a_tower_in_bfloat16(policy, tmp_path):
    """As fsdp2 keeps them: a step of 1e-6 is lost where bfloat16 comes in between."""
    policy.model.model.visual.bfloat16()
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(1e-6 if weight.requires_grad else 0.25)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights(policy).values())
    policy.model.save_pretrained(tmp_path)
    fresh = load_policy("embedded", device="cpu")
    fresh.model.model.visual.bfloat16()
    load_weights(fresh.model, tmp_path)
    assert equal(weights(fresh), weights(policy))
    assert {weight.dtype for weight in fresh.model.model.visual.parameters()} == {torch.bfloat16}


def test_weights_have_the_rights_that_the_umask_leaves(policy, source, moments, tmp_path):
    """safetensors makes them 0600: a second user of a group folder could not load what a stage ended with."""

    def rights(folder: Path) -> set[int]:
        return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}

    seen = []

    def on_step(row: dict) -> None:
        seen.extend(rights(folder) for folder in tmp_path.glob("checkpoint-*"))

    before = os.umask(0o002)
    try:
        small.train_sft(policy, source, moments[:4], tmp_path, sft_epochs=4.0, save_steps=1, on_step=on_step)
    finally:
        os.umask(before)
    assert seen and all(each == {0o664} for each in seen)
    assert rights(tmp_path / "final") == {0o664}
