"""The files API against names, links and files that an agent made to deceive it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.target import ALICE, BOB, SESSIONS, Target

SECRET = b"host secret of the attack"


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "secret"
    path.write_bytes(SECRET)
    return path


def home(target: Target) -> Path:
    """Alice's $HOME, on the host: it is the one that the marker is in."""
    target.inside("open('/home/session/marker-of-alice', 'w').close()")
    return next((target.platform.data / "volumes").glob("*/home/marker-of-alice")).parent


TRAVERSALS = {
    "dots": "../../../../../../../../{path}", "dots_inside": "a/../../../../../../../..{path}",
    "dots_at_the_end": "a/..", "only_dots": "..", "backslashes": "..\\..\\..\\..{path}",
    "encoded_twice": "%2e%2e/%2e%2e/%2e%2e{path}", "overlong": "\u2025/\u2025{path}", "null": "a\0{path}",
    "other_session": "../../{bob}/home/secret", "proc": "../../../../../../proc/self/environ",
    "long_name": "a" * 256, "long_path": "a/" * 2100, "upload_of_the_platform": ".cupola-upload-x",
    "byte_dots": "\uef80\uef80/../..{path}", "dots_with_slashes": ".//..//..//..{path}",
}  # fmt: skip


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_leads_out(target: Target, secret: Path, name: str) -> None:
    path = TRAVERSALS[name].format(path=secret, bob=BOB)
    for method, what in (("GET", "/content"), ("GET", "/stat"), ("GET", ""), ("PUT", "/content"), ("POST", "/mkdir")):
        answer = target.ask(
            method, target.files(ALICE, what, path), target.alice, b"overwritten" if method == "PUT" else b""
        )
        assert answer.status in (400, 404, 201, 200, 409)
        assert SECRET not in answer.body
    assert secret.read_bytes() == SECRET
    assert sorted(entry.name for entry in secret.parent.iterdir()) == ["secret"]
    assert not list(target.platform.data.glob("sessions/*/secret"))


def test_an_absolute_path_begins_at_the_session(target: Target, secret: Path) -> None:
    assert target.ask("GET", target.files(ALICE, "/content", str(secret)), target.alice).status == 404


