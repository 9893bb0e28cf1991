"""Services of a process: forks, background threads, files that change, throttled log messages."""
