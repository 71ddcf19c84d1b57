"""The exit statuses of every command and of every process of the service."""

DONE = 0
FAILED = 1
"""The command failed, or the service refused to start; the last line on stderr says why."""
WRONG_USE = 2
"""A wrong flag, environment variable or file that the user gave."""
HUNG = 70
"""The watchdog ended a process that made no progress, or whose graph can score nothing any more, as
when its GPU is lost. Its supervisor should start it again.
"""
