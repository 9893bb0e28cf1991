"""State that workers agree on: circuit verdicts, denied tokens, maintenance and leadership."""
