"""Digests, and files that are written whole: `pytest tests/unit/test_files.py`."""

from __future__ import annotations

import hashlib
import json

import pytest

from attune_weights.files import sha256_of, whole_file, write_json


def test_the_digest_is_the_files(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()


def test_a_file_changes_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("before")
    with whole_file(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_what_goes_wrong_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"of": "a finished run"})
    with pytest.raises(TypeError):
        write_json(path, {"of": object()})
    with pytest.raises(UnicodeEncodeError), whole_file(path) as partial:
        partial.write_text("half a character: \ud800", encoding="utf-8")
    assert json.loads(path.read_text()) == {"of": "a finished run"}
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_for_people_too(tmp_path):
    write_json(tmp_path / "record.json", {"a": [1]})
    assert (tmp_path / "record.json").read_text() == '{\n "a": [\n  1\n ]\n}\n'
