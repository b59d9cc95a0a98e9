"""Takes memory until the kernel ends it."""

held = []
while True:
    held.append(b"x" * 1024 * 1024)
