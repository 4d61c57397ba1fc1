"""Wire messages ↔ the server's nouns, one file a part of the contract: sizes are checked here, meaning in jobs."""
