"""What system tests share: images, a running platform, the official clients in environments of their own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cupola.images.debian import build_base
from scripts.build_sample import build
from tests.system.as_user import SUBORDINATE
from tests.system.engine import EngineUnavailable, PrivateEngine, serve_engine
from tests.system.ordinary import OrdinaryUser, missing
from tests.system.platform import Platform, traces

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
OFFICIAL_AGENT = """
from azure.ai.agentserver.responses import ResponsesAgentServerHost, TextResponse

app = ResponsesAgentServerHost()


@app.response_handler
async def handler(request, context, cancellation_signal):
    return TextResponse(context, request, text=f"Official: {await context.get_input_text()}")


app.run()
"""


@pytest.fixture(scope="session")
def base_root() -> Path:
    """An unpacked root file system with Python and a shell."""
    CACHE.mkdir(exist_ok=True)
    return build_base(CACHE / "images")


@pytest.fixture(scope="session")
def ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> OrdinaryUser:
    """A user of the tests' own who is not root."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    user = OrdinaryUser(tmp_path_factory.mktemp("ordinary"))
    request = user.request(user.directory(user.workspace / "home"))
    tried = "from cupola.host.trial import try_user_namespace; print(try_user_namespace())"
    said = subprocess.run(
        request.command(sys.executable, "-c", tried), capture_output=True, text=True, check=True, timeout=60
    )
    if said.stdout.strip():
        pytest.skip(f"an ordinary user can have no user namespace here: {said.stdout.strip()}")
    return user


@pytest.fixture(scope="session")
def ordinary_root(base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base root as the ordinary user's node has it: it belongs to root inside."""
    copy = tmp_path_factory.mktemp("ordinary-root") / "base"
    subprocess.run(["cp", "-a", base_root, copy], check=True)
    subprocess.run(["chown", "-hR", f"{SUBORDINATE}:{SUBORDINATE}", copy], check=True)
    return copy


@pytest.fixture(scope="session")
def engine() -> Iterator[PrivateEngine]:
    """A Docker engine of the tests' own."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(serve_engine())
        except EngineUnavailable as error:
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of OCI layouts that tests add theirs to."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="session")
def echo_image(images: Path) -> str:
    """The sample echo agent, as an image string."""
    build(ROOT / "samples" / "echo", images / "echo", "1")
    return f"oci:{images / 'echo'}:1"


@pytest.fixture(scope="session")
def agent_image(images: Path) -> Callable[[str, str], str]:
    """Makes an image that runs a Python program on the base root; returns its image string."""

    def make(name: str, program: str) -> str:
        source = images / f"{name}-source"
        source.mkdir(exist_ok=True)
        (source / "main.py").write_text(program)
        build(source, images / name, "1")
        return f"oci:{images / name}:1"

    return make


@pytest.fixture(scope="session")
def official_image(images: Path) -> str:
    """An agent on the official container library from PyPI, unmodified, as an image string."""
    source = images / "official-source"
    source.mkdir()
    (source / "main.py").write_text(OFFICIAL_AGENT)
    build(source, images / "official", "1", requirements=["azure-ai-agentserver-responses==2.3.0"])
    return f"oci:{images / 'official'}:1"


@pytest.fixture
def start_platform(tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Starts platforms that are stopped at the end, and proves that nothing of them is left."""
    started: list[Platform] = []

    def start(data: Path | None = None, **settings: str) -> Platform:
        platform = Platform(data or tmp_path / f"data{len(started)}", settings)
        started.append(platform)
        return platform.start()

    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    yield start
    for platform in started:
        platform.stop()
    for platform in started:
        assert traces(platform.data) == []


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for the tests of a module."""
    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    running = Platform(tmp_path_factory.mktemp("platform") / "data", {"CUPOLA_STARTUP_TIMEOUT": "8"}).start()
    yield running
    assert running.stop() == 0
    assert traces(running.data) == []


SDK_PACKAGES = {
    "2.0.0b3": ("azure-ai-projects==2.0.0b3", "openai<3"),
    "2.0.0": ("azure-ai-projects==2.0.0", "openai<3"),
    "2.10.0": ("azure-ai-projects==2.10.0", "openai>=3"),
}


@pytest.fixture(scope="session")
def sdk_python() -> Callable[[str], Path]:
    """The interpreter of a virtual environment that has an official client of some version."""

    def make(version: str) -> Path:
        packages = ("azure-identity>=1.27,<2", "aiohttp>=3.14,<4", *SDK_PACKAGES[version])
        name = hashlib.sha256("\n".join((sys.version, *packages)).encode()).hexdigest()[:16]
        environment = CACHE / "sdk" / f"{version}-{name}"
        if not (environment / "complete").exists():
            uv = Path(sys.executable).parent / "uv"
            subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, environment], check=True)
            subprocess.run([uv, "pip", "install", "-q", "--python", environment / "bin/python", *packages], check=True)
            (environment / "complete").touch()
        return environment / "bin" / "python"

    return make
