"""Split, unsplit or all on the device: which answers first, predicted from link, device and model."""
