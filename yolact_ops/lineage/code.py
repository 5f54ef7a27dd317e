"""Code versions: for every pipeline step, a hash of its code and of the pinned libraries.

It is an input of each Kubeflow task, so a cached task runs again only when its own code changes. The container image
records the versions of its code (``code-versions.json`` next to the packages), and each task compares them.

Standard library only, and no other module of the project: ``python3 -m yolact_ops.lineage.code`` works before anything
is installed.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the project's packages: the checkout, or ``site-packages`` if they are installed."""
PACKAGES = ("yolact", "yolact_ops", "components")
"""Packages that a step may import; import rules forbid the others."""
LOCK = "requirements.lock"
RECORD = "code-versions.json"
"""File in the container image, next to the packages: versions by step, computed when it was built."""
TEMPLATE = "*.j2"
"""Suffixes of package data files that are read at run time."""
LENGTH = 16
"""Hexadecimal digits of a version."""


def find_steps(root: Path = ROOT) -> list[str]:
    """Names of all steps: folders of ``components`` with a ``component.py``, sorted."""
    return sorted(path.parent.name for path in (root / "components").glob("*/component.py"))


def code_files(root: Path, start: str) -> list[str]:
    """The project's files that a module uses.

    These are the modules that it imports, directly or indirectly, also inside functions but not under
    ``if TYPE_CHECKING``; the ``__init__.py`` of all their packages; all modules next to one that looks names up at run
    time (``pkgutil.resolve_name``: backbones); and the templates next to any of them.

    Args:
        root: folder of the packages.
        start: the module's file relative to ``root``, as ``components/train/component.py``.

    Returns:
        POSIX paths relative to ``root``, sorted, including ``start``.
    """
    modules: set[Path] = set()
    waiting = [root / start]
    while waiting:
        file = waiting.pop()
        if file not in modules:
            modules.add(file)
            for name in _imports(file.read_bytes(), file.relative_to(root).parent.parts):
                waiting += _module_files(root, name)
    templates = {template for folder in {file.parent for file in modules} for template in folder.glob(TEMPLATE)}
    return sorted(file.relative_to(root).as_posix() for file in modules | templates)


def code_version(root: Path, step: str, lock: Path | None = None) -> str:
    """Hash of a step's code and of the lock file: `LENGTH` hexadecimal digits of a SHA-256.

    Equal on every machine: line endings and the order of files do not matter.

    Args:
        root: folder of the packages.
        step: folder in ``components``.
        lock: pinned libraries; ``requirements.lock`` in ``root`` if None.
    """
    files = {name: root / name for name in code_files(root, f"components/{step}/component.py")}
    files[LOCK] = lock or root / LOCK
    digest = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:LENGTH]


def code_versions(root: Path = ROOT, lock: Path | None = None) -> dict[str, str]:
    """`code_version` by step, of all steps."""
    return {step: code_version(root, step, lock) for step in find_steps(root)}


def installed_versions(root: Path = ROOT) -> dict[str, str]:
    """Versions of the running code: those recorded in the container image, or computed from the checkout."""
    return _recorded(root) if is_recorded(root) else code_versions(root)


def installed_version(step: str, root: Path = ROOT) -> str:
    """`installed_versions` of one step; ``none`` if the container image has no such step."""
    return _recorded(root).get(step, "none") if is_recorded(root) else code_version(root, step)


def is_recorded(root: Path = ROOT) -> bool:
    """Whether the code is in a container image that recorded its versions."""
    return (root / RECORD).is_file()


def versions_to_text(versions: dict[str, str]) -> str:
    """All versions in one line, for the container image's label: ``evaluate=0123456789abcdef fetch=...``."""
    return " ".join(f"{step}={version}" for step, version in sorted(versions.items()))


def versions_from_text(text: str) -> dict[str, str]:
    """Parse the text of `versions_to_text`."""
    return dict(pair.split("=", 1) for pair in text.split())


def _recorded(root: Path) -> dict[str, str]:
    return {str(step): str(version) for step, version in json.loads((root / RECORD).read_text("utf-8")).items()}


@functools.cache
def _imports(source: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute dotted names that a module of ``package`` imports; of ``from a import b`` both ``a`` and ``a.b``.

    ``package.*`` if it looks names up at run time.
    """
    found: list[str] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                base = ".".join([*above, *([module] if module else [])])
                found += [base, *(f"{base}.{name.name}" for name in names)]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                found.append(name)
            case ast.Call(func=ast.Attribute(attr="resolve_name")):
                found.append(".".join([*package, "*"]))
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), orelse=instead):
                waiting += instead
                continue
        waiting += ast.iter_child_nodes(node)
    return tuple(found)


def _module_files(root: Path, name: str) -> list[Path]:
    """Files that are run by importing a dotted name: the ``__init__.py`` of each package, then the module.

    The name ``package.*`` stands for all modules of a package.
    """
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    if parts[-1] == "*":
        return sorted(root.joinpath(*parts[:-1]).glob("*.py"))
    places = [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    candidates = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    return [file for file in candidates if file.is_file()]


def main() -> int:
    """Print the versions of all steps in one line; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python3 -m yolact_ops.lineage.code", description=main.__doc__)
    parser.add_argument("--lock", type=Path, help="lock file, if not requirements.lock next to the packages")
    parser.add_argument("--record", action="store_true", help=f"also write {RECORD} next to the packages")
    parser.add_argument("--expect", default="", metavar="VERSIONS", help="fail if the versions differ from these")
    given = parser.parse_args()
    versions = code_versions(ROOT, given.lock)
    if given.expect and versions_from_text(given.expect) != versions:
        print(
            f"The code versions passed to the build are not those of its files:\n"
            f"  given    {given.expect}\n  computed {versions_to_text(versions)}\n"
            "`make image` passes them; did files change during the build, or does .dockerignore exclude some?",
            file=sys.stderr,
        )
        return 1
    if given.record:
        (ROOT / RECORD).write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    print(versions_to_text(versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
