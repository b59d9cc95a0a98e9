from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import shutil
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.sandbox.oci import linux
from cupola.sessions import file_transfer
from cupola.sessions.file_listing import DirectoryNames, NamePage
from cupola.sessions.file_names import UPLOAD_PREFIX, parse_path
from cupola.sessions.files import SessionFiles

ALL = NamePage(100)
SECRET = b"the secret of somebody else"
SWAPS = 10_000
RENAME_EXCHANGE = 2
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "session" / "home"
    SessionFiles(path, DirectoryNames()).create()
    return path


@pytest.fixture
def files(home: Path) -> SessionFiles:
    return SessionFiles(home, DirectoryNames())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that nobody may read, change or remove through a session's files."""
    path = tmp_path / "outside"
    (path / "inner").mkdir(parents=True)
    (path / "secret").write_bytes(SECRET)
    (path / "inner" / "secret").write_bytes(SECRET)
    return path


def untouched(outside: Path) -> bool:
    names = sorted(str(path.relative_to(outside)) for path in outside.rglob("*"))
    secrets = {path.read_bytes() for path in (outside / "secret", outside / "inner" / "secret")}
    return names == ["inner", "inner/secret", "secret"] and secrets == {SECRET}


def put(files: SessionFiles, path: str, content: bytes = b"content") -> None:
    upload = files.upload(parse_path(path))
    try:
        upload.open()
        upload.write(content)
        upload.finish()
    finally:
        upload.close()


def get(files: SessionFiles, path: str, offset: int = 0, size: int = 1 << 20) -> bytes:
    download = files.download(parse_path(path))
    try:
        download.open()
        return download.read(offset, size)
    finally:
        download.close()


def names(files: SessionFiles, path: str = "") -> list[str]:
    return [entry.name for entry in files.list_directory(parse_path(path), ALL)[0]]


def make(files: SessionFiles, path: str) -> bool:
    return files.make_directory(parse_path(path))


def remove(files: SessionFiles, path: str, recursive: bool = False) -> None:
    while not files.remove(parse_path(path), recursive, 5.0):
        pass


def refusal(operation: Callable[..., object], *arguments: object) -> tuple[int, str]:
    with pytest.raises(CupolaError) as caught:
        operation(*arguments)
    return caught.value.status, caught.value.code


def every_operation(files: SessionFiles, path: str) -> dict[str, Callable[[], object]]:
    """Everything that goes through a directory to something in it."""
    return {
        "put": lambda: put(files, f"{path}/new"),
        "get": lambda: get(files, f"{path}/secret"),
        "list": lambda: names(files, f"{path}/inner"),
        "list itself": lambda: names(files, path),
        "stat": lambda: files.stat(parse_path(f"{path}/secret")).size,
        "make": lambda: make(files, f"{path}/made/deep"),
        "remove": lambda: remove(files, f"{path}/secret"),
        "remove all": lambda: remove(files, f"{path}/inner", recursive=True),
    }


# What every operation does


def test_a_file_that_is_uploaded_can_be_read(files: SessionFiles, home: Path) -> None:
    put(files, "/remote/deep/a.txt", b"first")
    assert get(files, "remote/deep/a.txt") == b"first"
    put(files, "remote/deep/a.txt", b"second")
    assert (home / "remote" / "deep" / "a.txt").read_bytes() == b"second"
    put(files, "empty", b"")
    assert get(files, "empty") == b""


def test_a_file_is_read_in_parts(files: SessionFiles) -> None:
    put(files, "a", bytes(range(256)))
    assert get(files, "a", 250, 100) == bytes(range(250, 256))
    assert get(files, "a", 300) == b""


def test_a_listing_shows_the_immediate_children(files: SessionFiles, home: Path) -> None:
    for path in ("b/inner/x", "a", "c"):
        put(files, path, b"12345")
    os.utime(home / "a", (1_700_000_000.9, 1_700_000_000.9))
    entries, more = files.list_directory((), ALL)
    assert [(entry.name, entry.size, entry.is_directory) for entry in entries] == [
        ("a", 5, False),
        ("b", 0, True),
        ("c", 5, False),
    ]
    assert entries[0].modified_time == 1_700_000_000
    assert more is None
    assert names(files, "b") == ["inner"]
    assert names(files, "b/inner") == ["x"]


def test_a_listing_goes_on_after_the_last_name_of_a_page(files: SessionFiles) -> None:
    for name in "abc":
        put(files, name)
    entries, after = files.list_directory((), NamePage(2))
    assert ([entry.name for entry in entries], after) == (["a", "b"], "b")
    entries, after = files.list_directory((), NamePage(2, after=b"b"))
    assert ([entry.name for entry in entries], after) == (["c"], None)


