"""Killed at a random moment and started again: does a command leave what an undisturbed run leaves?

`diagnose`, `study` and `external` run on a small drawn cohort. Each is killed (SIGKILL) many times, started
again by the same call until it ends, and its folder is compared byte by byte with that of an undisturbed run.
The log, and the seconds in the manifests, are left aside.

Every other kill comes at a moment drawn over the whole duration: a tenth of them at the very start, a tenth
at the very end, the rest spread evenly between. The others come at a file operation, drawn among all that an
undisturbed run makes in its folder (a file opened for writing, renamed or removed, a folder made), for it is
there that a torn file could come about. To be cheap, one process imports what is needed and forks each run;
the study's cohort has main centers alone, and the external center's cells are classified beforehand.

    python benchmarks/kills.py [--quick] [--kills 100] [--seed 0] [--out FOLDER] [--minutes N]

With `--out` the work is kept: a stopped benchmark goes on there, and the kills of several calls add up as
long as the code is the same. `--minutes` ends a call in good order after so long.
"""
import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # a process that forks must have no threads of its own
ROOT = Path(__file__).resolve().parents[1]
STUDY = dict(arch='lcnet_050', pretrained=False, lr=2e-3, size=32, epochs=2, epochs2=1, n_boot=20, seed=3)
DRAWN = dict(fields_per_patient=1, size=192, seed=3, workers=1)
SHARES = dict(diagnose=.4, study=.4, external=.2)  # of the kills; the last is the slowest
WRITES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink')


def import_all(root):
    "Import what the commands need, as far as it is known from an earlier run, so that a forked run need not"
    known = root/'modules.json'
    names = json.loads(known.read_text()) if known.is_file() else ['cblc.diagnose', 'cblc.study']
    for name in names:
        with contextlib.suppress(Exception):  # what cannot be imported by itself is imported by who needs it
            importlib.import_module(name)
    importlib.import_module('torch').set_num_threads(1)


def study(root, out):
    "Study the cohort: find, train, validate inside and outside, report"
    from cblc.study import StudySettings, run_study
    run_study(root/'cohort', out, StudySettings(**STUDY))


def external(root, out):
    "Validate the bundle in the external center"
    from cblc.external import ExternalSettings, run_external
    cells = root/'cells.parquet'
    settings = ExternalSettings(n_boot=20, cells=str(cells) if cells.exists() else '')
    _, problems = run_external(root/'elsewhere', root/'bundle', None, out, settings)
    assert not problems, problems


def diagnose(root, out):
    "Diagnose one patient of three pictures"
    from cblc.diagnose import diagnose
    diagnose([root/'cohort'/'images'], out, patient='x')


COMMANDS = dict(diagnose=diagnose, study=study, external=external)


def is_write(event, arguments, folder):
    "Tell whether an audit event of Python changes something in a folder"
    if event == 'open':
        name, mode, flags = arguments
        writes = any(letter in (mode or '') for letter in 'wax+') or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
    else:
        name, writes = arguments[0] if arguments else None, event in WRITES
    is_path = isinstance(name, (str, bytes, os.PathLike))
    return bool(writes) and is_path and os.fsdecode(name).startswith(folder)


def count_writes(folder, last, ledger):
    "Count the file operations of this process in a folder, in a file; at the last one it is killed"
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event != 'open' and event not in WRITES:
            return
        if is_write(event, arguments, folder):
            count += 1
            os.pwrite(ledger, f'{count:9}'.encode(), 0)
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)


def in_child(command, root, out, ledger, last):
    "Run a command as the whole of a forked process"
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(root/'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count_writes(str(out), last, ledger)
        COMMANDS[command](root, out)
        if last is None:
            known = root/'modules.json'
            before = json.loads(known.read_text()) if known.is_file() else []
            known.write_text(json.dumps(list(dict.fromkeys([*before, *sys.modules]))))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(command, root, out, moment=None, last=None):
    "Run a command in a process of its own: exit code (negative: killed), seconds, file operations"
    ledger, path = tempfile.mkstemp(dir=root)
    begun, pid = time.time(), os.fork()
    if pid == 0:
        in_child(command, root, out, ledger, last)
    ended = 0
    while not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended and moment is not None and time.time() - begun >= moment:
            os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0)
        time.sleep(.002)
    seconds, count = time.time() - begun, os.pread(ledger, 16, 0)
    os.close(ledger)
    os.unlink(path)
    return os.waitstatus_to_exitcode(status), seconds, int(count or 0)


def finish(command, root, out):
    "Run a command to its end; seconds and file operations"
    code, seconds, count = run(command, root, out)
    if code:
        raise SystemExit(f'{command} failed: {(root/"log.txt").read_text().strip().splitlines()[-1]}')
    return seconds, count


def without_seconds(value):
    "Take the times out of a manifest"
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if key != 'seconds'}
    return value


