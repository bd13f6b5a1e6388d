"""Where pictures and clips come from: paths, `file://` and `http(s)://` URLs, data URIs, PIL images, lists of frames.

`pictures.py` and `clips.py` open them, `read.py` fetches their bytes within an `AccessPolicy` (`access.py`), and
`download.py` is the only code that connects to another machine for them. A `camera:` reference names a camera of the
daemon: `edge_runtime/daemon/camera_registry.py` resolves it to a PIL image or to a window of frames.
"""
