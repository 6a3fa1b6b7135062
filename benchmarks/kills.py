"""Killed at a random moment and started again: does a command leave what an undisturbed run leaves?

`diagnose`, `study` and `external` run on a small drawn cohort. Each is killed (SIGKILL, with all its
children) at moments drawn over its whole duration, started again until it ends, and its folder is compared
byte by byte with that of an undisturbed run. The log, and the seconds in the manifest, are left aside.

    python benchmarks/kills.py [--quick] [--kills 100] [--seed 0]
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = '''
from cblc.study import StudySettings, run_study
settings = StudySettings(arch='mobilenetv3_small_050', pretrained=False, lr=2e-3, size=32, epochs=1,
                         epochs2=1, n_boot=20, seed=3)
run_study({cohort!r}, {out!r}, settings)
'''
EXTERNAL = '''
from cblc.external import ExternalSettings, run_external
table, problems = run_external({cohort!r}, {bundle!r}, None, {out!r}, ExternalSettings(n_boot=20))
assert not problems, problems
'''
DIAGNOSE = '''
from cblc.diagnose import diagnose
diagnose([{images!r}], {out!r}, patient='x')
'''
COHORT = '''
from cblc.sources.cohort import make_cohort
make_cohort({cohort!r}, n_patients=(5, 0, 0, 2, 0, 0), fields_per_patient=1, size=320, seed=3)
'''


def start(program):
    "Start a program as the leader of a group of processes"
    return subprocess.Popen(
        [sys.executable, '-c', program], start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)


def finish(program):
    "Run a program to its end; seconds"
    begun, job = time.time(), start(program)
    _, complaints = job.communicate()
    if job.returncode:
        raise SystemExit(f'failed: {complaints.strip().splitlines()[-1]}')
    return time.time() - begun


def kill_after(program, seconds):
    "Run a program for so many seconds and kill it; whether it was still running"
    job = start(program)
    try:
        job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        return True
    return False


def without_seconds(value):
    "Take the times out of a manifest"
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if key != 'seconds'}
    return value


def contents(folder):
    "Hash every file of a folder but the log; times aside"
    hashes = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.name != 'run.log':
            data = path.read_bytes()
            if path.name == 'manifest.json':
                data = json.dumps(without_seconds(json.loads(data))).encode()
            hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


def try_command(name, program, out, kills, draw):
    "Kill a command `kills` times, start it again after each; how many ended as an undisturbed run does"
    seconds, undisturbed = finish(program), contents(out)
    identical = 0
    for number in range(kills):
        shutil.rmtree(out, ignore_errors=True)
        moment = draw.uniform(0, seconds)
        while not kill_after(program, moment):  # it had ended: that was no kill, an earlier moment is drawn
            shutil.rmtree(out)
            moment = draw.uniform(0, moment)
        finish(program)
        now = contents(out)
        odd = sorted(key for key in {*now, *undisturbed} if now.get(key) != undisturbed.get(key))
        identical += not odd
        result = ', '.join(odd) or 'same bytes'
        print(f'{name:9} {number + 1:3} killed at {moment:5.1f} of {seconds:.1f} s: {result}', flush=True)
    return identical


def main():
    "Kill the three commands in turn"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='one kill a command')
    parser.add_argument('--kills', type=int, default=100, help='in all')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    kills = 3 if args.quick else args.kills
    draw, identical = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        places = {name: str(root/name) for name in ('cohort', 'bundle', 'cohort/images')}
        places['images'] = places.pop('cohort/images')
        finish(COHORT.format(**places))
        finish(STUDY.format(**places, out=str(root/'first')))
        shutil.copytree(root/'first'/'bundle', root/'bundle')
        commands = dict(diagnose=DIAGNOSE, study=STUDY, external=EXTERNAL)
        for number, (name, program) in enumerate(commands.items()):
            share = kills//3 + (number < kills % 3)
            ready = program.format(**places, out=str(root/name))
            identical[name] = try_command(name, ready, root/name, share, draw)
    print(f'seed {args.seed}; same bytes after a kill: {identical}')
    print(json.dumps(dict(kills=kills, identical=sum(identical.values()))))


if __name__ == '__main__':
    main()
