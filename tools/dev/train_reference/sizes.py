"""Picture and clip sizes (height, width in pixels) of training, validation and the held-out questions."""

from __future__ import annotations

# Mostly small, because a merged token covers 32x32 pixels and two cores have to train on them.
IMAGE_SIZES = (
    (96, 96),
    (96, 128),
    (128, 96),
    (128, 128),
    (128, 160),
    (160, 128),
    (160, 160),
    (128, 192),
    (192, 128),
    (160, 192),
    (192, 192),
    (160, 224),
    (224, 160),
    (96, 192),
    (224, 224),
)
IMAGE_WEIGHTS = (4, 4, 4, 5, 4, 4, 3, 3, 3, 1, 1, 0.5, 0.5, 2, 0.5)
PAIR_SIZES = ((96, 96), (96, 128), (128, 96), (128, 128), (128, 160))
VIDEO_SIZES = ((96, 96), (96, 128), (128, 96), (128, 128))
FRAMES = 8
SAMPLE_FPS = 2.0
# qwen-vl-utils would enlarge pictures below 4 tokens and clips below 128 tokens a frame; this model was trained on
# smaller clips. Its processors have the same limits, of a clip's frames together.
VISION_DEFAULTS = {
    "image": {"min_pixels": 4096, "max_pixels": 512 * 512},
    "video": {"min_pixels": 4096, "max_pixels": 256 * 256},
}
