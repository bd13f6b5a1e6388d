"""Jobs that wait for the server: stored on disk, sent in order, each answered once."""
