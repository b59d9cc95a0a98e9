"""Python interpreters that wait inside a sandbox, with what the agent imports already imported, to become the agent."""
