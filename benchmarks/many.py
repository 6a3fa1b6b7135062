"""Many patients: the same files by local processes and Ray, also after a worker is killed? At what cost?

    python benchmarks/many.py            1,000 small patients for the overhead, 10 to compare engines
    python benchmarks/many.py --quick    40 and 4

`overhead`: patients of one drawn field each go alternately, in blocks, through a bare loop (the models
opened once, `diagnose` for each) and through the batch's own worker with all that a batch adds (fingerprint,
manifest, moving into place, row, and the table and page at the end). Both run in this process, one after the
other, block by block, so that a busy machine slows both; the figure is the ratio of processor time, less one.
`ray_identical`, `killed_identical`: cells.parquet of every patient, byte for byte, of local processes against
Ray with two workers, and of a batch whose worker (local and Ray) is killed while it works.
The last line is JSON; a figure is null where Ray is not installed or did not start, and says why.
"""
import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from cblc.batch.index import order_rows, write_index
from cblc.batch.jobs import list_jobs
from cblc.batch.walk import BatchPlan, PatientWorker, run_batch
from cblc.core.errors import InputError
from cblc.diagnose import diagnose
from cblc.sources.synthetic import CENTERS, MARROW, draw_field


def draw_patients(folder, n, n_fields=1, size=160):
    """Write n patients' folders, with drawn fields from a few seeds, rolled so that no two are alike"""
    drawn = [draw_field(MARROW, CENTERS['center4'], size=size, seed=seed).image for seed in range(8)]
    for number in range(n):
        own = folder/f'p{number:04}'
        own.mkdir(parents=True)
        for k in range(n_fields):
            image = np.roll(drawn[(number + k) % len(drawn)], number, axis=1)
            Image.fromarray(image).save(own/f'field {k}.png', compress_level=1)


def measure_overhead(folder, n):
    """Compare the batch's own worker with a bare loop, block by block: processor seconds of both"""
    draw_patients(folder/'small', n)
    jobs = list_jobs(folder/'small')
    worker = PatientWorker(BatchPlan(str(folder/'batch')))
    (folder/'batch').mkdir()
    diagnose(jobs[0].inputs, folder/'warm', say=len, models=worker.models, progress=False)
    spent, rows, block = {'loop': 0., 'batch': 0.}, [], max(1, min(20, n//8))
    for number, start in enumerate(range(0, n, block)):
        part = jobs[start:start + block]
        for way in ('loop', 'batch') if number % 2 else ('batch', 'loop'):
            begin = time.process_time()
            for job in part:
                if way == 'loop':
                    diagnose(job.inputs, folder/'loop'/job.name, patient=job.patient_id, say=len,
                             models=worker.models, progress=False)
                else:
                    rows.append(worker(job)['row'])
            spent[way] += time.process_time() - begin
    begin = time.process_time()
    write_index(order_rows(rows), folder/'batch')
    spent['batch'] += time.process_time() - begin
    assert all(not row['problem'] for row in rows), rows
    return spent


def cells_of(out):
    """Read cells.parquet of every patient: name -> bytes"""
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob('*/cells.parquet'))}


def kill_one(names, out, stop, killed):
    """Kill the first worker that is seen at work once a patient is done"""
    me = psutil.Process()
    while not stop.is_set():
        for process in me.children(recursive=True) if cells_of(out) else ():
            try:
                words = ' '.join(process.cmdline())
                if any(name in words for name in names):
                    used = process.cpu_times()
                    if used.user + used.system > 1:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return
            except psutil.Error:
                continue
        time.sleep(.02)


def run_once(ward, out, engine, n_workers=2, kill=()):
    """Run a batch, and kill a worker whose command holds one of `kill`: bytes by patient, workers killed"""
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_one, args=(kill, out, stop, killed), daemon=True)
    if kill:
        killer.start()
    table = run_batch(ward, BatchPlan(str(out)), n_workers, engine, say=len)
    stop.set()
    assert not (table.triage == 'failed').any(), table.problem.tolist()
    return cells_of(out), len(killed)


def compare_engines(folder, n):
    """Run the same patients by both engines, undisturbed and with a killed worker"""
    draw_patients(folder/'ward', n, n_fields=2, size=400)
    local, _ = run_once(folder/'ward', folder/'local', 'local')
    hurt, n_killed = run_once(folder/'ward', folder/'hurt', 'local', kill=('serve_jobs',))
    print(f'local: {len(local)} patients; {n_killed} worker killed, the same files: {hurt == local}')
    figures = dict(n=len(local), local_killed_identical=hurt == local and n_killed == 1)
    try:
        by_ray, _ = run_once(folder/'ward', folder/'ray', 'ray')
        ray_hurt, n_killed = run_once(folder/'ward', folder/'ray hurt', 'ray', kill=('ray::RayWorker',))
    except InputError as error:
        print(f'ray: {error}')
        return figures | dict(ray_identical=None, killed_identical=None, why=str(error))
    print(f'ray: the same files: {by_ray == local}; {n_killed} actor killed: {ray_hurt == local}')
    return figures | dict(ray_identical=by_ray == local, n_ray_killed=n_killed,
                          killed_identical=ray_hurt == local and n_killed == 1 and hurt == local)


def main():
    """Run what was asked for, and print a table and one line of JSON"""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer patients')
    parser.add_argument('--patients', type=int, help='for the overhead')
    parser.add_argument('--only', choices=['overhead', 'engines'])
    args = parser.parse_args()
    n_small, n_compared = (40, 4) if args.quick else (1000, 10)
    n_small, figures = args.patients or n_small, {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.only != 'engines':
            spent = measure_overhead(folder, n_small)
            overhead = spent['batch']/spent['loop'] - 1
            print(f'{n_small} small patients: loop {spent["loop"]:.1f} s, batch {spent["batch"]:.1f} s of '
                  f'processor time, overhead {overhead:.1%} (bar 10 %)')
            figures |= dict(overhead=round(overhead, 4), n_small=n_small)
        if args.only != 'overhead':
            figures |= compare_engines(folder, n_compared)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