def contents(folder):
    "Hash every file of a folder but the log; times aside"
    hashes = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path != folder/'run.log':
            data = path.read_bytes()
            if path.name == 'manifest.json':
                data = json.dumps(without_seconds(json.loads(data))).encode()
            hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
        elif path.is_dir() and not any(path.iterdir()):
            hashes[f'{path.relative_to(folder)}/'] = 'an empty folder'
    return hashes


def moments(kills, seed):
    "Draw where each kill of a command comes: ('moment' or 'write', a share of the run, 0-1)"
    draw, drawn = random.Random(seed), []
    for number in range(kills):
        share = draw.random()
        of_kind = number // 2
        if number % 2:
            drawn.append(('write', share))
        elif of_kind % 10 == 0:
            drawn.append(('moment', share * .03))
        elif of_kind % 10 == 1:
            drawn.append(('moment', 1 - share * .03))
        else:
            drawn.append(('moment', (of_kind % 10 - 2 + share) / 8))
    return drawn


def kill_once(command, root, out, kind, share, seconds, count):
    "Kill a fresh run of a command once; where. One that ended before its moment is run again, for less long"
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if kind == 'write':
            last = 1 + int(share * count)
            code, *_ = run(command, root, out, last=last)
            where = f'at file operation {last} of {count}'
        else:
            moment = share * seconds
            code, *_ = run(command, root, out, moment=moment)
            where = f'after {moment:.2f} of {seconds:.1f} s'
        if code == -signal.SIGKILL:
            return where
        if code > 0:
            raise SystemExit(f'{command} failed: {(root/"log.txt").read_text().strip().splitlines()[-1]}')
        share *= .97


def code_hash():
    "Hash the code that is tried: kills of other code do not count"
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in [*sorted((ROOT/'cblc').rglob('*.py')), ROOT/'nbs'/'05_external.ipynb']:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepare(root):
    "Draw the cohort, make a bundle, and let every command run undisturbed; what each leaves and takes"
    state = root/'undisturbed.json'
    if state.is_file() and json.loads(state.read_text())['code'] == code_hash():
        return json.loads(state.read_text())
    from cblc.sources.cohort import make_cohort
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_cohort(root/'cohort', n_patients=(3, 0, 0, 0, 0, 0), **DRAWN)
    make_cohort(root/'elsewhere', n_patients=(0, 0, 0, 1, 0, 0), **DRAWN)
    finish('study', root, root/'study')
    shutil.copytree(root/'study'/'bundle', root/'bundle')
    finish('external', root, root/'external')
    shutil.copy(root/'external'/'center4'/'cells.parquet', root)
    import_all(root)
    undisturbed = dict(code=code_hash())
    for name in COMMANDS:
        shutil.rmtree(root/name, ignore_errors=True)
        seconds, count = finish(name, root, root/name)
        print(f'{name:9} undisturbed: {seconds:.1f} s, {count} file operations', flush=True)
        undisturbed[name] = dict(seconds=seconds, count=count, files=contents(root/name))
    state.write_text(json.dumps(undisturbed))
    return undisturbed


def try_kill(command, root, number, kind, share, undisturbed):
    "Kill a command once, start it again until it ends, and compare what it left: a record"
    known, out = undisturbed[command], root/command
    where = kill_once(command, root, out, kind, share, known['seconds'], known['count'])
    finish(command, root, out)
    now, before = contents(out), known['files']
    odd = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if odd:
        shutil.copytree(out, root/'odd'/f'{command}{number}', dirs_exist_ok=True)
    return dict(command=command, number=number, where=where, odd=odd)


def main():
    "Kill the three commands in turn"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='five kills')
    parser.add_argument('--kills', type=int, default=100, help='in all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='', metavar='FOLDER', help='keeps the work, and goes on with it')
    parser.add_argument('--minutes', type=float, default=1e9, help='end in good order after so many')
    args = parser.parse_args()
    kills, begun = 5 if args.quick else args.kills, time.time()
    root = Path(args.out or tempfile.mkdtemp()).absolute()
    root.mkdir(parents=True, exist_ok=True)
    import_all(root)
    undisturbed, records = prepare(root), root/'kills.jsonl'
    done = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    shares = enumerate(SHARES.items())
    plans = {name: moments(round(kills * share), args.seed + i) for i, (name, share) in shares}
    had = {(record['command'], record['number']) for record in done}
    for number in range(max(map(len, plans.values()))):
        for name, plan in plans.items():
            if number >= len(plan) or (name, number) in had or time.time() - begun > 60*args.minutes:
                continue
            record = try_kill(name, root, number, *plan[number], undisturbed)
            done.append(record)
            with records.open('a') as file:
                file.write(json.dumps(record) + '\n')
            result = ', '.join(record['odd']) or 'same bytes'
            print(f'{name:9} {number + 1:3} killed {record["where"]}: {result}', flush=True)
    identical = sum(not record['odd'] for record in done)
    by_command = {name: sum(record['command'] == name for record in done) for name in COMMANDS}
    print(f'seed {args.seed}; kills of each command: {by_command}')
    print(json.dumps(dict(kills=len(done), identical=identical)))
    if not args.out:
        shutil.rmtree(root)


if __name__ == '__main__':
    main()
