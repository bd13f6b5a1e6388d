"""The process's limit of open files: each connection takes one."""

from __future__ import annotations


def allow_descriptors(wanted: int) -> int:
    """Raise the limit of open files to `wanted`, as far as the system allows; it is never lowered.

    Returns:
        The limit, at most `wanted`.
    """
    import resource  # not available on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # a sandbox may forbid it
        return soft
    return raised
