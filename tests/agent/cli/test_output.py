import json
import os
import pty
import subprocess
import sys
import termios

import click
import pytest
from click.testing import CliRunner

from agent.cli import output


@click.command()
@output.output_option("table", "yaml", "json")
@click.option("--rows", type=int, default=1)
def things(output: str, rows: int) -> None:
    from agent.cli.output import show

    data = [{"name": f"n{i}", "uri": "spiffe://shop.example/ns/shop/sa/web[1]"} for i in range(rows)]
    show(output, data, ["name", "uri"], [(d["name"], d["uri"]) for d in data], empty="no things")


@pytest.fixture(autouse=True)
def _piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_table_keeps_brackets_and_trailing_space_out() -> None:
    result = CliRunner().invoke(things)
    assert result.stdout == "NAME  URI\nn0    spiffe://shop.example/ns/shop/sa/web[1]\n"


def test_what_a_node_reports_is_no_order_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["why"], [["\x1b]52;c;aGk=\x07 a\x9b2Jb\r"]])
    output.warn("\x1b[2J")
    said = capsys.readouterr()
    assert said.out == "WHY\n\\x1b]52;c;aGk=\\x07 a\\x9b2Jb\\x0d\n"
    assert said.err == "culvert: warning: \\x1b[2J\n"


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    result = CliRunner().invoke(things, env={"COLUMNS": "30"})
    assert max(map(len, result.stdout.splitlines())) <= 30
    assert "".join(result.stdout.split()[2:]).replace("n0", "") == "spiffe://shop.example/ns/shop/sa/web[1]"


def test_for_programs() -> None:
    assert json.loads(CliRunner().invoke(things, ["-o", "json"]).stdout)[0]["name"] == "n0"
    assert CliRunner().invoke(things, ["-o", "yaml"]).stdout.startswith("- name: n0\n")


def test_nothing_to_show_is_said_on_stderr() -> None:
    result = CliRunner().invoke(things, ["--rows", "0"])
    assert (result.stdout, result.stderr) == ("", "no things\n")


def test_refused_has_exit_code_1() -> None:
    @click.command()
    def refuse() -> None:
        raise output.Refused("node web-9: there is none; see culvert get nodes")

    result = CliRunner().invoke(refuse)
    assert result.exit_code == 1
    assert result.stderr == "culvert: node web-9: there is none; see culvert get nodes\n"


SOCKET = "/nonexistent/a-directory-with-a-name/that-is-longer-than-the-terminal/agent.sock"
STATUS = [sys.executable, "-m", "agent.cli", "status", "--socket", SOCKET]


def test_an_error_fits_the_terminal_and_breaks_no_word() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run(STATUS, stdout=subprocess.PIPE, stderr=theirs, timeout=30)
        os.close(theirs)
        lines = screen.read(4096).decode().splitlines()
    assert (done.returncode, done.stdout) == (1, b"")
    assert lines[0].startswith("culvert: no agent answers")
    assert len(lines) > 2
    assert all(len(line) <= 50 or SOCKET in line for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == _unseen()


@pytest.mark.parametrize(
    "words",
    [
        ["ca", "revoke", "everything", "shop/web"],
        ["label", "workload", "shop/web", "neither-a-value-nor-a-removal"],
        ["--an-option-that-nobody-has-ever-heard-of", "status"],
    ],
)
def test_so_does_what_click_says_of_a_wrong_command_line(words: list[str]) -> None:
    command = [sys.executable, "-m", "agent.cli", *words]
    unseen = subprocess.run(command, capture_output=True, timeout=30)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 50))
    with os.fdopen(ours, "rb", buffering=0) as screen:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=30)
        os.close(theirs)
        lines = screen.read(4096).decode().splitlines()
    assert (done.returncode, done.stdout) == (unseen.returncode, unseen.stdout) == (2, b"")
    begins = next(number for number, line in enumerate(lines) if line.startswith("Error: "))
    assert len(lines[begins:]) > 1
    assert all(len(line) <= 50 for line in lines[begins:])
    assert " ".join(line.strip() for line in lines[begins:]) == unseen.stderr.decode().splitlines()[-1]


def _unseen() -> str:
    """The same where no terminal is."""
    (line,) = subprocess.run(STATUS, capture_output=True, timeout=30).stderr.decode().splitlines()
    return line


def test_lines_that_fit_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((20, 24)))
    assert output._fitted("a table:\n  a    1\n  b    2") == "a table:\n  a    1\n  b    2"
    assert output._fitted("one two three four five\n  b    2") == "one two three four\n  five\n  b    2"


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (999, "999"), (1434, "1.4K"), (24 * 2**20, "24M")])
def test_sizes(count: int, shown: str) -> None:
    assert output.size(count) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0s"), (5, "5s"), (119, "119s"), (120, "2m"), (7200, "2h")])
def test_lengths_of_time(seconds: float, shown: str) -> None:
    assert output.ago(seconds) == shown
