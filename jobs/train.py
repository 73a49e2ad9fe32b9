"""A run on a prepared data set: the options of `recray train`; run again, it goes on with its run.

ray job submit --working-dir . -- python jobs/train.py s3://bucket/p --out s3://bucket/run
"""

from recray.cli import main

if __name__ == "__main__":
    main("train", resume=True)
