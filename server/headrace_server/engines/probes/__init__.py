"""Whether an engine really runs here, asked in a process of its own."""
