# The server on a CUDA machine. torch's wheels contain the CUDA libraries; the host provides the driver.
FROM python:3.11-slim

WORKDIR /opt/qwen3vl-edge
# The parts, and the package with the links to them; the wheel holds the files.
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY qwen3vl_edge qwen3vl_edge
COPY calibration calibration
COPY contract contract
COPY export export
COPY edge_runtime edge_runtime
COPY server server
COPY tools tools
RUN pip install --no-cache-dir --constraint constraints.txt '.[server]' \
 && useradd --create-home --uid 10001 server

USER server
# Models are mounted, never downloaded.
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
  CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"
ENTRYPOINT ["qwen3vl-edge", "server", "--host", "0.0.0.0", "--port", "8000"]
