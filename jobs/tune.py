"""A search of settings: the options of `recray tune`; run again, it keeps the trials that ended.

ray job submit --working-dir . -- python jobs/tune.py s3://bucket/p --out s3://bucket/sweep
"""

from recray.cli import main

if __name__ == "__main__":
    main("tune", resume="")  # goes on with the sweep of --out, if there is one
