"""The tracer of tests/tools/walks.py finds the files whose functions are called, and no others."""

import pytest

from tests.tools import walks

PACKAGE = {
    "__init__.py": "",
    "__main__.py": """
        import subprocess, sys, threading
        from recray import called, config, decorated, errors, idle, threads
        called.work()
        config.read()
        errors.explain()
        thread = threading.Thread(target=threads.work)
        thread.start()
        thread.join()
        subprocess.run([sys.executable, "-c", "from recray import child; child.work()"], check=True)
        """,
    "called.py": "def work(): return (lambda: 1)()",
    "child.py": "def work(): pass",
    "config.py": "def read(): pass",
    "decorated.py": "def decorate(function): return function\n@decorate\ndef work(): pass",
    "errors.py": "def explain(): pass",
    "idle.py": "class Idle:\n    def work(self): pass",
    "threads.py": "def work(): pass",
}


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A package called recray, whose files do one thing each."""
    folder = tmp_path / "recray"
    folder.mkdir()
    for name, text in PACKAGE.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (folder / name).write_text("\n".join(lines))
    monkeypatch.setattr(walks, "package_folder", lambda: folder)
    return folder


def test_files_called_in_threads_and_child_processes_count_and_imports_do_not(
    small_package, tmp_path
):
    found = walks.traced(tmp_path, "run")
    assert found == {"called.py", "child.py", "threads.py"}


def test_a_command_that_fails_ends_the_count(small_package, tmp_path):
    (small_package / "__main__.py").write_text("raise SystemExit('broken')")
    with pytest.raises(SystemExit, match="broken"):
        walks.traced(tmp_path, "run")


def test_only_what_was_logged_in_the_window_counts(tmp_path, small_package):
    trace = walks.Trace(tmp_path / "trace", gap_s=0.001)
    trace.log.write_text("1.0 a.py\n2.0 b.py\n2.5 config/keys.py\n2.6 data/schema.py\n3.0 a.py\n")
    assert trace.files(1.5, 2.9) == {"b.py"}
    assert trace.files() == {"a.py", "b.py"}
