"""Time to the first token over shaped links: split, unsplit server, all on the device; and the prediction beside it."""
