"""`smartspec-operator local FILE` with replicas that are quick to start: the fake runtime stands for the real one."""

import argparse
import asyncio
import sys
from pathlib import Path

from smartspec_operator import local

FAKE = Path(__file__).with_name("fake_runtime.py")

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    local.add_arguments(parser)
    told = vars(parser.parse_args())
    folder = told["folder"]
    asyncio.run(local.serve(local.Options(**told, runtime=(sys.executable, str(FAKE))), folder))
