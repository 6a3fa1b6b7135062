"""Does training with cblc cost more time than a bare PyTorch loop?

    python benchmarks/training_speed.py [--size 64] [--batch 32] [--quick]

Both train EfficientNet-B0 (timm) with AdamW on the same random crops, flipped and turned, cross entropy,
channels-last, on the same threads: once as cblc does it (fastai's loop with its judge, schedule, gradient
clipping, curve, best weights and checkpoint), once as the shortest loop that a person would write, with the
same number of validation passes. They take turns, and the medians over the rounds are compared. The ratio is
cblc's crops a second over the bare loop's: 0.9 or more is wanted.
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

N_CLASSES = 5
MEAN, SPREAD = 200, 40  # of the colors, as the networks take them


def bare_network(device):
    "Make the network that both train"
    net = timm.create_model('efficientnet_b0', num_classes=N_CLASSES)
    return net.to(device, memory_format=torch.channels_last)


def to_batch(crops, device):
    "Bring crops to the device as the bare loop's network takes them"
    batch = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
    return ((batch - MEAN)/SPREAD).contiguous(memory_format=torch.channels_last)


def bare_epoch(net, optimizer, loss, crops, classes, rng, arguments):
    "Train for one epoch, with random flips and turns"
    net.train()
    for rows in np.array_split(rng.permutation(len(crops)), len(crops)//arguments.batch):
        batch = to_batch(crops[rows], arguments.device)
        if rng.random() < .5:
            batch = batch.flip(3)
        if rng.random() < .5:
            batch = batch.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
            value = loss(net(batch).float(), classes[rows])
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.)
        optimizer.step()
        optimizer.zero_grad()


def bare_validation(net, crops, arguments):
    "Classify the validation crops"
    net.eval()
    parts = np.array_split(np.arange(len(crops)), -(-len(crops)//arguments.batch))
    with torch.no_grad(), torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
        return torch.cat([net(to_batch(crops[rows], arguments.device)).argmax(1) for rows in parts]).cpu()


def bare_seconds(arguments, crops, labels):
    "Time the shortest loop that does the work"
    torch.manual_seed(0)
    net = bare_network(arguments.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, foreach=True)
    loss, rng = torch.nn.CrossEntropyLoss(), np.random.default_rng(0)
    classes = torch.from_numpy(labels).to(arguments.device)
    start = time.perf_counter()
    for _ in range(arguments.epochs):
        bare_epoch(net, optimizer, loss, crops, classes, rng, arguments)
        bare_validation(net, crops[:len(crops)//8], arguments)
    return time.perf_counter() - start


def cblc_seconds(arguments, crops, labels):
    "Time the same training by `fit_stage`"
    torch.manual_seed(0)
    settings = fit_settings(
        recipe='plain', size=arguments.size, batch=arguments.batch, epochs=arguments.epochs,
        device=arguments.device, pretrained=False, precision='bf16' if arguments.bf16 else 'f32',
    )
    body = bare_network(arguments.device)
    net = blank_head(CellNet(body, [MEAN]*3, [SPREAD]*3, np.ones(N_CLASSES)))
    allowed, n_valid = np.eye(N_CLASSES, dtype=bool)[labels], len(crops)//8
    train = StageCells(crops, allowed, None)
    valid = StageCells(crops[:n_valid], allowed[:n_valid], None)
    loss = LeafLoss(np.ones(N_CLASSES)/N_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit_stage(net, train, valid, settings, loss, folder=folder)
        return time.perf_counter() - start


PEERS = dict(bare=bare_seconds, cblc=cblc_seconds)


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for name, default in dict(size=64, batch=32, cells=1280, epochs=2, rounds=5).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--threads', type=int)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    arguments.device, arguments.bf16 = fit_device(arguments.device)
    if arguments.quick:
        arguments.cells, arguments.epochs, arguments.rounds = 128, 1, 1
    return arguments


def measure(arguments, crops, labels):
    "Let both take turns; crops a second of every round"
    short = argparse.Namespace(**vars(arguments) | dict(epochs=1))
    n_warm = 2*arguments.batch
    for seconds in PEERS.values():
        seconds(short, crops[:n_warm], labels[:n_warm])
    speed = {name: [] for name in PEERS}
    for number in range(arguments.rounds):
        order = list(PEERS)[::1 if number % 2 else -1]
        for name in order:
            seconds = PEERS[name](arguments, crops, labels)
            speed[name].append(arguments.cells*arguments.epochs/seconds)
        latest = ', '.join(f'{name} {values[-1]:.0f}' for name, values in speed.items())
        print(f'round {number + 1}: {latest} crops/s', flush=True)
    return speed


def main():
    "Measure, and print the ratio"
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    shape = arguments.cells, arguments.size, arguments.size, 3
    crops = rng.integers(256, size=shape, dtype=np.uint8)
    labels = rng.integers(N_CLASSES, size=arguments.cells)
    is_cpu = arguments.device == 'cpu'
    where = f'{torch.get_num_threads()} threads' if is_cpu else torch.cuda.get_device_name()
    print(f'{arguments.cells} crops of {arguments.size} px, batch {arguments.batch}, '
          f'{arguments.epochs} epochs, {arguments.rounds} rounds, {where}, '
          f'{"bf16" if arguments.bf16 else "f32"}')
    speed = measure(arguments, crops, labels)
    median = {name: statistics.median(values) for name, values in speed.items()}
    ratios = [ours/bare for bare, ours in zip(speed['bare'], speed['cblc'])]
    print(json.dumps(dict(
        ratio=round(median['cblc']/median['bare'], 3), ratio_min=round(min(ratios), 3),
        ratio_max=round(max(ratios), 3), bare_crops_per_s=round(median['bare'], 1),
        cblc_crops_per_s=round(median['cblc'], 1), rounds=arguments.rounds, device=where,
    )))


if __name__ == '__main__':
    main()
