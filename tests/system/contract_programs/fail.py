import sys

print("first line", flush=True)
print("last line", file=sys.stderr, flush=True)
sys.exit(3)
