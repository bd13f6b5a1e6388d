"""File and document formats: atomic writes, strict parsing, byte layouts."""
