"""transformers' own model on one machine; requests are decoded together, each step anew."""
