"""Post-training quantization of a bundle's encoder, and the data it is calibrated on."""
