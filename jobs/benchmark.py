"""What recray is compared with, on this cluster: the options of `recray benchmark`.

ray job submit --working-dir . -- python jobs/benchmark.py evaluate --quick
"""

from recray.cli import main

if __name__ == "__main__":
    main("benchmark")
