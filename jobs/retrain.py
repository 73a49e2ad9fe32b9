"""Train the live version again with what was rated meanwhile: the options of `recray refresh`.

ray job submit --working-dir . -- python jobs/retrain.py s3://b/registry s3://b/ml-1m.zip --out s3://b/o
"""

from recray.cli import main

if __name__ == "__main__":
    main("refresh")
