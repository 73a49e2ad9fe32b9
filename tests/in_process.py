"""Stages of tasks in this process, for tests that start no Ray."""


class InProcess:
    """Does what TaskRunner does, one task after the other."""

    def __init__(self, _on_progress=None):
        self.stages = []

    def map(self, _stage, function, count, work_of=None, **shared):
        return [function(number, **shared) for number in range(count)]

    def read(self, _stage, source, _count, _work_of):
        return [scan() for scan in source.scans]

    def write(self, _stage, sink, rows, _work_of, **shared):
        return [sink.encode(number, **shared) for number in range(len(rows))]
