"""Trains the diffusion classifiers that ship with cblc, on public blood cells (PBC, CC BY 4.0): one of ten fine classes, one that never saw erythroblasts.

    python recipes/diffusion.py --out cblc/assets/diffusion
    python recipes/diffusion.py --without ERB --out cblc/assets/diffusion_no_erb
                                [--steps 3600] [--device auto] [--threads N] [--run DIR] [--quick]

PBC names no patients, so its split is by file-name hash: 70 % train, 15 % valid, 15 % test. The looks, the usual errors and the
temperature come from the validation part; the test part is left to benchmarks/diffusion.py. With --run, a training that was stopped
goes on by the same command.
"""
import argparse
from dataclasses import asdict, replace
from cblc.cells.crops import SIZED
from cblc.diffusion.classifier import DiffusionSettings, fit_diffusion
from cblc.core.engine import cores
from cblc.sources.public import FINE_CLASSES, split_by_name, public_root, read_pbc
from cblc.cells.singles import read_singles

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', required=True); ap.add_argument('--without', choices=FINE_CLASSES)
    ap.add_argument('--steps', type=int, default=DiffusionSettings.steps); ap.add_argument('--device', default='auto')
    ap.add_argument('--threads', type=int, default=cores()); ap.add_argument('--run')
    ap.add_argument('--quick', action='store_true'); a = ap.parse_args()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    s = DiffusionSettings(steps=a.steps, precision='bf16', device=a.device, threads=a.threads)
    cells = read_pbc()[0]; cells = cells[cells.label.isin(FINE_CLASSES) & (cells.label != a.without)].reset_index(drop=True)
    if a.quick:
        cells, s = cells.groupby('label').head(24).reset_index(drop=True), replace(s, steps=20, size=32, widths=(32, 48), candidates=(4, 2), bank_cells=40)
    crop = replace(SIZED, size=s.size)
    crops, rows, _, _ = read_singles(cells.path.tolist(), crop, cells.center.tolist()); cells = cells.iloc[rows]
    part = cells.image_id.map(split_by_name).to_numpy(); take = lambda k: (crops[part == k], cells.label[part == k].tolist())
    print({k: int((part == k).sum()) for k in ('train', 'valid')}, flush=True)
    model = fit_diffusion(*take('train'), settings=s, vocabulary=None, valid=(*take('valid'), None), out=a.run)
    print(*model.notes, {k: round(v, 4) for k, v in model.metrics.items()}, sep='\n')
    model.save(a.out, f'PBC (pbc128, CC BY 4.0; Acevedo et al. 2020): {int((part == "train").sum())} pictures of {len(model.leaves.names)} classes' + f', without {a.without}'*bool(a.without),
               'python recipes/diffusion.py' + f' --without {a.without}'*bool(a.without) + f' --steps {a.steps}', licence='CC BY 4.0 (the pictures)', crop=asdict(crop),
               warnings=['blood cells of one laboratory; PBC names no patients, so training and validation may share them'])