def test_stat_describes_files_directories_links_and_home(files: SessionFiles, home: Path) -> None:
    put(files, "d/a", b"123")
    (home / "link").symlink_to("d/a")
    found = files.stat((b"d", b"a"))
    assert (found.name, found.size, found.is_directory, stat.S_IMODE(found.mode)) == ("a", 3, False, 0o644)
    found = files.stat((b"d",))
    assert (found.name, found.size, found.is_directory, stat.S_IMODE(found.mode)) == ("d", 0, True, 0o755)
    found = files.stat((b"link",))
    assert (found.name, found.size, found.is_directory, stat.S_ISLNK(found.mode)) == ("link", 0, False, True)
    found = files.stat(())
    assert (found.name, found.is_directory, stat.S_IMODE(found.mode)) == (".", True, 0o700)


@pytest.mark.parametrize("time", [-5, 10**14, 2**62])
def test_a_time_is_one_that_clients_can_read(
    files: SessionFiles, time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, "a")
    original = os.stat

    def stat_with_time(*arguments: object, **options: object) -> os.stat_result:
        found = list(original(*arguments, **options))  # type: ignore[arg-type]
        return os.stat_result([*found[:7], time, time, time])

    monkeypatch.setattr(os, "stat", stat_with_time)
    (entry,) = files.list_directory((), ALL)[0]
    monkeypatch.undo()
    assert 0 <= entry.modified_time < 253_402_300_800


def test_directories_are_made_with_their_parents_and_once(files: SessionFiles, home: Path) -> None:
    assert [make(files, path) for path in ("a/b/c", "a/b/c", "a/b", "a/b/d", ".")] == [True, False, False, True, False]
    assert (home / "a" / "b" / "c").is_dir()
    put(files, "file")
    assert refusal(make, files, "file") == (409, "conflict")
    assert refusal(make, files, "file/below") == (400, "bad_request")


def test_removing_takes_files_empty_directories_and_links_themselves(
    files: SessionFiles, home: Path, outside: Path
) -> None:
    put(files, "d/a")
    make(files, "empty")
    (home / "link").symlink_to(outside)
    (home / "d" / "inner").symlink_to(outside / "inner")
    (home / "d" / "dangling").symlink_to("nowhere")
    for path in ("link", "empty", "d/inner", "d/dangling"):
        remove(files, path)
    assert refusal(remove, files, "d") == (409, "conflict")
    assert names(files, "d") == ["a"]
    remove(files, "d/a")
    remove(files, "d")
    assert names(files) == []
    assert untouched(outside)


def test_removing_recursively_takes_everything_below_and_nothing_else(
    files: SessionFiles, home: Path, outside: Path
) -> None:
    for path in ("d/a", "d/b/c", "d/b/e/f/g", "d/h/i", "beside"):
        put(files, path)
    make(files, "d/empty/empty")
    (home / "d" / "b" / "link").symlink_to(outside)
    (home / "d" / "to-secret").symlink_to(outside / "secret")
    os.mkfifo(home / "d" / "b" / "pipe")
    remove(files, "d", recursive=True)
    assert names(files) == ["beside"]
    remove(files, "beside", recursive=True)
    assert names(files) == []
    assert untouched(outside)


def test_a_removal_stops_in_time_and_goes_on_when_called_again(files: SessionFiles) -> None:
    for number in range(50):
        put(files, f"d/{number}/a")
    assert not files.remove((b"d",), True, 0.0)
    calls = 0
    while not files.remove((b"d",), True, 0.0005):
        calls += 1
    assert names(files) == []


def test_home_itself_stays(files: SessionFiles, home: Path) -> None:
    put(files, "a")
    for path in ("", ".", "/"):
        assert refusal(remove, files, path, True) == (400, "bad_request")
    assert names(files) == ["a"]


@pytest.mark.parametrize("path", ["missing", "missing/below"])
def test_what_does_not_exist_is_not_found(files: SessionFiles, path: str) -> None:
    for operation in (get, names, remove):
        assert refusal(operation, files, path) == (404, "not_found")
    assert refusal(files.stat, parse_path(path)) == (404, "not_found")


def test_directories_and_files_do_not_pass_for_one_another(files: SessionFiles) -> None:
    put(files, "file")
    make(files, "directory")
    assert refusal(put, files, "directory") == (409, "conflict")
    assert refusal(put, files, "") == (409, "conflict")
    assert refusal(get, files, "directory") == (400, "bad_request")
    assert refusal(get, files, "") == (400, "bad_request")
    for operation in every_operation(files, "file").values():
        assert refusal(operation) == (400, "bad_request")
    assert names(files) == ["directory", "file"]


