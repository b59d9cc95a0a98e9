"""The Responses protocol on the container side (contract section 4)."""
