"""Does training with cblc cost more time than a bare PyTorch loop?

    python benchmarks/throughput.py [--size 64] [--batch 32] [--quick]

Both train EfficientNet-B0 (timm) with AdamW on the same random crops, flipped and turned, cross entropy,
channels-last, on the same threads: once as cblc does it (fastai's loop with its judge, schedule, gradient
clipping, curve, best weights and checkpoint), once as the shortest loop that a person would write, with the
same number of validation passes. They take turns, and the medians over the rounds are compared. The ratio
is cblc's crops a second over the bare loop's: 0.9 or more is wanted.
"""
import argparse
import json
import statistics
import tempfile
import time
import numpy as np
import timm
import torch
from cblc.learn.losses import LeafLoss
from cblc.learn.network import CellNet, blank_head
from cblc.learn.settings import fit_settings
from cblc.learn.stages import StageCells
from cblc.learn.training import fit_device, fit_stage

CHANNELS_LAST = torch.channels_last


def bare_net(device):
    "EfficientNet-B0 from random weights"
    return timm.create_model('efficientnet_b0', num_classes=5).to(device, memory_format=CHANNELS_LAST)


def as_batch(crops, device):
    "Crops as a normalized batch"
    batch = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
    return ((batch - 200)/40).contiguous(memory_format=CHANNELS_LAST)


def flipped(batch, rng):
    "A batch flipped or transposed as a whole"
    if rng.random() < .5:
        batch = batch.flip(3)
    if rng.random() < .5:
        batch = batch.transpose(2, 3).contiguous(memory_format=CHANNELS_LAST)
    return batch


def bare_seconds(args, crops, labels):
    "Train a network with the shortest loop that does the same work"
    torch.manual_seed(0)
    net, cross_entropy = bare_net(args.device), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, foreach=True)
    truth, rng, n_valid = torch.from_numpy(labels).to(args.device), np.random.default_rng(0), len(crops)//8
    mixed = torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)
    begun = time.perf_counter()
    for _ in range(args.epochs):
        net.train()
        for rows in np.array_split(rng.permutation(len(crops)), len(crops)//args.batch):
            batch = flipped(as_batch(crops[rows], args.device), rng)
            with mixed:
                loss = cross_entropy(net(batch).float(), truth[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
            optimizer.step()
            optimizer.zero_grad()
        net.eval()
        with torch.no_grad(), mixed:
            parts = np.array_split(np.arange(n_valid), -(-n_valid//args.batch))
            named = [net(as_batch(crops[rows], args.device)).argmax(1) for rows in parts]
    torch.cat(named).cpu()
    return time.perf_counter() - begun


def cblc_seconds(args, crops, labels):
    "Train the same network with `fit_stage`"
    torch.manual_seed(0)
    settings = fit_settings(
        'plain', size=args.size, batch=args.batch, epochs=args.epochs, device=args.device, pretrained=False,
        precision='bf16' if args.bf16 else 'f32')
    net = blank_head(CellNet(bare_net(args.device), [200]*3, [40]*3, np.ones(5)))
    train = StageCells(crops, np.eye(5, dtype=bool)[labels], None)
    valid = train.take(np.arange(len(crops)//8))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fit_stage(net, train, valid, settings, LeafLoss(np.ones(5)/5), folder=folder)
        return time.perf_counter() - begun


def race(args, crops, labels):
    "Let both train in turns: crops a second of each round"
    loops, speeds = dict(bare=bare_seconds, cblc=cblc_seconds), dict(bare=[], cblc=[])
    once = argparse.Namespace(**vars(args) | dict(epochs=1))
    for loop in loops.values():
        loop(once, crops[:2*args.batch], labels[:2*args.batch])
    for number in range(1, args.rounds + 1):
        for name in (sorted(loops) if number % 2 else sorted(loops, reverse=True)):
            speeds[name].append(args.cells*args.epochs/loops[name](args, crops, labels))
        last = {name: values[-1] for name, values in speeds.items()}
        print(f'round {number}: bare {last["bare"]:.0f}, cblc {last["cblc"]:.0f} crops/s', flush=True)
    return speeds


def read_arguments():
    "Read the command line"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(size=64, batch=32, cells=1280, epochs=2, rounds=5, threads=None).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    args.device, args.bf16 = fit_device(args.device)
    if args.quick:
        args.cells, args.epochs, args.rounds = 128, 1, 1
    return args


def main():
    "Compare the two loops and print the table"
    args = read_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    crops = rng.integers(256, size=(args.cells, args.size, args.size, 3), dtype=np.uint8)
    labels = rng.integers(5, size=args.cells)
    where = f'{torch.get_num_threads()} threads' if args.device == 'cpu' else torch.cuda.get_device_name()
    print(f'{args.cells} crops of {args.size} px, batch {args.batch}, {args.epochs} epochs, '
          f'{args.rounds} rounds, {where}, {"bf16" if args.bf16 else "f32"}')
    speeds = race(args, crops, labels)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = [cblc/bare for bare, cblc in zip(speeds['bare'], speeds['cblc'])]
    print(json.dumps(dict(
        ratio=round(medians['cblc']/medians['bare'], 3), ratio_min=round(min(ratios), 3),
        ratio_max=round(max(ratios), 3), bare_crops_per_s=round(medians['bare'], 1),
        cblc_crops_per_s=round(medians['cblc'], 1), rounds=args.rounds, device=where)))


if __name__ == '__main__':
    main()
