"""Print the page: python -m qwen3vl_edge.tools.dev.bench.report docs/reports/benchmarks > docs/reports/benchmarks.md"""

import sys
from pathlib import Path

from qwen3vl_edge.tools.dev.bench.report.page import page

if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))
