"""`make demo`: a fresh platform, the sample echo agent built and deployed, and talked to by the official client.

Everything lives in a temporary folder and on ports of its own; nothing is left behind.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

CUPOLA = (sys.executable, "-m", "cupola")


def main() -> None:
    if os.geteuid() != 0:
        sys.exit(
            "demo: the default driver isolates agents with mounts and control groups, so run this as root: sudo make demo"
        )
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cupola-demo-") as folder:
        os.environ["CUPOLA_DATA"] = f"{folder}/data"
        with step("Build the sample echo agent as a container image"):
            image = build_image(Path(folder))
        with step("Start the platform"):
            cupola("up", "--detach", "--https-port", "0", "--http-port", "0")
        try:
            with step('Point the official client at it: eval "$(cupola env)"'):
                use_environment()
            talk(image)
        finally:
            with step("Shut everything down"):
                cupola("down")
    say(f"\nAll of it took {time.monotonic() - started:.1f} s, and nothing is left behind.")


def build_image(folder: Path) -> str:
    from scripts.build_sample import build

    digest = build(ROOT / "samples" / "echo", folder / "echo", "1")
    say(f"  image {digest[:19]}… from Debian packages: no container engine and no image hub are needed")
    return f"oci:{folder / 'echo'}:1"


def use_environment() -> None:
    for name, value in re.findall(r"^export (\w+)=(.*)$", cupola("env"), re.MULTILINE):
        os.environ[name] = shlex.split(value)[0]
        if name != "IDENTITY_HEADER":
            say(f"  {name}={os.environ[name]}")


def talk(image: str) -> None:
    with step("Load the official client (azure-ai-projects, azure-identity, openai)"):
        from azure.ai.projects import AIProjectClient
        from azure.ai.projects.models import (
            ContainerConfiguration,
            HostedAgentDefinition,
            ProtocolVersionRecord,
        )
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
        project = AIProjectClient(endpoint=os.environ["FOUNDRY_PROJECT_ENDPOINT"], credential=credential)
    with step("Deploy it: agents.create_version(…), then wait until it is active"):
        definition = HostedAgentDefinition(
            cpu="1",
            memory="1Gi",
            protocol_versions=[ProtocolVersionRecord(protocol="responses", version="2.0.0")],
            container_configuration=ContainerConfiguration(image=image),
        )
        version = project.agents.create_version(agent_name="echo", definition=definition)
        while version["status"] == "creating":
            time.sleep(0.05)
            version = project.agents.get_version(agent_name="echo", agent_version=version.version)
    say(indented(cupola("versions", "show", "echo", version.version)))
    if version["status"] != "active":
        sys.exit(f"demo: the version is {version['status']}: {version['error']}")
    client = project.get_openai_client(agent_name="echo")
    with step("Invoke it: responses.create(input=…), which starts a sandbox for a new session"):
        response = client.responses.create(input="Hello from the other side")
    say(f"  answer: {response.output_text}")
    session = {"agent_session_id": response.model_extra["agent_session_id"]} if response.model_extra else {}
    with step("Invoke it again in the same session, streaming"):
        say("  answer: ", end="")
        for event in client.responses.create(input="word by word", stream=True, extra_body=session):
            if event.type == "response.output_text.delta":
                say(event.delta, end="")
        say()
    client.close()
    project.close()
    credential.close()


@contextmanager
def step(title: str) -> Iterator[None]:
    say(f"\n▸ {title}")
    began = time.monotonic()
    yield
    say(f"  done in {1000 * (time.monotonic() - began):.0f} ms")


def cupola(*arguments: str) -> str:
    done = subprocess.run([*CUPOLA, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"demo: `cupola {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    main()
