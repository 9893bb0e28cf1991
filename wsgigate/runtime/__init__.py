"""Services of a process: forks, background threads, the access log, throttled log messages."""
