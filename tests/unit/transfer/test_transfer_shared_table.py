"""Lease tables of other processes on this machine are opened only if they are what they claim to be."""

import os
import subprocess
import sys

import pytest

from triptych.transfer.nixl.shared_table import SharedTable, open_shared_table


@pytest.fixture
def own():
    table = SharedTable("nixl-me")
    yield table
    table.close()
    table.close()


def test_owner_and_receiver_see_the_same_entries(own):
    theirs = open_shared_table("nixl-me", os.getpid(), own.fd)
    own.table.open(3, 77, 4096, 10)
    assert theirs.entry(3).allows(77, 4096, 10)
    theirs.mark_done(3, 77)
    assert own.table.is_done(3, 77)


def test_another_process_opens_the_table(own):
    script = (
        "import sys; from triptych.transfer.nixl.shared_table import open_shared_table; "
        "table = open_shared_table('nixl-me', int(sys.argv[1]), int(sys.argv[2])); table.mark_done(5, 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(os.getpid()), str(own.fd)], check=True, timeout=30)
    assert own.table.is_done(5, 9)


def test_other_files_are_not_taken_for_the_owners_table(own, tmp_path):
    assert open_shared_table("nixl-other", os.getpid(), own.fd) is None, "the name in it is another"
    assert open_shared_table("nixl-me", os.getpid(), 10**6) is None, "no such file"
    assert open_shared_table("nixl-me", 2**22 + 1, own.fd) is None, "no such process"
    reader, writer = os.pipe()
    with (tmp_path / "plain").open("w+b") as plain:
        plain.truncate(os.fstat(own.fd).st_size)
        assert open_shared_table("nixl-me", os.getpid(), plain.fileno()) is None, "a file that could shrink"
        assert open_shared_table("nixl-me", os.getpid(), reader) is None, "a pipe"
    os.close(reader)
    os.close(writer)


def test_the_mapping_outlives_its_owner(own):
    theirs = open_shared_table("nixl-me", os.getpid(), own.fd)
    own.table.open(1, 5, 64, 1)
    own.close()
    assert theirs.entry(1).allows(5, 64, 1)
    assert open_shared_table("nixl-me", os.getpid(), own.fd) is None
