import sys
from pathlib import Path

print("ready", flush=True)
word = sys.stdin.readline().strip()
found = Path("/home/session/note").read_text()
Path("/files/answer").write_text(f"{word} {found}")
print("done", flush=True)
