"""The command line: what it prints, and one message and exit code 2 for bad input."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.command_options import overrides, parser
from labkit.data.moments import read_moments
from labkit.params import DEFAULTS, PROTOCOLS
from labkit.runs.results import read_results
from labkit.runs.run import Run

ROOT = Path(__file__).parents[1]
FIGURES = {
    "n": 500.0, "miou": 0.578, "r1@0.3": 0.9, "r1@0.5": 0.7, "r1@0.7": 0.256, "anchor_rate": 0.034,
    "strict_share": 0.01, "iou_first": 0.3, "iou_last": 0.4, "iou_answer": None,
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params_file(project: Path, text: str) -> str:
    (project / "params" / "p.yaml").write_text(text)
    return "params/p.yaml"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1e-6\n", "unknown parameter 'learning_rat'; did you mean 'learning_rate'?"),
        ("learning_rate: fast\n", "learning_rate: 'fast' is not a number"),
        ("group_size: 1\n", "group_size: 1 is out of range [2, 256]"),
        ("seed: 1\nseed: 2\n", "'seed' stands there twice"),
        ("model: ./nowhere\n", "is not a directory"),
        ("model: params\n", "is not a checkpoint"),
        ("data: nowhere\n", "data: there is no folder"),
        ("data: notebooks\n", "train.jsonl is not there"),
        ("prompt: haiku\n", "prompt 'haiku' is not a template"),
        ("{}\n", "there is no notebook"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(project, capsys, text, says):
    assert main(["run", params_file(project, text)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("labkit: ")
    assert says in captured.err
    assert "Traceback" not in captured.err


def test_a_missing_params_file_is_one_message(project, capsys):
    assert main(["run", "params/none.yaml"]) == 2
    assert capsys.readouterr().err == "labkit: there is no params file 'params/none.yaml'\n"


def test_a_run_of_other_parameters_is_one_message(project, capsys):
    Run.open(DEFAULTS.replace(run="x"))
    assert main(["run", params_file(project, "run: x\n"), "-p", "seed", "3", "-p", "learning_rate", "1e-6"]) == 2
    assert "seed: there 0, here 3" in capsys.readouterr().err


def test_a_world_without_clips_and_a_base_over_something_are_refused(project, capsys):
    assert main(["world", "w", "--train", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
    assert main(["base", "params"]) == 2
    assert capsys.readouterr().err == "labkit: 'params' exists already; name a folder that does not\n"


def test_a_world_is_written(project, capsys):
    assert main(["world", "w", "--train", "1", "--validation", "1", "--test", "1", "--seed", "3"]) == 0
    assert len(list(Path("w/clips").glob("*.mp4"))) == 3
    assert "train queries" in capsys.readouterr().out


def test_wrong_usage_is_exit_code_2(capsys):
    for arguments in ([], ["party"], ["run"], ["run", "p.yaml", "-p", "seed"], ["world", "w", "--train", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: labkit" in capsys.readouterr().err


def test_the_command_is_quick_and_imports_no_torch():
    code = "import sys, labkit.cli; labkit.cli.main(['results', 'nowhere']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stderr.startswith("labkit: 'nowhere' is not a run: it has no manifest.json")


def test_python_m_labkit_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "labkit", "results", "nowhere"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr[:18]) == (2, "labkit: 'nowhere' ")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("learning_rate", "-1e-4", "learning_rate: -0.0001 is out of range (0, 1]"),
        ("beta", "-.5", "beta: -0.5 is out of range [0, 10]"),
        ("seed", "-3", "seed: -3 is out of range"),
        ("beta", "-inf", "beta: '-inf' is not a finite number"),
    ],
)
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_parameter_may_be_given_a_negative_number(project, capsys, command, name, value, says):
    assert main([command, params_file(project, ""), "-p", name, value]) == 2  # an argparse error before
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "outputs/x/log.txt"), 1, "make room there"),
        (PermissionError(errno.EACCES, "Permission denied", "outputs/x"), 2, "ask its owner"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.mp4/x"), 2, "a part of this path is a file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "choose a shorter name"),
        (OSError(errno.EROFS, "Read-only file system", "outputs"), 2, "a folder that can be written to"),
    ],
)
def test_what_the_file_system_refuses_is_one_line_with_path_and_next_step(monkeypatch, capsys, error, code, says):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("labkit.runs.results.read_results", fail)
    assert main(["results", "outputs/x"]) == code
    told = capsys.readouterr().err
    assert told.startswith(f"labkit: '{error.filename}': {error.strerror}; ") and says in told
    assert told.count("\n") == 1


def test_an_oserror_that_is_no_files_fault_keeps_its_traceback(monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr("labkit.runs.results.read_results", fail)
    with pytest.raises(OSError, match="Connection refused"):
        main(["results", "outputs/x"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "params/p.yaml", "-p", "run", "x" * 300], "File name too long"),
        (["run", "params/p.yaml", "-p", "outputs", "params/p.yaml"], "Not a directory"),
        (["world", "params/p.yaml/w"], "Not a directory"),
        (["results", "x" * 300], "File name too long"),
        (["publish", "x" * 300, "y"], "File name too long"),
    ],
)
def test_paths_that_cannot_be_are_one_line(project, capsys, arguments, says):
    from labkit.runs.run import STAGES

    params_file(project, "{}\n")
    for stage in STAGES:
        (project / "notebooks" / f"{stage}.ipynb").touch()
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("labkit: ") and says in told and told.count("\n") == 1


def test_a_path_behind_an_equals_sign_may_begin_with_home(project, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(project / "home"))
    (project / "home").mkdir()
    (project / "home" / "val.jsonl").write_text('{"qid": "1"}\n')
    assert main(["moments", "~/val.jsonl", "--write=~/ours.jsonl"]) in (0, 2)
    assert "is neither a file" not in capsys.readouterr().err
    assert main(["world", "~/w", "--train", "0"]) == 2
    assert not list(project.rglob("~*"))


@pytest.mark.parametrize("as_json", [False, True])
def test_a_stream_in_ascii_ends_no_command(project, as_json):
    folder = project / "outputs" / "d\u00e9j\u00e0"
    Run.open(DEFAULTS.replace(run="x")).path.rename(folder)
    command = [sys.executable, "-m", "labkit", "status", str(folder), *(["--json"] if as_json else [])]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    if as_json:
        assert json.loads(done.stdout)["run"] == "d\u00e9j\u00e0"
    else:
        assert b"d?j?" in done.stdout


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_a_command_without_a_word(project):
    Run.open(DEFAULTS.replace(run="x"))
    code = "import sys, time; time.sleep(1); from labkit.cli import main; sys.exit(main(['status', 'outputs/x']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def finished_run() -> Run:
    run = Run.open(DEFAULTS.replace(run="x"))
    run.start("01_grpo")
    run.finish("01_grpo", {
        "base": {"greedy": FIGURES},
        "grpo": {"greedy": {**FIGURES, "miou": 0.6851}, "sampled": {**FIGURES, "anchor_rate": 1.0}},
    })  # fmt: skip
    run.start("02_distill")
    run.finish("02_distill", {"harvest": {"harvested": 4800, "dropped: format": 3996, "kept": 804, "yield": 0.1675}})
    return run


def test_results_at_a_glance(project, capsys):
    finished_run()
    assert main(["results", "outputs/x"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("run x\n\ngreedy, 500 queries\n")
    lines = [line.split() for line in text.splitlines()]
    assert "mIoU R1@0.3 R1@0.5 R1@0.7 anchors strict first last answer".split() in lines
    assert "base 57.8 90.0 70.0 25.6 3.4 1.0 30.0 40.0 -".split() in lines
    assert "stage 1 68.5 90.0 70.0 25.6 3.4 1.0 30.0 40.0 -".split() in lines
    assert "harvest, 16.8 % kept" in text
    assert "03_sft not run".split() in lines


def test_true_words_stand_in_the_results_of_the_embedded_world_alone(project, capsys):
    words = {
        "said_color": 500.0, "true_color": 0.981, "chance_color": 0.169, "said_shape": 500.0, "true_shape": 0.817,
        "chance_shape": 0.249, "said_place": 437.0, "true_place": 0.238, "chance_place": 0.244, "said_action": 0.0,
        "low_place": 0.201, "high_place": 0.279, "low_time": None, "high_time": None,
        "true_action": None, "chance_action": None, "said_time": 2.0, "true_time": 1.0, "chance_time": 0.3,
        "distinct_thoughts": 19.0,
    }  # fmt: skip
    for name, more in (("world", words), ("films", {})):
        run = Run.open(DEFAULTS.replace(run=name))
        run.start("01_grpo")
        run.finish("01_grpo", {"base": {"greedy": {**FIGURES, **more}}})
    assert main(["results", "outputs/world"]) == 0
    text = capsys.readouterr().out
    assert "true words, in percent" in text and "dealt out at random" in text
    rows = [line.split() for line in text.splitlines()]
    assert "place, true 23.8 of 437".split() in rows and "interval; chance 20.1 to 27.9; 24.4".split() in rows
    assert "interval; chance -; 30.0".split() in rows, "the time's, of too few videos for an interval"
    assert "distinct thoughts 19 of 500".split() in rows and "action" not in text
    assert main(["results", "outputs/films"]) == 0
    assert "true words" not in capsys.readouterr().out


def test_results_for_a_program(project, capsys):
    finished_run()
    assert main(["results", "outputs/x", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == read_results("outputs/x")
    assert results["models"]["grpo"]["sampled"]["anchor_rate"] == 1.0
    assert results["stages"]["01_grpo"]["state"] == "finished"
    assert results["harvest"]["kept"] == 804


def test_results_of_a_new_run_say_that_nothing_has_run(project, capsys):
    Run.open(DEFAULTS.replace(run="x"))
    assert main(["results", "outputs/x"]) == 0
    assert capsys.readouterr().out.count("not run") == 5


def test_results_of_what_is_no_run_are_refused(project, capsys):
    assert main(["results", "params"]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_results_have_columns_for_options_where_there_are_some(project, capsys):
    run = Run.open(DEFAULTS)
    run.start("01_grpo")
    run.finish("01_grpo", {"base": {"greedy": FIGURES | {"acc_qa": 0.731, "acc_gqa": 0.432}}})
    assert main(["results", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "Acc@GQA" in out and "43.2" in out


@pytest.mark.parametrize(
    "command", ["run p.yaml", "doctor p.yaml", "submit p.yaml", "evaluate m --moments x", "ask a.mp4 sits"]
)
def test_a_protocol_fills_the_parameters_of_every_command_that_shows_a_video(command, capsys):
    command = command.split()
    options = parser().parse_args([*command, "-p", "fps", "1", "--protocol", "timelens"])
    shown = {name: str(value) for name, value in PROTOCOLS["timelens"].items()}
    assert overrides(options) == shown | {"fps": "1"}, (
        "texts, as a command line's: a campaign hands them on to its runs"
    )
    assert overrides(parser().parse_args(command)) == {}
    with pytest.raises(SystemExit):
        main([command[0], "--help"])
    assert ", ".join(PROTOCOLS) in " ".join(capsys.readouterr().out.split()), "the help lists them all"
    assert main([*command, "--protocol", "timelense"]) == 2
    assert "protocol: there is none called 'timelense'; did you mean 'timelens'?" in capsys.readouterr().err


def test_moments_are_written_in_another_form(tmp_path, capsys):
    row = {"qid": "a", "video": "a.mp4", "query": "he sits", "windows": [[2.0, 6.0]], "duration": 20.0}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    own, new = str(tmp_path / "own.jsonl"), str(tmp_path / "new.json")
    assert main(["moments", own, "--write", new, "--form", "timelens-bench"]) == 0
    assert json.loads(Path(new).read_text()) == {
        "a": {"duration": 20.0, "spans": [[2.0, 6.0]], "queries": ["he sits"]}
    }
    for wrong in (["--form", "timelens-bench"], ["--form", "csv", "--write", new]):
        assert main(["moments", own, *wrong]) == 2
        assert capsys.readouterr().err.startswith("labkit: form = ")


def test_moments_counts_lists_and_writes(tmp_path, capsys):
    rows = [{"vid": "a", "qid": 1, "query": "he sits", "duration": 20.0, "relevant_windows": [[2.0, 6.0]]},
            {"vid": "a", "qid": 2, "query": " ", "duration": 20.0, "relevant_windows": [[2.0, 6.0]]}]  # fmt: skip
    file = tmp_path / "val.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["moments", str(file), "--list", "--write", str(tmp_path / "ours.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "1 usable moments of 2 rows" in out
    assert "line 2: 2: empty query" in out
    assert [moment.qid for moment in read_moments(tmp_path / "ours.jsonl")] == ["1"]
    assert main(["moments", str(file), "--strict"]) == 2
    assert "val.jsonl, line 2" in capsys.readouterr().err


def test_score_prints_a_card_and_compares(tmp_path, capsys):
    rows = [
        {"vid": "a", "qid": n, "query": "he sits", "duration": 20.0, "relevant_windows": [[2.0, 6.0]]} for n in (1, 2)
    ]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.jsonl").write_text('{"qid": 1, "text": "<answer>2 to 6</answer>"}\n')
    (tmp_path / "q.jsonl").write_text('{"qid": 2, "windows": [[2.0, 6.0], [8.0, 9.0]]}\n')
    predictions, moments = str(tmp_path / "p.jsonl"), ["--moments", str(tmp_path / "val.jsonl")]
    assert main(["score", predictions, *moments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"]["miou"] == 0.5 and told["protocol"]["missing"] == 1
    assert main(["score", predictions, *moments, "--against", str(tmp_path / "q.jsonl")]) == 0
    assert "1, the second on 1" in capsys.readouterr().out
    assert main(["score", predictions, *moments, "--rules", "all"]) == 0
    assert "timelens" in capsys.readouterr().out
    assert main(["score", predictions, *moments, "--rules", "timer"]) == 2
    assert "did you mean 'timer1'" in capsys.readouterr().err
    Path(predictions).write_text('{"qid": "stranger", "text": "<answer>1 to 2</answer>"}\n')
    assert main(["score", predictions, *moments]) == 2
    assert "predictions are on 'stranger', moments are called" in capsys.readouterr().err


def test_doctor_prints_json_alone_whatever_own_code_prints(project, capsys):
    (project / "mine.py").write_text("def extra(chain, moment, spec):\n    print('looking')\n    return 0.0\n")
    file = params_file(project, "rewards: {'mine.py:extra': 0.5}\nworld_train: 2\nworld_test: 2\n")
    main(["doctor", file, "--quick", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["findings"] and "looking" in said.err


def test_doctor_ends_with_1_when_a_run_would_fail(project, capsys):
    (project / "data").mkdir()
    file = params_file(project, "data: data\n")
    assert main(["doctor", file, "--quick"]) == 1
    assert "train.jsonl" in capsys.readouterr().out


def test_report_and_publish_name_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert main(["publish", str(tmp_path), str(tmp_path / "copy")]) == 2
    assert "Traceback" not in capsys.readouterr().err
