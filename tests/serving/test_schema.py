"""schemathesis against `yolact serve`: requests made of the OpenAPI schema, and answers checked with it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.interop.packages import needed
from tests.serving.conftest import command

needed("schemathesis")

pytestmark = pytest.mark.interop

TOKEN = "let-me-in"
EXAMPLES = 50
"""Random requests of each operation; the schema's examples and limits come on top."""

SETTINGS = """
[checks]
# As schemathesis has them, and 413: too many images.
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]

# The schema's examples must be accepted. Random requests that fit it may be refused: no schema says which bytes are an
# image, and which classes a model knows.
[phases.coverage]
checks.positive_data_acceptance.enabled = false
[phases.fuzzing]
checks.positive_data_acceptance.enabled = false
[phases.stateful]
checks.positive_data_acceptance.enabled = false
"""


@pytest.fixture(scope="module")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Every operation can succeed: there are a token, feedback and a candidate."""
    feedback = str(tmp_path_factory.mktemp("feedback"))
    options = ("--candidate", str(model_dir), "--feedback", feedback)
    with command(model_dir, *options, YOLACT_SERVE_TOKEN=TOKEN) as (_, url):
        yield url


def test_answers_are_those_of_the_schema(address: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--max-examples", str(EXAMPLES), "--generation-deterministic", "--request-timeout", "60", "--no-color"]
    login = ["--header", f"Authorization: Bearer {TOKEN}"]
    arguments = [program, "run", f"{address}/openapi.json", *options, *login]
    done = subprocess.run(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    paths = requests.get(f"{address}/openapi.json", timeout=10).json()["paths"]
    operations = sum(len(methods) for methods in paths.values())
    assert f"Tested: {operations}\n" in done.stdout
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}\n" in done.stdout
    [made] = re.findall(r"(\d+) generated", done.stdout)
    assert int(made) > operations * EXAMPLES