LINKS = {
    "absolute": "{path}", "relative": "../../../../../../../../../..{path}", "proc_root": "/proc/1/root{path}",
    "proc_cwd": "/proc/self/cwd", "data_folder": "{data}/server/administrator.secret", "loop": "{name}",
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_no_link_is_followed(target: Target, secret: Path, name: str) -> None:
    link = f"link-{name}"
    leads_to = LINKS[name].format(path=secret, data=target.platform.data, name=link)
    target.inside(f"os.symlink({leads_to!r}, '/home/session/{link}')")
    for path in (link, f"{link}/passwd", f"{link}/"):
        for method, what in (("GET", "/content"), ("PUT", "/content"), ("POST", "/mkdir"), ("GET", "")):
            sent = b"x" if method == "PUT" and path != link else b""
            answer = target.ask(method, target.files(ALICE, what, path), target.alice, sent)
            assert SECRET not in answer.body
    assert secret.read_bytes() == SECRET


def test_a_removal_does_not_follow_links(target: Target, secret: Path) -> None:
    target.inside(
        f"os.makedirs('/home/session/tree/deep'); os.symlink({str(secret.parent)!r}, '/home/session/tree/deep/l')"
    )
    assert target.ask("DELETE", target.files(ALICE, "", "tree") + "&recursive=true", target.alice).status == 204
    assert secret.read_bytes() == SECRET


SPECIAL = {
    "pipe": "os.mkfifo('/home/session/special-pipe')",
    "socket": "import socket; socket.socket(socket.AF_UNIX).bind('/home/session/special-socket')",
    "device": "os.mknod('/home/session/special-device', 0o020666, 0)",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_neither_read_nor_waited_for(target: Target, kind: str) -> None:
    target.inside(SPECIAL[kind])
    answer = target.ask("GET", target.files(ALICE, "/content", f"special-{kind}"), target.alice)
    assert answer.status == 400
    assert target.ask("GET", f"{SESSIONS}/{ALICE}/files", target.alice).status == 200


SWAP = """
import threading, time
def swap():
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        for change in (lambda: os.rename('/home/session/swapped-{what}', '/home/session/aside-{what}'),
                       lambda: os.symlink({target!r}, '/home/session/swapped-{what}'),
                       lambda: os.unlink('/home/session/swapped-{what}'),
                       lambda: os.rename('/home/session/aside-{what}', '/home/session/swapped-{what}')):
            try:
                change()
            except OSError:
                pass
os.makedirs('/home/session/swapped-{what}', exist_ok=True)
open('/home/session/swapped-{what}/secret', 'w').write('own')
threading.Thread(target=swap, daemon=True).start()
"""


@pytest.mark.parametrize("what", ["download", "upload", "list", "remove"])
def test_a_directory_that_becomes_a_link_is_not_followed(target: Target, secret: Path, what: str) -> None:
    target.inside(SWAP.format(seconds=0.6, target=str(secret.parent), what=what))
    for _ in range(100):
        if what == "download":
            answer = target.ask("GET", target.files(ALICE, "/content", f"swapped-{what}/secret"), target.alice)
        elif what == "upload":
            answer = target.ask("PUT", target.files(ALICE, "/content", f"swapped-{what}/secret"), target.alice, b"x")
        elif what == "list":
            answer = target.ask("GET", target.files(ALICE, "", f"swapped-{what}"), target.alice)
        else:
            answer = target.ask("DELETE", target.files(ALICE, "", f"swapped-{what}/secret"), target.alice)
        assert answer.status < 500, answer.body
        assert SECRET not in answer.body
    assert secret.read_bytes() == SECRET


def test_a_hard_link_to_a_foreign_file_cannot_be_made(target: Target, secret: Path) -> None:
    # $HOME is a mount of its own, so not even a file of the image can be linked into it.
    said = target.inside("""
try:
    os.link('/etc/hostname' if os.path.exists('/etc/hostname') else '/etc/passwd', '/home/session/hard')
    print('linked')
except OSError as error:
    print('refused')
""")
    assert said == "refused\n"


NAMES: dict[str, str | bytes] = {
    "line_break": "a\nevent: log", "return": "a\rb", "escape": "\x1b]0;owned\x07", "quote": '"; rm -rf "',
    "right_to_left": "\u202egnp.exe", "not_utf_8": b"\xff\xfe", "markup": "<script>alert(1)<", "dots": "...",
    "dash": "-rf", "dollar": "$(reboot)", "percent": "%2e%2f",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_a_hostile_name_stays_one_name(target: Target, kind: str) -> None:
    name = NAMES[kind]
    raw = name if isinstance(name, bytes) else name.encode()
    target.inside(f"open(b'/home/session/' + {raw!r}, 'w').write({kind!r})")
    listed = target.ask("GET", f"{SESSIONS}/{ALICE}/files?limit=100", target.alice)
    # Nothing in it steers a terminal.
    assert listed.body.isascii()
    assert not any(byte < 0x20 for byte in listed.body)
    entries = listed.json()["entries"]
    assert isinstance(entries, list)
    bodies = [target.ask("GET", target.files(ALICE, "/content", entry["path"]), target.alice).body for entry in entries
              if not entry["is_directory"]]  # fmt: skip
    assert kind.encode() in bodies
    target.inside(f"os.unlink(b'/home/session/' + {raw!r})")


@pytest.mark.parametrize("header", ["bytes=0-99999999999999999999", "bytes=-99999999999999999999", "bytes=5-1",
                                    "bytes=0-0,1-1,2-2,3-3", "bytes=" + "0-," * 2000, "bytes=a-b", "lines=0-1"])  # fmt: skip
def test_a_hostile_range_gets_no_more_than_the_file(target: Target, header: str) -> None:
    target.inside("open('/home/session/ranged', 'w').write('0123456789')")
    answer = target.ask("GET", target.files(ALICE, "/content", "ranged"), target.alice, range=header)
    assert answer.status in (200, 206, 400, 416, 431)
    assert answer.status >= 400 or answer.body in b"0123456789"


def test_an_upload_is_not_announced_larger_than_it_may_be(target: Target) -> None:
    request = (
        f"PUT {target.files(ALICE, '/content', 'huge')} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"authorization: Bearer {target.alice}\r\ncontent-length: {1 << 50}\r\n\r\n"
    )
    assert target.raw(request.encode()).split(b" ")[1] == b"413"


def test_a_file_that_is_cut_while_it_is_read_breaks_the_answer_off(target: Target) -> None:
    target.inside("open('/home/session/cut', 'wb').truncate(200_000_000)")
    target.inside("import threading; threading.Timer(0.05, os.truncate, ('/home/session/cut', 10)).start()")
    answer = target.ask("GET", target.files(ALICE, "/content", "cut"), target.alice)
    assert answer.broken or len(answer.body) in (10, 200_000_000)
    assert target.is_well()


def test_setuid_and_owners_do_not_leave_the_session(target: Target) -> None:
    folder = home(target)
    target.inside("open('/home/session/tool', 'w').close(); os.chmod('/home/session/tool', 0o4755)")
    # Nobody but root comes near it on the host.
    closed = [directory for directory in folder.parents if directory.stat().st_mode & 0o077 == 0]
    assert target.platform.data / "volumes" in closed or target.platform.data in closed or folder.parent in closed
