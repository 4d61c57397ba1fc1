"""What quantizing costs: a user's own inputs, figures on rows that nothing was fitted to, latency, and the report."""
