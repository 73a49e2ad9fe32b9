"""Lists for all users: the options of `recray recommend`; run again, it keeps the parts there are.

ray job submit --working-dir . -- python jobs/recommend.py s3://bucket/bundle --out s3://bucket/lists
"""

from recray.cli import main

if __name__ == "__main__":
    main("recommend", everyone=True)
