import pytest
from click.testing import CliRunner

from agent.cli import main

OURS = """
apply get label delete schema
config config,show
central central,init central,run central,status
central,token central,token,create central,operator central,operator,create central,operator,renew
agent agent,join agent,run agent,leave
capture capture,status capture,plan capture,off capture,on
status workloads certificates connections tunnels
"""


@pytest.mark.parametrize("command", OURS.split())
def test_help_has_an_example_and_fits(command: str) -> None:
    words = command.split(",")
    done = CliRunner().invoke(main, [*words, "--help"], prog_name="culvert", terminal_width=80)
    assert done.exit_code == 0, done.output
    assert f"  culvert {' '.join(words)}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
