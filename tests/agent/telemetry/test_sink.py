import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agent.telemetry.sink import Sink


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_lines_arrive_in_order(tmp_path):
    sink = Sink(str(tmp_path / "log"))
    for n in range(1000):
        sink.write(b"%d\n" % n)
    sink.close()
    assert lines(tmp_path / "log") == [b"%d" % n for n in range(1000)]
    assert sink.dropped == 0


def test_a_file_is_added_to_and_others_cannot_read_it(tmp_path):
    (tmp_path / "log").write_bytes(b"before\n")
    sink = Sink(str(tmp_path / "log"))
    sink.write(b"after\n")
    sink.close()
    assert lines(tmp_path / "log") == [b"before", b"after"]
    Sink(str(tmp_path / "new")).close()
    assert (tmp_path / "new").stat().st_mode & 0o007 == 0


def test_rotation(tmp_path):
    path = tmp_path / "log"
    sink = Sink(str(path))
    sink.write(b"one\n")
    sink.reopen()  # in order with the lines: what came before is in the old file
    path_then = tmp_path / "log.1"
    while not path.exists() or lines(path) != [b"one"]:
        pass
    path.rename(path_then)
    sink.reopen()
    sink.write(b"two\n")
    sink.close()
    assert lines(path_then) == [b"one"]
    assert lines(path) == [b"two"]


def test_a_blocked_sink_drops_and_counts_and_blocks_nobody(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink(str(fifo), size=10)
    line = b"x" * 4095 + b"\n"
    done = threading.Event()

    def write() -> None:
        for _ in range(1000):
            sink.write(line)
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(10)
    dropped = sink.dropped
    assert dropped >= 1000 - 10 - 17  # the queue, what a pipe holds (64 KiB), and the one under way
    got = 0
    os.set_blocking(reader, True)
    while got < (1000 - dropped) * len(line):
        got += len(os.read(reader, 1 << 20))
    assert got == (1000 - dropped) * len(line)
    sink.close()
    os.close(reader)


def test_a_reader_that_went_away_costs_lines_only(tmp_path):
    reader, writer = os.pipe()
    sink = Sink(f"/proc/self/fd/{writer}")
    os.close(writer)
    os.close(reader)
    sink.write(b"lost\n")
    sink.close()
    assert sink.dropped == 1


def test_lines_that_come_together_count_each(tmp_path):
    reader, writer = os.pipe()
    sink = Sink(f"/proc/self/fd/{writer}", size=3)
    os.close(writer)
    os.close(reader)
    sink.write(b"a\nb\n", 2)
    sink.write(b"c\nd\ne\nf\n", 4)
    sink.close()
    assert sink.dropped == 6


def test_one_that_cannot_be_opened(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Sink(str(tmp_path / "none" / "log"))


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_the_next(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", tmp_path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mount: {mount.stderr.strip()}")
    try:
        sink = Sink(str(tmp_path / "log"))
        sink.write(b"x" * 5000 + b"\n")
        end = time.monotonic() + 10
        while not sink.dropped:
            assert time.monotonic() < end
        subprocess.run(["mount", "-o", "remount,size=64k", tmp_path], check=True)
        sink.write(b"one\n")
        sink.write(b"two\n")
        sink.close()
        assert lines(tmp_path / "log") == [b"x" * 4096, b"one", b"two"]
        assert sink.dropped == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)
