# The language model's half on a CUDA machine. torch's wheels bring CUDA's libraries; the host brings the driver.
FROM python:3.12-slim

WORKDIR /opt/qwen3vl-edge
COPY pyproject.toml README.md ./
COPY calibration calibration
COPY contract contract
COPY export export
COPY edge_runtime edge_runtime
COPY server server
COPY tools tools
RUN pip install --no-cache-dir '.[server]' \
 && useradd --create-home --uid 10001 server

USER server
# Models are mounted, never downloaded.
ENV HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
  CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"
ENTRYPOINT ["qwen3vl-edge", "server", "--host", "0.0.0.0", "--port", "8000"]
