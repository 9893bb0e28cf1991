"""The file that describes a gateway, and the only place that knows everything."""
