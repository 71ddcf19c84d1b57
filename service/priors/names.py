"""The names and numbers of stored priors that a command line needs before it opens a store."""

DEFAULT = "default"
"""The prior of requests that name none."""
MAX_REVISION = 2**53 - 1
"""The largest revision number that a caller may give: any JSON reader can represent it exactly."""
