"""Who has a socket."""

import os
import socket
import subprocess
import sys

from agent.owners import owners, process_name


def test_a_socket_leads_to_its_process() -> None:
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        assert owners([inode])[inode].pid == os.getpid()
        assert str(owners([inode])[inode]) == f"{process_name(os.getpid())}, pid {os.getpid()}"
    assert owners([inode]) == {}


def test_a_process_that_is_gone_has_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert process_name(process.pid) == ""
