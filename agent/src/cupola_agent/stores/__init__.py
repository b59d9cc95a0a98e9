"""Where responses are kept: in memory, in a local file, or on the platform."""
