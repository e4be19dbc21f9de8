"""Runs tools/launch.py many times in processes forked off one that has imported torch and mmseg, which takes seconds.

    launch_driver.py ROOT < JOBS      # a job a line: {"argv": [...], "env": {...}, "out": PATH, "err": PATH}

Says a line when it is ready, and answers each job with a line that holds its exit status.
"""

import json
import os
import sys
import traceback


def run(job: dict) -> int:
    """Run one job in a process of its own."""
    pid = os.fork()
    if pid:
        return os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    for number, path in ((1, job['out']), (2, job['err'])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(job['env'])
    from recipe.core import console
    from recipe.launch import cli

    status = 1
    try:
        console.run(lambda: cli.main(job['argv']))
    except SystemExit as ended:
        status = int(ended.code)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's clean-up, which would copy all of the memory that the fork shares.
    os._exit(status)


if __name__ == '__main__':
    sys.path.insert(0, sys.argv[1])
    from recipe.core import left_out

    left_out.leave_out_other_models()  # as tools/launch.py
    import mmseg.models  # noqa: F401

    print('ready', flush=True)
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
