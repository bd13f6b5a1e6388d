"""Split, unsplit or all on the device: the time to first token of each, predicted from link, device and model."""
