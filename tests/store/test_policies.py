"""Policy folders appear whole, pointers move only to what exists, every move is on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from otel_lightning.app.errors import LightningError
from otel_lightning.store.policies import Policies, file_sha256, tokenizer_sha256


def save(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")


def test_versions_count_up_and_carry_the_hash_of_every_file(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    first, second = (
        policies.publish(save, {"step": 1}),
        policies.publish(save, {"step": 2, "parent": "v0001"}),
    )
    assert policies.versions() == ["v0001", "v0002"] == [first.version, second.version]
    info = json.loads((second.folder / "policy.json").read_text())
    assert info["files"]["model.safetensors"] == file_sha256(second.folder / "model.safetensors")
    assert (info["step"], info["parent"], info["version"]) == (2, "v0001", "v0002")


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")

    def fail(folder: Path) -> None:
        save(folder)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        policies.publish(fail, {})
    assert policies.versions() == []
    assert list((tmp_path / "policies").iterdir()) == []


def test_pointers_move_with_a_reason_and_only_to_what_exists(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    with pytest.raises(LightningError, match="no policy is published yet"):
        policies.point("current", "v0001", who="test", why="nothing there")
    policies.publish(save, {})
    policies.publish(save, {})
    policies.point("current", "v0001", who="ann", why="first")
    policies.point("current", "v0002", who="ann", why="better")
    assert policies.get("current").version == "v0002"
    assert [(m["pointer"], m["from"], m["to"], m["who"], m["why"]) for m in policies.history()] == [
        ("current", None, "v0001", "ann", "first"),
        ("current", "v0001", "v0002", "ann", "better"),
    ]
    with pytest.raises(LightningError, match="did you mean v0002"):
        policies.get("v0022")


def test_a_torn_history_line_hides_no_other(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    policies.publish(save, {})
    policies.point("current", "v0001", who="ann", why="first")
    with open(policies.folder / "history.jsonl", "a") as file:
        file.write('{"unix_nano": 1, "poin')
    policies.point("current", "v0001", who="ann", why="again")
    assert [move["why"] for move in policies.history()] == ["first", "again"]


def test_what_a_pointer_names_cannot_be_removed(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    policies.publish(save, {})
    policies.publish(save, {})
    policies.point("current", "v0001", who="ann", why="first")
    with pytest.raises(LightningError, match="v0001 is current"):
        policies.remove("v0001")
    policies.remove("v0002")
    assert policies.versions() == ["v0001"]


def test_a_gate_judges_once(tmp_path: Path) -> None:
    policies = Policies(tmp_path / "policies")
    policies.publish(save, {})
    policies.write_gate("v0001", {"verdict": "promote"})
    with pytest.raises(LightningError, match="judges a version once"):
        policies.write_gate("v0001", {"verdict": "refuse"})
    assert policies.get("v0001").gate == {"verdict": "promote"}


def test_the_chat_template_is_part_of_a_tokenizers_identity(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    plain = tokenizer_sha256(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert tokenizer_sha256(tmp_path) != plain
    with pytest.raises(LightningError, match=r"tokenizer\.json"):
        tokenizer_sha256(tmp_path / "missing")
