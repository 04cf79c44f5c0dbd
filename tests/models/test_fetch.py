"""What fetch does with the user's own files, and with errors of the disk; see also test_fetch_wheel.py, _hub.py."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamachat.errors import CatalogError
from llamachat.models.catalog import ModelEntry
from llamachat.models.fetch import disk_usage, fetch, locate, remove, silent, verified
from llamachat.models.sources import LocalPath, WheelSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_model_is_used_as_it_is_and_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a").write_bytes(b"12345")
    (folder / "link").symlink_to(folder / "a")
    entry = ModelEntry("mine", LocalPath(folder))
    assert locate(entry) == fetch(entry) == fetch(entry, offline=True) == folder
    assert disk_usage(entry) == 5 and disk_usage(ModelEntry("file", LocalPath(folder / "a"))) == 5
    with pytest.raises(CatalogError, match="is your own; it was not deleted"):
        remove(entry)
    assert (folder / "a").exists()


def test_a_local_model_that_is_gone_is_an_error(tmp_path: Path) -> None:
    entry = ModelEntry("gone", LocalPath(tmp_path / "gone"))
    assert locate(entry) is None
    with pytest.raises(CatalogError, match=r"gone is not there; gone cannot be loaded; correct your models\.toml"):
        fetch(entry)


def test_a_cache_that_cannot_be_written_is_an_error(cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    entry = ModelEntry("tiny", WheelSource("tiny-model", "1.0", 1, "0" * 64, "tiny_model/tiny.gguf", 1, "0" * 64))
    with pytest.raises(CatalogError, match=r"tiny could not be stored: .*; it was not fetched; make room or correct"):
        fetch(entry)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert not verified.is_known(file, sha256)
    assert not verified.is_intact(file, "0" * 64, silent) and verified.is_intact(file, sha256, silent)
    assert verified.is_known(file, sha256) and not verified.is_known(file, "0" * 64)
    file.write_bytes(b"hell0")
    assert not verified.is_known(file, sha256) and not verified.is_intact(file, sha256, silent)


def test_git_digest_equals_gits_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"what is up, doc?")
    assert verified.digest(tmp_path / "file", silent, git=True) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"


def test_finding_a_model_loads_nothing_heavy() -> None:
    code = """import sys, json
from llamachat.models import catalog, fetch, fit
entry = catalog.resolve(None); fetch.locate(entry); fit.entry_plan(entry)
print(json.dumps(sorted(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    heavy = {"torch", "numpy", "huggingface_hub", "httpx2", "rich", "typer", "filelock"}
    assert not heavy & set(json.loads(done.stdout))


def test_a_cache_that_cannot_be_written_costs_no_more_than_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "blocked").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert verified.is_intact(file, hashlib.sha256(b"abc").hexdigest(), silent)
