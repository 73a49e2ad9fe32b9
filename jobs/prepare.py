"""A data set from raw ratings: the options of `recray prepare`.

ray job submit --working-dir . -- python jobs/prepare.py s3://bucket/ml-1m.zip --out s3://bucket/p
"""

from recray.cli import main

if __name__ == "__main__":
    main("prepare")
