"""The rollout store: nothing lost, nothing doubled, whenever the kill comes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.chain.rewards import RewardSpec
from labkit.errors import LabError
from labkit.stages import rollouts as module
from labkit.stages.rollouts import JOINED, NAMES, Rollout, RolloutStore


def rollout(step: int = 1, qid: str = "q", sample: int = 0, text: str = "<answer>1 to 2</answer>") -> Rollout:
    return Rollout(
        run="x", stage="grpo", step=step, qid=qid, sample=sample, seed=0, checkpoint="base", text=text,
        status="no_think", reward_format=0.0, reward_answer=0.5, reward_anchors=-1.0, reward_progress=0.0, total=-0.5,
        advantage=0.25, prompt_tokens=400, completion_tokens=9, finished=True,
    )  # fmt: skip


def step(number: int, text: str = "t") -> list[Rollout]:
    return [rollout(number, qid, sample, text) for qid in "ab" for sample in range(2)]


def test_what_is_written_is_read(tmp_path):
    store = RolloutStore(tmp_path / "rollouts")
    written = [
        rollout(text="kein \u00c4nker \U0001f4fc\n\t\x00 <b>"),
        replace(rollout(sample=1), finished=False, total=1e-300),
    ]
    store.write(1, written)
    assert store.read() == written


def test_a_store_from_before_there_were_options_is_read(tmp_path):
    store = RolloutStore(tmp_path)
    path = store.write(1, step(1))
    parquet.write_table(parquet.read_table(path).drop_columns(["reward_option"]), path)
    store.write(2, [replace(each, reward_option=1.0) for each in step(2)])
    assert [each.reward_option for each in store.read()] == [0.0] * 4 + [1.0] * 4
    store.compact()
    assert store.read() == step(1) + [replace(each, reward_option=1.0) for each in step(2)]


def test_nan_survives(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, [replace(rollout(), advantage=float("nan"))])
    assert math.isnan(store.read()[0].advantage)


def test_an_empty_store_is_empty(tmp_path):
    store = RolloutStore(tmp_path / "none")
    store.compact()
    store.truncate(3)
    assert (store.read(), store.steps(), len(store.frame())) == ([], [], 0)
    assert list(store.frame().columns) == list(NAMES)
    assert not (tmp_path / "none").exists()


def test_a_step_without_rollouts_is_kept_as_none(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, [])
    assert store.steps() == [1]
    assert store.read() == []


def test_steps_come_in_order_however_they_were_written(tmp_path):
    store = RolloutStore(tmp_path)
    for number in (10, 2, 1_000_000, 1):
        store.write(number, step(number))
    assert store.steps() == [1, 2, 10, 1_000_000]
    assert [each.step for each in store.read()] == sorted(each.step for each in store.read())


def test_writing_a_step_again_replaces_it(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, step(1, "killed before the checkpoint"))
    store.write(1, step(1, "resumed"))
    assert [each.text for each in store.read()] == ["resumed"] * 4


def test_joining_changes_nothing(tmp_path):
    store = RolloutStore(tmp_path)
    for number in (1, 2, 3):
        store.write(number, step(number))
    before = store.read()
    store.compact()
    assert [path.name for path in tmp_path.iterdir()] == [JOINED]
    assert (store.read(), store.steps()) == (before, [1, 2, 3])
    store.compact()
    assert store.read() == before


def test_the_newest_step_is_read_alone(tmp_path):
    store = RolloutStore(tmp_path)
    assert store.newest() == []
    store.write(2, step(2))
    store.write(11, step(11))
    store.write(9, step(9))
    assert store.newest() == step(11)
    store.compact()
    assert store.newest() == step(11)
    store.write(12, step(12))  # a stage that goes on
    assert store.newest() == step(12)


def test_a_kill_between_joining_and_removing_doubles_nothing(tmp_path):
    store = RolloutStore(tmp_path)
    for number in (1, 2):
        store.write(number, step(number))
    before = store.read()
    parts = {path: path.read_bytes() for path in tmp_path.iterdir()}
    store.compact()
    for path, content in parts.items():
        path.write_bytes(content)
    assert store.read() == before
    store.compact()
    assert store.read() == before


def test_a_step_may_be_written_in_batches(tmp_path):
    """As several processes do in an evaluation."""
    store, batches = RolloutStore(tmp_path), {name: [rollout(0, name, text=name)] for name in "ba"}
    for name, batch in batches.items():
        store.write(0, batch, {"weights": "w"}, batch=name)
    assert store.read() == store.newest() == [*batches["a"], *batches["b"]] and store.steps() == [0]
    store.write(0, [rollout(0, "b", text="again")], {"weights": "w"}, batch="b")
    assert [each.text for each in store.stream()] == ["a", "again"]
    assert store.qid_counts() == {0: {"a": 1, "b": 1}} and store.provenances() == [{"weights": "w"}]
    before = store.read()
    store.compact()
    assert store.read() == before and [path.name for path in tmp_path.iterdir()] == [JOINED]
    store.write(0, batches["b"], batch="b")
    store.truncate(-1)
    assert store.read() == []


def test_a_half_written_part_is_not_seen(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, step(1))
    (tmp_path / ".part-000002.parquet.123.tmp").write_bytes(b"PAR1 half")
    assert store.steps() == [1]
    assert len(store.read()) == 4


def test_a_failed_write_leaves_the_old_step(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, step(1, "old"))
    with pytest.raises(pa.ArrowInvalid):
        store.write(1, [replace(rollout(), total="not a number")])  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["part-000001.parquet"]
    assert store.read()[0].text == "old"


@pytest.mark.parametrize("joined", [False, True], ids=["parts", "joined"])
def test_truncating_forgets_what_came_after_the_checkpoint(tmp_path, joined):
    store = RolloutStore(tmp_path)
    for number in (1, 2, 3):
        store.write(number, step(number))
    if joined:
        store.compact()
    store.truncate(after_step=1)
    assert (store.steps(), len(store.read())) == ([1], 4)
    store.write(2, step(2, "again"))
    assert (store.steps(), len(store.read())) == ([1, 2], 8)


def test_a_store_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)
    store = RolloutStore(tmp_path)
    for number in (1, 2, 4, 5):
        store.write(number, step(number))
    store.compact()
    store.write(2, step(2, "again"))
    store.write(3, step(3))
    sizes = [len(table) for table in store.tables()]
    assert max(sizes) <= 3 and sum(sizes) == 20
    assert list(store.stream()) == [*step(1), *step(2, "again"), *step(3), *step(4), *step(5)] == store.read()
    assert store.table().num_rows == 20


def test_what_rollouts_depend_on_is_noted_with_them(tmp_path):
    store = RolloutStore(tmp_path)
    assert store.provenances() == []
    store.write(1, step(1), {"weights": "a", "seed": 1})
    store.write(2, step(2), {"weights": "a", "seed": 1})
    store.write(3, step(3))
    assert store.provenances() == [{"weights": "a", "seed": 1}]
    store.compact()
    assert store.provenances() == [{"weights": "a", "seed": 1}]
    store.write(4, step(4), {"weights": "b"})
    assert store.provenances() == [{"weights": "a", "seed": 1}, {"weights": "b"}]


def test_processor_time_is_summed_and_counted_once_whatever_was_joined(tmp_path):
    store = RolloutStore(tmp_path)
    assert store.cpu_seconds() is None
    store.write(1, step(1), cpu_seconds=1.5)
    store.write(2, step(2), cpu_seconds=2.0)
    assert store.cpu_seconds() == 3.5
    kept = (tmp_path / "part-000002.parquet").read_bytes()
    store.compact()
    (tmp_path / "part-000002.parquet").write_bytes(kept)  # as a kill between joining and removing leaves it
    assert store.cpu_seconds() == 3.5
    store.compact()
    store.write(3, step(3), cpu_seconds=0.25)
    assert store.cpu_seconds() == 3.75
    store.write(4, step(4))
    assert store.cpu_seconds() is None, "a part of no record is not taken for one that took no time"


@pytest.mark.parametrize("compacted", [False, True])
def test_rollouts_know_what_they_were_paid_by(tmp_path, compacted):
    spec = RewardSpec({**RewardSpec().weights, "answer": 3.0}, "iou", 1, 5)
    store = RolloutStore(tmp_path)
    for number in (1, 2, 3):
        store.write(number, [replace(each, spec=spec) for each in step(number)], {"seed": 1})
    if compacted:
        store.compact()
    assert [each.spec for each in store.read()] == [spec] * 12
    assert [each.spec for each in store.newest()] == [spec] * 4 and store.specs() == [spec]
    store.truncate(2)
    assert {each.step: each.spec for each in store.read()} == {1: spec, 2: spec}
    assert store.provenances() == [{"seed": 1}]


def test_a_store_without_a_spec_is_read_and_joined(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, step(1))
    store.write(2, [replace(each, spec=RewardSpec()) for each in step(2)])
    assert {each.step: each.spec for each in store.read()} == {1: None, 2: RewardSpec()}
    store.compact()
    assert [each.spec for each in store.read()] == [None] * 8, "what is not true of all is said of none"


def test_a_spec_of_another_version_is_no_spec(tmp_path):
    store = RolloutStore(tmp_path)
    path = store.write(1, step(1))
    note = {module.REWARD: json.dumps({"weights": {"format": 1.0}, "gain": 2})}
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(note), path)
    assert [each.spec for each in store.read()] == [None] * 4


def test_a_step_is_paid_by_one_spec(tmp_path):
    with pytest.raises(ValueError, match="paid by another spec"):
        RolloutStore(tmp_path).write(1, [rollout(), replace(rollout(sample=1), spec=RewardSpec())])


def test_what_was_asked_is_known_without_the_texts(tmp_path):
    store = RolloutStore(tmp_path)
    store.write(1, step(1))
    store.compact()
    store.write(2, [rollout(2, "c")])
    assert store.qid_counts() == {1: {"a": 2, "b": 2}, 2: {"c": 1}}


@pytest.fixture(params=[3, module.ROWS], ids=["read by three", "read by thousands"])
def rows(request, monkeypatch):
    monkeypatch.setattr(module, "ROWS", request.param)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 5)),
            st.tuples(st.just("truncate"), st.integers(0, 5)),
            st.just(("compact", 0)),
        ),
        max_size=8,
    )
)
def test_any_sequence_of_actions_is_what_a_dictionary_would_hold(tmp_path_factory, rows, actions):
    store, model = RolloutStore(tmp_path_factory.mktemp("store")), {}
    for count, (action, number) in enumerate(actions):
        if action == "write":
            model[number] = step(number, str(count))
            store.write(number, model[number])
        elif action == "truncate":
            model = {key: rows for key, rows in model.items() if key <= number}
            store.truncate(number)
        else:
            store.compact()
    assert store.steps() == sorted(model)
    assert store.read() == [row for key in sorted(model) for row in model[key]]


def test_a_rollout_of_another_step_or_twice_the_same_is_a_fault(tmp_path):
    store = RolloutStore(tmp_path)
    with pytest.raises(ValueError, match=r"\(2, 'q', 0\).* cannot be written as step 1"):
        store.write(1, [rollout(2)])
    with pytest.raises(ValueError, match=r"\(1, 'q', 0\).* twice"):
        store.write(1, [rollout(), rollout()])
    assert store.steps() == []


def test_a_damaged_or_foreign_file_is_named(tmp_path):
    store = RolloutStore(tmp_path)
    (tmp_path / "part-000001.parquet").write_bytes(b"not parquet")
    with pytest.raises(LabError, match="part-000001.parquet' cannot be read"):
        store.read()
    parquet.write_table(pa.table({"qid": ["q"]}), tmp_path / "part-000001.parquet")
    with pytest.raises(LabError, match="has no column run, stage"):
        store.read()


def test_a_large_file_is_not_held_while_it_is_gone_through(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 200)
    store, drawn, pool = RolloutStore(tmp_path), random.Random(0), pa.default_memory_pool()
    for number in range(1, 21):
        store.write(number, [rollout(number, f"q{k}", text=drawn.randbytes(1500).hex()) for k in range(200)])
    store.compact()
    before = pool.bytes_allocated()
    most = max(pool.bytes_allocated() - before for _ in store.stream())
    # A row group and what was read of it, of twenty: read ahead, all of the file would be there.
    assert most < (tmp_path / JOINED).stat().st_size / 3