def test_a_home_that_was_removed_is_not_found(files: SessionFiles, home: Path) -> None:
    shutil.rmtree(home)
    assert refusal(put, files, "a") == (404, "not_found")
    assert refusal(names, files) == (404, "not_found")


# Whose the files are


@as_root
def test_what_is_made_belongs_to_the_owner_of_home(tmp_path: Path) -> None:
    home = tmp_path / "session" / "home"
    files = SessionFiles(home, DirectoryNames())
    files.create()
    os.chown(home, 12_345, 23_456)
    files.create()
    put(files, "d/a")
    make(files, "e/f")
    modes = {"": 0o700, "d": 0o755, "d/a": 0o644, "e": 0o755, "e/f": 0o755}
    for path, mode in modes.items():
        status = (home / path).stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12_345, 23_456, mode)


# Uploads that fail


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if os.fsencode(path.name).startswith(UPLOAD_PREFIX)]


def test_an_upload_appears_when_it_is_finished_and_not_before(files: SessionFiles, home: Path) -> None:
    put(files, "a", b"old")
    upload = files.upload((b"a",))
    upload.open()
    upload.write(b"n")
    assert (get(files, "a"), names(files)) == (b"old", ["a"])
    upload.write(b"ew")
    upload.finish()
    assert get(files, "a") == b"new"
    upload.close()
    assert get(files, "a") == b"new"
    assert leftovers(home) == []


def test_an_upload_that_is_broken_off_leaves_nothing(files: SessionFiles, home: Path) -> None:
    put(files, "a", b"old")
    for begun in (False, True):
        upload = files.upload((b"a",))
        if begun:
            upload.open()
            upload.write(b"new")
        upload.close()
        upload.close()
    assert get(files, "a") == b"old"
    assert leftovers(home) == []


def test_an_upload_beyond_the_limit_is_refused(
    files: SessionFiles, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_transfer, "UPLOAD_LIMIT", 10)
    put(files, "a", b"x" * 10)
    assert refusal(put, files, "a", b"y" * 11) == (413, "payload_too_large")
    assert get(files, "a") == b"x" * 10
    assert leftovers(home) == []


def test_what_a_crash_left_is_not_listed_and_does_not_keep_a_directory(files: SessionFiles, home: Path) -> None:
    make(files, "d")
    for number in range(3):
        (home / "d" / f"{UPLOAD_PREFIX.decode()}{number}").write_bytes(b"half")
    assert names(files, "d") == []
    put(files, "d/a")
    assert refusal(remove, files, "d") == (409, "conflict")
    remove(files, "d/a")
    remove(files, "d")
    assert names(files) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "small"
    path.mkdir()
    linux.mount("tmpfs", str(path), "tmpfs", 0, "size=1m,nr_inodes=20")
    yield path
    linux.unmount(str(path))


@as_root
def test_a_full_disk_is_told_and_nothing_is_left(small_disk: Path) -> None:
    files = SessionFiles(small_disk, DirectoryNames())
    put(files, "a", b"x" * 900_000)
    assert refusal(put, files, "b", b"y" * 900_000) == (507, "disk_full")
    assert refusal(put, files, "a", b"y" * 900_000) == (507, "disk_full")
    assert leftovers(small_disk) == []
    assert get(files, "a", 0, 10) == b"x" * 10
    for number in range(18):
        (small_disk / str(number)).mkdir()
    assert refusal(make, files, "no-room") == (507, "disk_full")
    assert refusal(put, files, "c", b"") == (507, "disk_full")
    assert leftovers(small_disk) == []


# Links and special files


@pytest.mark.parametrize("target", ["outside", "dangling", "itself", "home"])
def test_no_link_on_the_way_is_followed(files: SessionFiles, home: Path, outside: Path, target: str) -> None:
    targets = {"outside": outside, "dangling": Path("nowhere"), "itself": Path("link"), "home": home}
    (home / "link").symlink_to(targets[target])
    for operation in every_operation(files, "link").values():
        with pytest.raises(CupolaError) as caught:
            operation()
        assert (caught.value.status, caught.value.code) == (400, "bad_request")
        assert "'link' is a symbolic link" in caught.value.message
    assert untouched(outside)


