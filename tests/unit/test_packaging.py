"""What is installed: every package and data file of the tree, and nothing else."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# The links in `cnnc/` to the rooms are for tools; the rooms are packaged from where they are.
SKIP = shutil.ignore_patterns("__pycache__", ".*", "build", "dist", "*.egg-info", "tests", "docs")


def settings() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)["tool"]["setuptools"]
    return found


def folders() -> dict[str, Path]:
    """Package name -> folder, for every folder with Python files in it."""
    found = {}
    for package, name in settings()["package-dir"].items():
        for path in (ROOT / name).rglob("*.py"):  # does not follow links
            inside = path.parent.relative_to(ROOT / name).parts
            found[".".join((package, *inside))] = path.parent
    return found


def installed_files() -> set[str]:
    """What the wheel must hold, its metadata apart."""
    wanted = set()
    for package, folder in folders().items():
        patterns = ["*.py", *settings()["package-data"].get(package, ())]
        for path in folder.iterdir():
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns):
                wanted.add(f"{package.replace('.', '/')}/{path.name}")
    return wanted


def test_every_package_is_listed() -> None:
    assert sorted(settings()["packages"]) == sorted(folders())


def test_every_package_has_an_init() -> None:
    assert not [name for name, path in folders().items() if not (path / "__init__.py").exists()]


def test_every_data_file_is_listed() -> None:
    listed = installed_files()
    forgotten = [
        f"{package}: {path.name}"
        for package, folder in folders().items()
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix != ".pyc"
        and f"{package.replace('.', '/')}/{path.name}" not in listed
    ]
    assert not forgotten


def test_links_lead_to_the_rooms() -> None:
    for package, name in settings()["package-dir"].items():
        if package != "cnnc":
            link = ROOT / "cnnc" / package.removeprefix("cnnc.")
            assert link.resolve() == (ROOT / name).resolve()


def can_build() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not can_build(), reason="building a wheel needs setuptools >= 77")
def test_wheel_holds_the_tree(tmp_path: Path) -> None:
    copy = tmp_path / "source"  # the build leaves files behind, and would take up stale ones
    shutil.copytree(ROOT, copy, symlinks=True, ignore=SKIP)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-index", "-w", str(tmp_path)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("cnnc-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == installed_files()
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)
