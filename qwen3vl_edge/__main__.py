"""`python -m qwen3vl_edge`: the command line."""

from qwen3vl_edge.tools.cli.main import main

if __name__ == "__main__":
    main()
