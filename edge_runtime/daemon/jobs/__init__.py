"""Jobs that wait for the server: kept on disk, sent in order, each answered once."""
