"""Calls from the container to the platform: HTTP, tokens, retries (contract sections 3.3, 3.4 and 4.12)."""
