"""What an operator sees: metrics, traces, and the access log."""
