"""What never changes, read from the source itself: plugins stay outside, and nothing executes what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

import icll_zoo

PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
CORE = sorted((ROOT / "icll_zoo").rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Every imported module, and the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def own_package(path: Path) -> str:
    """The import package of a plugin's file."""
    return next(part for part in path.relative_to(ROOT / "plugins").parts if part.startswith("icll_zoo_"))


def test_plugins_use_only_what_the_core_exports_and_no_other_plugin() -> None:
    assert len(PLUGINS) > 10
    for path in PLUGINS:
        own = own_package(path) if "tests" not in path.parts else None
        for module, names in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module == "icll_zoo":
                assert set(names) <= set(icll_zoo.__all__), f"{path} takes {names} from the core"
            elif module == "icll_zoo.testing":
                assert own is None, f"{path} needs the test kit to run"
            elif module.partition(".")[0].startswith("icll_zoo"):
                assert module.partition(".")[0] == own, f"{path} imports {module}"


def test_the_core_knows_no_plugin() -> None:
    for path in CORE:
        for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            assert not module.startswith("icll_zoo_"), f"{path} imports {module}"


def test_nothing_executes_what_it_reads() -> None:
    found = set()
    for path in [*CORE, *PLUGINS]:
        where = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {(where, module) for module, _ in imports(tree) if module.partition(".")[0] in FORBIDDEN_MODULES}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS or called in ("torch.load", "torch.save", "os.system", "yaml.load"):
                found.add((where, called))
            if any(keyword.arg in ("trust_remote_code", "shell") for keyword in node.keywords):
                found.add((where, f"{called} with trust_remote_code or shell"))
    assert not found
