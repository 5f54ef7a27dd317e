"""A private git repository over HTTP: a real one, served by git's own program behind a password."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from yolact_ops.sources.access import git_access
from yolact_ops.sources.dvc_path import DvcPath
from yolact_ops.transfer.download import DownloadError

USER, PASSWORD = "reader", "pass word'$(id)"


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


class GitServer(ThreadingHTTPServer):
    """Repositories below ``root`` over HTTP, for one user."""

    daemon_threads = True
    root: Path
    program: Path
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: GitServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        given = self.headers.get("Authorization", "")
        self.server.asked.append(given)
        if given != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": USER,
        }
        done = subprocess.run([str(self.server.program)], input=body, capture_output=True, env=environment, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    program = Path(git("--exec-path")) / "git-http-backend"
    if not program.is_file():
        pytest.skip("git has no git-http-backend here")
    work = tmp_path / "work"
    (work / "images").mkdir(parents=True)
    (work / "images/one.txt").write_text("first")
    git("-C", str(work), "init", "-q")
    git("-C", str(work), "add", "-A")
    git("-C", str(work), "commit", "-qm", "one")
    git("-C", str(work), "tag", "v1")
    git("clone", "-q", "--bare", str(work), str(tmp_path / "served/data.git"))
    http = GitServer(("127.0.0.1", 0), Handler)
    http.root, http.program, http.asked = tmp_path / "served", program, []
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()


def source(server: GitServer) -> DvcPath:
    return DvcPath(f"http://127.0.0.1:{server.server_address[1]}/data.git", "images", "v1")


def test_the_environments_password_gives_git_and_dvc_access_to_the_repository(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_USERNAME", USER)
    monkeypatch.setenv("GIT_PASSWORD", PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = source(server).fetch(tmp_path / "downloads")
    assert (found / "one.txt").read_text() == "first"
    assert source(server).pinned().endswith("@" + git("-C", str(tmp_path / "work"), "rev-parse", "v1"))
    assert "GIT_CONFIG_GLOBAL" not in os.environ
    assert not any(PASSWORD in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


def test_without_a_password_or_with_a_wrong_one_the_message_says_so(
    server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GIT_PASSWORD", raising=False)
    with pytest.raises(DownloadError, match="git cannot read the repository"):
        source(server).pinned()
    assert set(server.asked) == {""}
    monkeypatch.setenv("GIT_USERNAME", USER)
    monkeypatch.setenv("GIT_PASSWORD", "wrong-password")
    with pytest.raises(DownloadError, match="git cannot read the repository") as caught:
        source(server).pinned()
    assert "wrong-password" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_the_password_is_sent_only_to_the_repositorys_server_and_the_users_configuration_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_USERNAME", USER)
    monkeypatch.setenv("GIT_PASSWORD", PASSWORD)
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = somebody\n")

    def helper(url: str) -> str:
        command = ["git", "config", "--get-urlmatch", "credential.helper", url]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    with git_access("https://git.example/data.git"):
        assert "GIT_PASSWORD" in helper("https://git.example/data.git")
        assert helper("https://other.example/data.git") == helper("http://git.example/data.git") == ""
        command = ["git", "config", "user.name"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "somebody\n"
    with git_access("git@git.example:data.git"):
        assert "GIT_CONFIG_GLOBAL" not in os.environ
