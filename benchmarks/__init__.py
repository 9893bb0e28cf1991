"""Measures wsgigate beside other proxies, in one run on one machine: ``make bench``."""
