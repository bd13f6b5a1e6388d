"""Pictures and prompts with Pillow, numpy, jinja2 and tokenizers alone: no torch, no transformers."""
