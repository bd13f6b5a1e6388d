"""The outputs of a device's encoder, as a file for another machine to judge."""
