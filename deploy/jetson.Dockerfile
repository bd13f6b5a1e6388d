# The device side on a Jetson Orin: JetPack 6.1 (L4T r36.4), CUDA 12.6, TensorRT 10.3, Python 3.10.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-pip python3-libnvinfer \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/qwen3vl-edge
# The parts, and the package with the links to them; the wheel holds the files.
COPY pyproject.toml README.md LICENSE ./
COPY qwen3vl_edge qwen3vl_edge
COPY calibration calibration
COPY contract contract
COPY export export
COPY edge_runtime edge_runtime
COPY server server
COPY tools tools
# cuda-bindings 13 needs a newer driver than JetPack 6 has.
RUN python3 -m pip install --no-cache-dir --upgrade pip \
 && python3 -m pip install --no-cache-dir '.[edge,build]' 'cuda-bindings>=12.6,<13'

ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["qwen3vl-edge"]
