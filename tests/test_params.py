"""Parameters: what is put right, what is refused, and what the messages say."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from labkit.errors import LabError
from labkit.params import (
    DEFAULTS,
    GROUPS,
    PROTOCOLS,
    GrpoParams,
    Params,
    documentation,
    names,
    protocol_params,
    read_params,
)

PARAMS = sorted((Path(__file__).parents[1] / "params").glob("*.yaml"))


def refusal(**values: object) -> str:
    with pytest.raises(LabError) as caught:
        Params.build(values)
    return str(caught.value)


def test_nothing_given_is_the_embedded_lab():
    params = Params.build({})
    assert params == DEFAULTS
    assert (params.run, params.model, params.data, params.group_size) == ("embedded", "embedded-2", "world-2", 8)
    assert params.changed() == []


@pytest.mark.parametrize(
    ("name", "loose", "meant"),
    [
        ("learning_rate", "1e-6", 1e-6),  # YAML 1.1 reads 1e-6 as text
        ("learning_rate", "0.001", 0.001),  # argparse gives text
        ("beta", 0, 0.0),  # YAML reads 0 as a whole number
        ("pack_traces", "false", False),  # papermill -p gives text, and text is true
        ("pack_traces", "True", True),  # papermill's own spelling
        ("pack_traces", "no", False),
        ("sampled_evaluation", True, "all"),  # runs and params files of before it had a third choice
        ("sampled_evaluation", "False", "none"),
        ("sampled_evaluation", "no", "none"),
        ("sampled_evaluation", "none", "none"),
        ("grpo_steps", "75", 75),
        ("grpo_steps", 75.0, 75),  # 7.5e1 in YAML
        ("grpo_steps", "1e2", 100),  # text in YAML 1.1
        ("run", 7, "7"),  # a run called 7
        ("compare", "outputs/a,outputs/b", ("outputs/a", "outputs/b")),  # -p compare outputs/a,outputs/b
        ("compare", "[outputs/a, 'outputs/b']", ("outputs/a", "outputs/b")),
        ("compare", "", ()),
        ("compare", ["a"], ("a",)),  # YAML's own list
    ],
)
def test_what_yaml_and_papermill_spoil_is_put_right(name, loose, meant):
    value = getattr(Params.build({name: loose}), name)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("learning_rate", "fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate", 0, "learning_rate: 0.0 is out of range (0, 1]"),
        ("learning_rate", float("nan"), "learning_rate: nan is not a finite number"),
        ("learning_rate", "inf", "learning_rate: 'inf' is not a finite number"),
        ("learning_rate", "2", "learning_rate: 2.0 is out of range (0, 1]"),
        ("grpo_steps", "7.5", "grpo_steps: '7.5' is not a whole number"),
        ("grpo_steps", "inf", "grpo_steps: 'inf' is not a finite number"),
        ("learning_rate", True, "learning_rate: True is not a number"),
        ("beta", -0.1, "beta: -0.1 is out of range [0, 10]"),
        ("group_size", 1, "group_size: 1 is out of range [2, 256]"),  # a group of one has no advantage
        ("group_size", 2.5, "group_size: 2.5 is not a whole number"),
        ("grpo_steps", 0, "grpo_steps: 0 is out of range, it must be at least 1"),
        ("grpo_steps", "many", "grpo_steps: 'many' is not a whole number"),
        ("grpo_steps", [75], "grpo_steps: [75] is not a whole number"),
        ("world_seed", 1000, "world_seed: 1000 is out of range [0, 999]"),
        ("pack_traces", 2, "pack_traces: 2 is not true or false"),
        ("sampled_evaluation", 2, "sampled_evaluation: 2 is not one of none, ends, all"),
        ("sampled_evaluation", None, "sampled_evaluation: has no value"),
        ("answer_reward", "giou", "answer_reward: 'giou' is not one of soft_iou, iou, timer1"),
        ("dtype", "float16", "dtype: 'float16' is not one of float32, bfloat16"),
        ("run", False, "run: False is not text; put it in quotes"),  # run: no
        ("run", 1.1, "run: 1.1 is not text; put it in quotes"),  # run: 1.10 has lost its 0
        ("run", "", "run: is empty"),
        ("run", "../other", "run: '../other' cannot name a directory"),
        ("run", ".hidden", "run: '.hidden' cannot name a directory"),
        ("model", " ", "model: is empty"),
        ("model", None, "model: has no value"),  # model:
        ("model", ["a"], "model: ['a'] is not text"),
        ("compare", [1], "compare: [1] is not a list of texts"),
        ("min_anchors", 5, "min_anchors: 5 is more than max_anchors (4)"),
        ("min_pixels", 6272, "min_pixels: 6272 is more than max_pixels (3136)"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name, value, says):
    assert refusal(**{name: value}).startswith(says)


@pytest.mark.parametrize(
    ("step", "each", "processes", "fits"),
    [
        (12, 0, 4, True),  # 3 queries each, in one pass
        (12, 3, 4, True),
        (12, 2, 4, False),  # 3 queries are no whole number of passes of 2
        (12, 0, 8, False),
        (12, 0, 0, True),  # as many as there are GPUs: known when the run begins
    ],
)
def test_processes_take_whole_queries(step, each, processes, fits):
    values = {"prompts_per_step": step, "prompts_per_pass": each, "processes": processes}
    if fits:
        assert Params.build(values).processes == processes
    else:
        assert f"prompts_per_step: {step} is no multiple of processes ({processes})" in refusal(**values)


def test_an_unknown_name_gets_the_nearest():
    assert refusal(learning_rat=1e-6) == "unknown parameter 'learning_rat'; did you mean 'learning_rate'?"
    assert refusal(xyzzy=1) == "unknown parameter 'xyzzy'; labkit/param_fields.py lists all of them"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("grpo_step", "grpo_steps"),  # a letter lost
        ("temprature", "temperature"),
        ("modle", "model"),  # two letters changed places
        ("max_tokens", "max_new_tokens"),
        ("num_processes", "processes"),
        ("outputs_dir", "outputs"),
        ("lr", None),  # another library's word for learning_rate; nearest by letters is `run`
        ("warmup", None),  # `run`
        ("batch_size", None),  # sft_batch, group_size or prompts_per_step?
        ("verbose", None),  # `processes`
        ("weight_decay", None),  # `option_weight`
        ("gpus", None),  # `fps`
        ("workers", None),  # `world_test`
    ],
)
def test_a_slip_is_guessed_and_another_word_is_not(typed, meant):
    hint = f"did you mean '{meant}'?" if meant else "labkit/param_fields.py lists all of them"
    assert refusal(**{typed: 1}) == f"unknown parameter '{typed}'; {hint}"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"answer_reward": "x"}, "answer_reward: 'x' is not one of soft_iou, iou, timer1"),  # passed before
        ({"grpo_steps": "ten"}, "grpo_steps: 'ten' is not a whole number"),  # a bare TypeError before
        ({"model": None}, "model: has no value"),
        ({"seed": -1, "pack_traces": 2}, "2 problems"),
    ],
)
@pytest.mark.parametrize("make", [Params, lambda **values: DEFAULTS.replace(**values)], ids=["Params", "replace"])
def test_construction_says_what_a_file_would(make, values, says):
    with pytest.raises(LabError) as caught:
        make(**values)
    assert str(caught.value).startswith(says) and str(caught.value) == refusal(**values)


def test_construction_puts_right_what_a_file_would():
    params = Params(grpo_steps="75", compare=["outputs/a"])  # type: ignore[arg-type]
    assert (params.grpo_steps, params.compare) == (75, ("outputs/a",))


def test_all_errors_are_told_together():
    message = refusal(learning_rat=1e-6, fps="fast", seed=-1)
    assert message.splitlines() == [
        "3 problems",
        "  unknown parameter 'learning_rat'; did you mean 'learning_rate'?",
        "  fps: 'fast' is not a number",
        "  seed: -1 is out of range [0, 2147483647]",
    ]


def test_a_reward_of_nothing_is_refused():
    assert "nothing would be rewarded" in refusal(
        format_weight=0, answer_weight=0, anchors_weight=0, progress_weight=0
    )


def test_the_option_pays_only_where_there_are_options():
    none = {"format_weight": 0, "answer_weight": 0, "anchors_weight": 0, "progress_weight": 0}
    assert "nothing would be rewarded" in refusal(**none, option_weight=1)
    assert Params.build({**none, "task": "gqa", "model": "embedded-gqa"}).option_weight == 1.0
    assert Params.build({**none, "data": "mine"}).option_weight == 1.0  # its moments may have options
    assert "nothing would be rewarded" in refusal(**none, data="mine", option_weight=0)


def test_the_embedded_base_cannot_read_options():
    assert refusal(task="gqa").startswith("model: embedded-2 lacks the words for questions with options")
    assert refusal(task="gqa", model="embedded").startswith("model: embedded lacks the words")
    gqa = {"task": "gqa", "model": "embedded-gqa"}
    assert refusal(**gqa, harvester="embedded").startswith("harvester: embedded lacks the words for questions")
    assert refusal(**gqa, data="world").startswith("task: world has no questions with options")
    assert refusal(task="qa").startswith("task: 'qa' is not one of grounding, gqa")


def test_the_first_editions_base_cannot_read_the_second():
    assert refusal(model="embedded").startswith(
        "model: embedded lacks words of world-2; give embedded-2, or data world"
    )
    assert Params.build({"model": "embedded", "data": "world"}).model == "embedded"
    assert refusal(harvester="embedded").startswith("harvester: embedded lacks words of world-2")


def test_direct_construction_is_checked_too():
    with pytest.raises(LabError, match="group_size: 1 is out of range"):
        DEFAULTS.replace(group_size=1)
    with pytest.raises(ValidationError, match="frozen"):
        DEFAULTS.seed = 1  # type: ignore[misc]


def test_params_serve_wherever_a_group_is_asked():
    assert isinstance(DEFAULTS, GrpoParams)


def test_every_field_is_documented_with_its_source():
    notes = documentation()
    assert set(notes) == set(names())
    for name, note in notes.items():
        assert any(source in note for source in ("ours", "Ours", "Paper", "paper", "Time-R1")), name


def test_no_name_stands_in_two_groups():
    assert len(names()) == len(set(names())) == len(Params.model_fields)
    assert sum(len(group.model_fields) for group in GROUPS) == len(names())


def test_values_survive_yaml():
    params = Params.build({"run": "x", "learning_rate": 1e-6, "compare": ["outputs/a"]})
    assert Params.build(yaml.safe_load(yaml.safe_dump(params.as_dict()))) == params


# --- files


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", PARAMS, ids=[path.stem for path in PARAMS])
def test_shipped_params_are_good_and_named_like_their_run(path):
    assert read_params(path).run == path.stem


@pytest.mark.parametrize("path", [path for path in PARAMS if "Qwen/" in path.read_text()], ids=lambda path: path.stem)
def test_beside_each_value_for_a_real_model_stands_whose_it_is(path):
    values = [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "run:"))]
    assert len(values) >= 30
    for line in values:
        assert re.search(r" # (ours|paper|Time-R1|docs/models.md)\b", line), line


def test_a_file_holds_overrides_and_the_command_line_goes_before_it(tmp_path):
    path = written(tmp_path, "learning_rate: 1e-6\nseed: 3\n")
    params = read_params(path, {"seed": "4"})
    assert (params.learning_rate, params.seed, params.group_size) == (1e-6, 4, 8)


def test_an_empty_file_is_the_embedded_lab(tmp_path):
    assert read_params(written(tmp_path, "# nothing\n")) == DEFAULTS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nseed: 2\n", "'seed' stands there twice"),
        ("- seed\n", "must hold lines of the form 'name: value'"),
        ("just text", "must hold lines of the form 'name: value'"),
        ("seed: [1\n", "is not YAML"),
        ("seed: !!python/object:os.system 1\n", "is not YAML"),
        ("seeds: 1\n", "unknown parameter 'seeds'; did you mean 'seed'?"),
        ("seed: one\n", "seed: 'one' is not a whole number"),
        ("run: 2024-01-01\n", "run: datetime.date(2024, 1, 1) is not text; put it in quotes"),
        ("7: seven\n", "unknown parameter '7'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, says):
    path = written(tmp_path, text)
    with pytest.raises(LabError) as caught:
        read_params(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused_with_what_there_is(tmp_path):
    written(tmp_path, "")
    with pytest.raises(LabError, match=r"there is no params file '.*embeded.yaml'; there are .*p.yaml"):
        read_params(tmp_path / "embeded.yaml")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="cannot be read"):
        read_params(tmp_path / "p.yaml")


# --- notebooks

OWN = {"In": [""], "Out": {}, "exit": object(), "quit": object(), "get_ipython": object(), "open": open, "_i1": ""}


def test_a_notebook_gives_its_parameters_and_nothing_else():
    namespace = {**OWN, "Params": Params, "np": types, "helper": len, "run": "x", "learning_rate": "2e-4"}
    params = Params.from_notebook(namespace)
    assert params.changed() == ["run", "learning_rate"]


def test_a_mistyped_papermill_parameter_is_refused():
    with pytest.raises(LabError, match="unknown parameter 'learning_rat'"):
        Params.from_notebook({**OWN, "learning_rat": 1e-4})
    with pytest.raises(LabError, match="unknown parameter 'xyzzy'"):
        Params.from_notebook({**OWN, "xyzzy": 1})


def test_the_cell_may_be_run_again_when_later_cells_have_made_names():
    namespace = {**OWN, "run": "x"}
    first = Params.from_notebook(namespace)
    namespace.update(params=first, history=[1, 2], chart={"a": 1})
    assert Params.from_notebook(namespace) == first
    namespace["learning_rat"] = 1e-4  # typed into the parameters cell, then both cells run again
    with pytest.raises(LabError, match="did you mean 'learning_rate'"):
        Params.from_notebook(namespace)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spark", "a session"),  # a platform's
        ("seed", 3),  # a startup file's: it would have become a parameter without a word
        ("seeds", 3),
        ("PAPERMILL_INPUT_PATH", "a.ipynb"),
    ],
)
def test_what_was_there_before_the_first_cell_is_no_parameter(name, value):
    cells = ["", "run = 'x'\nlearning_rate = 5e-4", "# Parameters\nlearning_rate = 1e-4\n"]
    cells += ["from labkit import Params\nparams = Params.from_notebook(globals())"]
    namespace = {**OWN, name: value, "In": cells, "Params": Params, "run": "x", "learning_rate": 1e-4}
    params = Params.from_notebook(namespace)
    assert params.changed() == ["run", "learning_rate"] and params.seed == 0


def test_paths_that_papermill_injects_are_no_parameters_though_a_cell_assigns_them():
    cells = ["", 'run = "x"', '# Parameters\nPAPERMILL_OUTPUT_PATH = "o.ipynb"\n', "Params.from_notebook(globals())"]
    assert Params.from_notebook({**OWN, "In": cells, "run": "x", "PAPERMILL_OUTPUT_PATH": "o.ipynb"}).run == "x"


def test_a_mistyped_parameter_is_refused_by_the_cell_that_assigns_it():
    cells = ["", "learning_rat = 1e-4", "%broken", "Params.from_notebook(globals())"]
    with pytest.raises(LabError, match="did you mean 'learning_rate'"):
        Params.from_notebook({**OWN, "In": cells, "learning_rat": 1e-4})


# --- what is shown


def test_text_marks_what_differs():
    lines = str(Params.build({"seed": 3})).splitlines()
    assert [line for line in lines if line.startswith(" *")] == [f" * {'seed':<{max(map(len, names()))}}  3"]


def test_html_shows_what_differs_on_top_of_all_and_escapes():
    html = Params.build({"model": "<script>alert(1)</script>"})._repr_html_()
    assert "<script>" not in html
    own, every = html.split("<details>")
    assert own.count("<tr") == 2 and ">embedded-2</td>" in own, "a head, and the one row with its default"
    assert all(f">{name}</td>" in every for name in names())
    assert Params()._repr_html_().startswith("<details>")


def test_where_no_table_can_be_shown_what_differs_is_a_line():
    from IPython.lib.pretty import pretty

    assert pretty(Params()) == "All parameters have their defaults."
    assert pretty(Params.build({"seed": 3})) == "seed = 3  (default 0)"


def test_repr_says_what_differs():
    assert repr(Params.build({"seed": 3})) == "Params.build({'seed': 3})"


def test_protocols_fill_the_parameters_and_what_is_given_goes_before_them():
    for name in PROTOCOLS:
        assert Params(**protocol_params(name)).changed(), name
    assert Params(**{**protocol_params("timelens"), "fps": 1}).total_pixels == 14_336 * 28 * 28
    with pytest.raises(LabError, match="min_pixels: 50176 is more than max_pixels .20000."):
        Params(**{**protocol_params("timelens"), "max_pixels": 20_000})
    with pytest.raises(
        LabError, match="none called 'timelense'; did you mean 'timelens'.* the protocols are timelens, timelens2"
    ):
        protocol_params("timelense")


@pytest.mark.parametrize(
    ("values", "sampled", "why"),
    [
        ({}, {"base", "grpo_final"}, "the two ends"),
        (
            {"harvester": "embedded-gqa"},
            {"base", "grpo_final"},
            "SFT starts from the base, not from what stage 1 trains",
        ),
        ({"grpo_model": "m"}, {"base", "grpo_final"}, "SFT still starts from the base"),
        ({"traces": "t.jsonl"}, {"base", "grpo_final"}, "and so it does here"),
        ({"sft_model": "m"}, {"sft", "grpo_final"}, "the base is never asked"),
        ({"sampled_evaluation": "all"}, {"base", "harvester", "grpo", "sft", "grpo_final"}, "each"),
        ({"sampled_evaluation": "none"}, set(), "none"),
    ],
)
def test_the_ends_of_a_run_are_evaluated_by_sampling_too(values, sampled, why):
    params = Params(**values)
    stages = ("base", "harvester", "grpo", "sft", "grpo_final")
    assert {stage for stage in stages if params.decodings(stage) == ("greedy", "sampled")} == sampled, why
    assert {params.decodings(stage)[0] for stage in stages} == {"greedy"}
