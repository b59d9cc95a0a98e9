"""Records of long work that outlive a process, and the leases that say who does it (contract section 4.14)."""
