"""Reverse proxying: from a matched route to an instance of its service, and back."""