def test_a_link_at_the_target_is_replaced_and_not_followed(files: SessionFiles, home: Path, outside: Path) -> None:
    (home / "link").symlink_to(outside / "secret")
    assert refusal(get, files, "link") == (400, "bad_request")
    put(files, "link", b"mine")
    assert get(files, "link") == b"mine"
    assert not (home / "link").is_symlink()
    (home / "to-directory").symlink_to(outside)
    put(files, "to-directory", b"mine")
    assert get(files, "to-directory") == b"mine"
    (home / "new").symlink_to(outside / "new")
    put(files, "new", b"mine")
    assert untouched(outside)


def test_a_file_with_several_names_is_not_changed_by_an_upload_to_one(files: SessionFiles, home: Path) -> None:
    put(files, "a", b"old")
    os.link(home / "a", home / "b")
    put(files, "b", b"new")
    assert (get(files, "a"), get(files, "b")) == (b"old", b"new")


SPECIAL = [
    "fifo",
    "socket",
    pytest.param("device", marks=as_root),
    pytest.param("block", marks=as_root),
]


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files_are_never_opened(files: SessionFiles, home: Path, kind: str) -> None:
    special = home / "d" / "special"
    special.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(special)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            at = os.open(special.parent, os.O_PATH)
            listening.bind(f"/proc/self/fd/{at}/special")
            os.close(at)
    else:
        # The terminal of nobody, and a disk that there is not.
        major, mode = (4, stat.S_IFCHR) if kind == "device" else (240, stat.S_IFBLK)
        os.mknod(special, mode | 0o600, os.makedev(major, 250))
    assert refusal(get, files, "d/special") == (400, "bad_request")
    assert refusal(names, files, "d/special") == (400, "bad_request")
    assert refusal(put, files, "d/special/below") == (400, "bad_request")
    (entry,) = files.list_directory((b"d",), ALL)[0]
    assert (entry.name, entry.size, entry.is_directory) == ("special", 0, False)
    put(files, "d/special", b"now a file")
    assert get(files, "d/special") == b"now a file"
    remove(files, "d", recursive=True)


def test_a_lease_on_a_file_makes_nobody_wait(files: SessionFiles, home: Path) -> None:
    put(files, "a", b"leased")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with (home / "a").open("r+b") as file:
            try:
                fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError as error:
                pytest.skip(f"this file system has no leases: {error}")
            assert refusal(get, files, "a") == (409, "conflict")
            put(files, "a", b"replaced")
            assert get(files, "a") == b"replaced"
    finally:
        signal.signal(signal.SIGIO, before)


# Names and sizes


@pytest.mark.parametrize(
    "name",
    [
        b"\n", b"a\rb", b"\x1b[2J", b"\x7f", b"\xff\xfe", b"caf\xe9", "\u202e".encode(), "\ufffd".encode(), b"\xed\xb3\xbf",
        b"%2e%2e", b"..%2f", b"...", b"-rf", b"*", b"a\\b", b'"', b"con", b" ", b"x" * 255, "\U0001f600".encode() * 63,
    ],
)  # fmt: skip
def test_hostile_names_are_listed_read_and_removed(files: SessionFiles, home: Path, name: bytes) -> None:
    directory = os.fsencode(home) + b"/" + name
    Path(os.fsdecode(directory)).mkdir()
    (Path(os.fsdecode(directory)) / os.fsdecode(name)).write_bytes(name)
    (shown,) = names(files)
    shown.encode()
    assert names(files, shown) == [shown]
    assert get(files, f"{shown}/{shown}") == name
    put(files, f"{shown}/{shown}", b"changed")
    remove(files, f"{shown}/{shown}")
    remove(files, shown)
    assert names(files) == []


def test_a_sparse_file_of_a_terabyte_is_read_where_it_is_asked(files: SessionFiles, home: Path) -> None:
    size = 1 << 40
    with (home / "huge").open("wb") as file:
        file.truncate(size)
        file.seek(size - 4)
        file.write(b"tail")
    download = files.download((b"huge",))
    download.open()
    assert download.size == size
    assert download.read(size - 6, 100) == b"\0\0tail"
    assert download.read(size // 2, 8) == bytes(8)
    download.close()
    remove(files, "huge")


def test_100_000_files_are_listed_page_by_page_and_removed(files: SessionFiles, home: Path) -> None:
    make(files, "all")
    expected = [f"{number:06}" for number in range(100_000)]
    directory = os.open(home / "all", os.O_RDONLY)
    for number, name in enumerate(expected):
        if number % 10_000 == 0:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=directory))
        else:
            # A further name of a file is made sooner than a file.
            os.link(expected[number - number % 10_000], name, src_dir_fd=directory, dst_dir_fd=directory)
    os.close(directory)
    found: list[str] = []
    after: str | None = None
    while after is not None or not found:
        entries, after = files.list_directory((b"all",), NamePage(100, after=after.encode() if after else None))
        found += [entry.name for entry in entries]
    assert found == expected
    remove(files, "all", recursive=True)
    assert names(files) == []


