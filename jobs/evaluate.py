"""A bundle measured on its test split: the options of `recray evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py s3://bucket/bundle --workers 4
"""

from recray.cli import main

if __name__ == "__main__":
    main("evaluate")
