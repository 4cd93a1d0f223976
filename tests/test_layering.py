"""Imports run one way, harness -> devtmpfs -> fsimpl -> vfs, and only harness reaches outside."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("vfs", "fsimpl", "devtmpfs", "harness")  # from the bottom up
OUTWARD = {"socket", "socketserver", "mmap", "subprocess", "multiprocessing", "asyncio"}
THIRD_PARTY = {
    "vfs": {"sortedcontainers"},
    "fsimpl": {"sortedcontainers"},
    "devtmpfs": {"sortedcontainers"},
    "harness": {"sortedcontainers", "rich", "prompt_toolkit"},
}
# The generators as strategies, which only tests import.
ALLOWED = {"harness/testbed/strategies.py": {"hypothesis"}}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import in ``path``, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, (node.module or "").split(".")[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    below = {*LAYERS[: LAYERS.index(layer) + 1], *THIRD_PARTY[layer]}
    standard = sys.stdlib_module_names - (set() if layer == "harness" else OUTWARD)
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    wrong = [
        f"{name}:{line} imports {package}"
        for path in files
        for name in [str(path.relative_to(ROOT))]
        for line, package in imports(path)
        if package not in below | standard | ALLOWED.get(name, set())
    ]
    assert not wrong
