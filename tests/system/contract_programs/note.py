from pathlib import Path

file = Path.home() / "count"
number = int(file.read_text()) + 1 if file.exists() else 1
file.write_text(str(number))
print(number, flush=True)