def test_a_tree_deeper_than_any_path_is_removed(files: SessionFiles, home: Path) -> None:
    make(files, "deep")
    directory = os.open(home / "deep", os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=directory)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
        inner = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    remove(files, "deep", recursive=True)
    assert names(files) == []


# Races


class Swapper:
    """A hostile sandbox: exchanges two names at once, again and again, in a thread of its own."""

    def __init__(self, one: Path, other: Path) -> None:
        self._names = (os.fsencode(one), os.fsencode(other))
        self._thread = threading.Thread(target=self._run)
        self.swaps = 0
        self._stop = threading.Event()

    def _run(self) -> None:
        one, other = self._names
        while self.swaps < SWAPS and not self._stop.is_set():
            if libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) == 0:
                self.swaps += 1
            elif ctypes.get_errno() not in (errno.ENOENT, errno.ENOTEMPTY):
                raise OSError(ctypes.get_errno(), "renameat2")

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Swapper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.swaps > 0


def attempt(operation: Callable[[], object]) -> object:
    """What an operation gives, or None when it is refused because of what it met."""
    try:
        return operation()
    except CupolaError as error:
        if error.status not in (400, 404, 409):
            raise
        return None


INSIDE: dict[str, object] = {
    "put": None,
    "get": b"mine",
    "list": ["mine"],
    "list itself": ["inner", "mine", "secret"],
    "stat": 4,
    "make": None,
    "remove": None,
    "remove all": None,
}
"""What an operation on the session's own directory gives."""


@pytest.mark.parametrize("name", INSIDE)
def test_a_directory_that_is_swapped_with_a_link_leads_nowhere(
    files: SessionFiles, home: Path, outside: Path, name: str
) -> None:
    def fill() -> None:
        put(files, "door/secret", b"mine")
        make(files, "door/inner/mine")
        make(files, "door/mine")

    fill()
    (home / "link").symlink_to(outside)
    operation = every_operation(files, "door")[name]
    with Swapper(home / "door", home / "link") as swapper:
        while swapper.running:
            assert attempt(operation) in (None, INSIDE[name], True, False)
            if name.startswith("remove"):
                attempt(fill)
    assert swapper.swaps == SWAPS
    assert untouched(outside)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_file_that_is_swapped_with_something_else_is_a_file_or_refused(
    files: SessionFiles, home: Path, outside: Path, kind: str
) -> None:
    other = home / "other"
    if kind == "link":
        other.symlink_to(outside / "secret")
    elif kind == "fifo":
        os.mkfifo(other)
    else:
        other.mkdir()
    put(files, "file", b"mine")
    put(files, "spare", b"mine")
    with Swapper(home / "file", other) as swapper:
        while swapper.running:
            assert attempt(lambda: get(files, "file")) in (None, b"mine")
            files.list_directory((), ALL)
            found = attempt(lambda: files.stat((b"file",)))
            assert found is not None
    with Swapper(home / "spare", home / "other") as swapper:
        while swapper.running:
            attempt(lambda: put(files, "spare", b"mine"))
    assert untouched(outside)


def test_a_tree_is_removed_while_its_directories_become_links(files: SessionFiles, home: Path, outside: Path) -> None:
    door, link = home / "tree" / "door", home / "link"
    link.symlink_to(outside)
    with Swapper(door, link) as swapper:
        while swapper.running:
            make(files, "tree")
            # While there is no door, nothing is swapped: what was removed with the last one is made again.
            if link.is_symlink():
                door.mkdir()
            else:
                door.symlink_to(outside)
            for path in ("tree/door", "link"):
                for file in ("secret", "inner/secret"):
                    attempt(functools.partial(put, files, f"{path}/{file}"))
            remove(files, "tree", recursive=True)
    assert untouched(outside)


def test_a_directory_that_is_filled_while_it_is_removed_makes_nobody_wait(files: SessionFiles, home: Path) -> None:
    stop = threading.Event()

    def fill() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with contextlib.suppress(OSError):
                directory = home / "d" / str(number % 100)
                directory.mkdir()
                (directory / "a").touch()

    make(files, "d")
    thread = threading.Thread(target=fill)
    thread.start()
    try:
        for _ in range(20):
            attempt(lambda: files.remove((b"d",), True, 0.02))
            make(files, "d")
    finally:
        stop.set()
        thread.join()
    remove(files, "d", recursive=True)
