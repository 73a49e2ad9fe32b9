"""The README's commands, in its order, in an empty folder."""

import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.ray.several_nodes import free_ports

README = Path(__file__).parents[2] / "README.md"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def commands() -> list[list[str]]:
    """The lines of every block that is marked as one to run, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while True:
        assert service.poll() is None, "the service has ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < end, "the service does not answer"
            time.sleep(0.5)


def test_the_first_command_prints_lines_of_recray_alone(tmp_path):
    port = str(free_ports(1)[0])
    words = [sys.executable, "-m", "recray", "up", "sample", "--once", "--port", port]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("[ ")] == []


def test_every_command_of_the_readme_does_what_it_says(tmp_path):
    port = str(free_ports(1)[0])
    service = None
    try:
        for words in commands():
            words = [word.replace("8000", port) for word in words]
            if words[0] == "recray":
                words = [sys.executable, "-m", *words]
            if "serve" in words:
                service = subprocess.Popen(words, cwd=tmp_path)
                wait_until_ready(f"http://127.0.0.1:{port}", service)
                continue
            words = ["curl", "--fail", *words[1:]] if words[0] == "curl" else words
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    finally:
        if service is not None:
            service.send_signal(signal.SIGTERM)
            service.wait(60)
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert (tmp_path / "lists" / "manifest.json").is_file()
    assert (tmp_path / "sweeps" / "a" / "best.yaml").is_file()
