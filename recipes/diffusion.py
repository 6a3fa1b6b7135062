"""Trains the diffusion classifiers that ship with cblc, on public blood cells (PBC, CC BY 4.0).

One knows ten fine classes, one never saw erythroblasts.

    python recipes/diffusion.py --out cblc/assets/diffusion
    python recipes/diffusion.py --without ERB --out cblc/assets/diffusion_no_erb
                                [--steps 3600] [--device auto] [--threads N] [--run DIR] [--quick]

PBC names no patients, so its split is by file-name hash: 70 % train, 15 % valid, 15 % test. The probes, the
usual errors and the temperature come from the validation part; the test part is left to
benchmarks/diffusion.py. With --run, a training that was stopped goes on by the same command.
"""
import argparse
from dataclasses import asdict, replace

from cblc.cells.crops import SIZED
from cblc.cells.singles import read_singles
from cblc.core.engine import cores
from cblc.diffusion.classifier import DiffusionSettings, fit_diffusion
from cblc.sources.public import FINE_CLASSES, public_root, read_pbc, split_by_name

WARNING = 'blood cells of one laboratory; PBC names no patients, so training and validation may share them'
QUICK = dict(steps=20, size=32, widths=(32, 48), candidates=(4, 2), bank_cells=40)


def parse_arguments():
    """Read the command line"""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True)
    parser.add_argument('--without', choices=FINE_CLASSES)
    parser.add_argument('--steps', type=int, default=DiffusionSettings.steps)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--threads', type=int, default=cores())
    parser.add_argument('--run')
    parser.add_argument('--quick', action='store_true')
    return parser.parse_args()


def choose_cells(without, quick):
    """List PBC's pictures of the fine classes, without one of them"""
    cells = read_pbc()[0]
    cells = cells[cells.label.isin(FINE_CLASSES) & (cells.label != without)].reset_index(drop=True)
    return cells.groupby('label').head(24).reset_index(drop=True) if quick else cells


def train(args):
    """Train and save a model"""
    settings = DiffusionSettings(
        steps=args.steps, precision='bf16', device=args.device, threads=args.threads
    )
    if args.quick:
        settings = replace(settings, **QUICK)
    cells, crop = choose_cells(args.without, args.quick), replace(SIZED, size=settings.size)
    crops, rows, _, _ = read_singles(cells.path.tolist(), crop, cells.center.tolist())
    cells = cells.iloc[rows]
    part = cells.image_id.map(split_by_name).to_numpy()
    parts = {
        name: (crops[part == name], cells.label[part == name].tolist()) for name in ('train', 'valid')
    }
    print({name: len(labels) for name, (_, labels) in parts.items()}, flush=True)
    model = fit_diffusion(
        *parts['train'], settings=settings, vocabulary=None, valid=(*parts['valid'], None), out=args.run
    )
    print(*model.notes, {name: round(value, 4) for name, value in model.metrics.items()}, sep='\n')
    left_out = f', without {args.without}' if args.without else ''
    command = f' --without {args.without}' if args.without else ''
    pictures = f'{len(parts["train"][1])} pictures of {len(model.leaves.names)} classes'
    model.save(
        args.out, f'PBC (pbc128, CC BY 4.0; Acevedo et al. 2020): {pictures}{left_out}',
        f'python recipes/diffusion.py{command} --steps {args.steps}',
        licence='CC BY 4.0 (the pictures)', crop=asdict(crop), warnings=[WARNING],
    )


if __name__ == '__main__':
    arguments = parse_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    train(arguments)
