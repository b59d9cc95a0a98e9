"""Keeps notes in a file below $HOME, which lives as long as the session: longer than any process."""

from pathlib import Path
from threading import Lock

from cupola_agent import Agent

agent = Agent()
notes = Path.home() / "notes.txt"
writing = Lock()


@agent.responses
def reply(input: str) -> str:  # noqa: A002
    """A plain function: it runs in a thread, so it may wait for files."""
    if input == "list":
        return notes.read_text() if notes.exists() else "No notes yet."
    with writing, notes.open("a") as file:
        file.write(f"{input}\n")
    return "Noted."


if __name__ == "__main__":
    agent.run()
