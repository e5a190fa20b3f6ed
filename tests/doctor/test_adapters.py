"""What the doctor says of LoRA and of 4 bits, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit.doctor.adapters import add_adapter_report
from labkit.doctor.environment import find_model
from labkit.doctor.findings import DoctorReport
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.adapters import add_lora
from labkit.policy.families import FAMILIES
from labkit.policy.model import Policy, ignore_renames, save_policy
from tests import tiny


def examined(model: Path, **values: Any) -> DoctorReport:
    found, _ = find_model(str(model), Path("/"))
    assert found is not None
    report = DoctorReport("")
    params = Params(**{"lora_rank": found.lora_rank or 4, **values})
    add_adapter_report(report, params, found, planned=False)
    return report


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_told_is_what_is_trained(family: str, tmp_path: Path) -> None:
    made = tiny.policy(family=family)
    save_policy(made, tmp_path / "base")
    report = examined(tmp_path / "base")
    (table,) = report.tables
    assert report.findings == []
    whole = sum(weight.numel() for weight in made.model.parameters())
    with ignore_renames():
        model = add_lora(made.model, 4, 8, 0)
    names = [name for name, part in model.named_modules() if hasattr(part, "lora_A")]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad and weight.ndim)
    added = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    assert sum(int(row[1]) for row in table.rows) == len(names) and 0 < added <= trained
    assert {row[0] for row in table.rows} == {name.rpartition(".")[2] for name in names}
    assert f"{added:,} are trained, {100 * added / whole:.2g} %" in table.note
    assert ("stay as they are" in table.note) == (family in ("qwen2_5_vl", "smolvlm", "internvl"))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("q_proj", "v_prj"),
            "'v_prj' is no linear layer of the language model (nearest: v_proj); it has down_proj, ",
        ),
        (("qkv",), "'qkv' is no linear layer of the language model, only of what is frozen beside it; it has "),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_before_anything_is_loaded(
    targets: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    made = tiny.policy()
    save_policy(made, tmp_path / "base")
    report = examined(tmp_path / "base", lora_targets=targets)
    ((level, kind, _, told, _),) = report.findings
    assert (level, kind, report.tables) == ("error", "lora_targets", []) and told.startswith(message)
    with pytest.raises(LabError, match="lora_targets: '"):
        add_lora(made.model, 4, 8, 0, targets)


@pytest.mark.parametrize(
    ("targets", "level", "words"),
    [
        (".*(qkv|q_proj)", "warning", "is on 2 layers beside the language model (model.visual.blocks.0.attn.qkv), which"),
        (".*language_model.*q_proj", None, ""),
    ],
)  # fmt: skip
def test_an_adapter_of_others_that_is_on_the_vision_tower_is_told(
    targets: str, level: str | None, words: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    made = tiny.policy()
    save_policy(made, tmp_path / "base")
    with ignore_renames():
        model = get_peft_model(made.model, LoraConfig(r=2, target_modules=targets))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_policy(Policy(model, made.tokenizer, "tiny"), tmp_path / "adapter")
    report = examined(tmp_path / "adapter")
    assert [finding.level for finding in report.findings] == [level] * (level is not None)
    if level:
        assert words in report.findings[0].message and "lora_rank" in report.findings[0].next_step
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(file.read_text().replace("q_proj", "no_proj").replace("qkv", "no"))
    assert "names no layer that its base has" in examined(tmp_path / "adapter").findings[0].message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 0}, "weights in nf4 are not trained themselves; set lora_rank"),
        ({}, "nf4 needs bitsandbytes, which is not installed; pip install 'labkit[qlora]'"),
    ],
)
def test_4_bits_that_a_run_would_refuse_are_an_error(
    values: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.policy.adapters.find_spec", lambda name: None)
    save_policy(tiny.policy(), tmp_path / "base")
    report = examined(tmp_path / "base", quantization="nf4", **values)
    assert report.findings[0].level == "error" and report.findings[0].message.startswith(message)
