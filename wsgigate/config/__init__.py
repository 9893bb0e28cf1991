"""Configuration: read and check a gateway's file, and build the gateway from it."""
