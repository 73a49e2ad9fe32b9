"""What `recray benchmark` runs, one module a name; each is compared with others in the same run."""

import inspect
from importlib import import_module

from recray.benchmarks.harness import BenchmarkResult, Machine, Measurement, load_now
from recray.errors import RecrayError, unknown_name
from recray.progress import Log

NAMES = tuple("evaluate ingest next quality scale search serve store train tune".split())


def run(name: str, quick: bool, log: Log, **options: object) -> BenchmarkResult:
    """Run one benchmark.

    Args:
        name: One of NAMES.
        quick: Take the module's sizes QUICK, which last under 3 minutes, in place of FULL.
        log: Receives what happens, one line at a time.
        options: What only some benchmarks know, such as data, a folder of real archives; None is
            as good as not given.

    Raises:
        RecrayError: There is no such benchmark, or it has no such option.
    """
    if name not in NAMES:
        raise unknown_name("benchmark", name, NAMES)
    module = import_module(f"recray.benchmarks.{name}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in inspect.signature(module.run).parameters:
            raise RecrayError(f"the benchmark {name} has no option --{option}")
    before = load_now()
    found: Measurement = module.run(module.QUICK if quick else module.FULL, log, **given)
    return BenchmarkResult(**vars(found), machine=Machine.after(before))
