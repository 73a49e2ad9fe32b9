"""Prepare, train, evaluate, gate, promote: the options of `recray pipeline`; what is there is kept.

ray job submit --working-dir . -- python jobs/pipeline.py s3://bucket/ml-1m.zip --out s3://bucket/ml-1m
"""

from recray.cli import main

if __name__ == "__main__":
    main("pipeline")
