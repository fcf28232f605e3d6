"""Files that wait for the ledger: whole records come back, in order, and a file goes when all of it was taken."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.unwritten import FORMAT, UnwrittenFiles


@pytest.fixture
def files(tmp_path: Path) -> UnwrittenFiles:
    return UnwrittenFiles(tmp_path / "unwritten", 10_000)


def parts(files: UnwrittenFiles) -> list[Path]:
    return sorted(files.folder.glob("*.part"))


def test_what_was_appended_comes_back_and_goes(files: UnwrittenFiles) -> None:
    assert files.append([b"one", b""])
    assert files.append([b"two\n\0"])
    assert list(files.drain()) == [[b"one", b"", b"two\n\0"]]
    assert (parts(files), files.is_empty()) == ([], True)
    assert list(files.drain()) == []


def test_a_file_whose_records_were_not_all_taken_stays(files: UnwrittenFiles) -> None:
    files.append([b"one"])
    assert next(files.drain()) == [b"one"]
    assert list(files.drain()) == [[b"one"]]


def test_a_record_written_in_part_ends_its_file(files: UnwrittenFiles) -> None:
    files.append([b"one", b"two"])
    files.close()
    (path,) = parts(files)
    whole = path.read_bytes()
    for cut in range(1, len(b"two") + 9):
        path.write_bytes(whole[:-cut])
        assert next(UnwrittenFiles(files.folder, 10_000).drain()) == [b"one"]


def test_a_damaged_record_is_not_taken(files: UnwrittenFiles) -> None:
    files.append([b"one", b"two"])
    files.close()
    (path,) = parts(files)
    path.write_bytes(path.read_bytes().replace(b"two", b"owt"))
    assert list(files.drain()) == [[b"one"]]


def test_a_file_another_process_writes_is_left_to_it(files: UnwrittenFiles) -> None:
    files.append([b"one"])
    other = UnwrittenFiles(files.folder, 10_000)
    assert list(other.drain()) == []
    files.close()
    assert list(other.drain()) == [[b"one"]]


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    files = UnwrittenFiles(tmp_path, 100)
    assert files.append([b"x" * 60])
    assert not files.append([b"x" * 60])
    assert not UnwrittenFiles(tmp_path, 100).append([b"x" * 60]), "what is there already counts"
    assert list(files.drain()) == [[b"x" * 60]]
    assert files.append([b"x" * 60])
    files.close()


def test_a_disk_that_refuses_is_told_and_the_next_record_goes_to_a_new_file(files: UnwrittenFiles) -> None:
    files.folder.write_text("no folder")
    with pytest.raises(OSError, match="exists"):
        files.append([b"one"])
    files.folder.unlink()
    assert files.append([b"two"])
    assert list(files.drain()) == [[b"two"]]


def test_a_file_of_another_format_is_put_aside(files: UnwrittenFiles) -> None:
    files.folder.mkdir()
    (files.folder / "1.part").write_bytes(b"something else")
    (files.folder / "2.part").write_bytes(FORMAT[:5])
    assert list(files.drain()) == [[], []]
    assert [path.name for path in files.folder.iterdir()] == ["1.unreadable"]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_nothing_is_lost_where_another_service_drains_what_is_just_begun(tmp_path: Path) -> None:
    n, found = 600, []
    done = threading.Event()

    def drain() -> None:
        other = UnwrittenFiles(tmp_path, 2**20)
        while not done.is_set():
            found.extend(record for records in other.drain() for record in records)

    draining = threading.Thread(target=drain)
    draining.start()
    try:
        for i in range(n):
            files = UnwrittenFiles(tmp_path, 2**20)
            assert files.append([b"%d" % i])
            files.close()
    finally:
        done.set()
        draining.join()
    found += [record for records in UnwrittenFiles(tmp_path, 2**20).drain() for record in records]
    assert sorted(map(int, found)) == list(range(n))
