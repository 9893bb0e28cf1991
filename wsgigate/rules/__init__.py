"""Decisions only: no I/O, threads, clock, environ or store. ``now`` and chance are arguments."""
