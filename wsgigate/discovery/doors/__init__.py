"""The registry in other registries' words: doors for clients that are there already."""
