"""Does training with cblc cost more time than a bare PyTorch loop?

    python benchmarks/throughput.py [--size 64] [--batch 32] [--quick]

Both train EfficientNet-B0 (timm) with AdamW on the same random crops, flipped and turned, cross entropy, channels-last, on the same
threads: once as cblc does it (fastai's loop with its judge, schedule, gradient clipping, curve, best weights and checkpoint), once as
the shortest loop that a person would write, with the same number of validation passes. They take turns, and the medians over the
rounds are compared. The ratio is cblc's crops a second over the bare loop's: 0.9 or more is wanted.
"""
import argparse, json, statistics, tempfile, time
import numpy as np, timm, torch
from cblc.learn.losses import LeafLoss
from cblc.learn.network import CellNet, blank_head
from cblc.learn.settings import fit_settings
from cblc.learn.stages import StageCells
from cblc.learn.training import fit_device, fit_stage

def bare_net(a): return timm.create_model('efficientnet_b0', num_classes=5).to(a.device, memory_format=torch.channels_last)

def bare_epochs(a, crops, labels):
    "Train a network with the shortest loop that does the same work; seconds."
    torch.manual_seed(0); net = bare_net(a); opt = torch.optim.AdamW(net.parameters(), lr=2e-3, foreach=True)
    loss = torch.nn.CrossEntropyLoss()
    as_x = lambda i: ((torch.from_numpy(crops[i]).to(a.device).permute(0, 3, 1, 2).float() - 200)/40).contiguous(memory_format=torch.channels_last)
    y, rng, start = torch.from_numpy(labels).to(a.device), np.random.default_rng(0), time.perf_counter()
    for _ in range(a.epochs):
        net.train()
        for i in np.array_split(rng.permutation(len(crops)), len(crops)//a.batch):
            x = as_x(i)
            if rng.random() < .5: x = x.flip(3)
            if rng.random() < .5: x = x.transpose(2, 3).contiguous(memory_format=torch.channels_last)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=a.bf16): l = loss(net(x).float(), y[i])
            l.backward(); torch.nn.utils.clip_grad_norm_(net.parameters(), 5.); opt.step(); opt.zero_grad()
        net.eval()
        with torch.no_grad(), torch.autocast(a.device, torch.bfloat16, enabled=a.bf16):
            seen = [net(as_x(i)).argmax(1) for i in np.array_split(np.arange(len(crops)//8), -(-(len(crops)//8)//a.batch))]
    torch.cat(seen).cpu()
    return time.perf_counter() - start

def our_epochs(a, crops, labels):
    "Train the same network with `fit_stage`; seconds."
    torch.manual_seed(0)
    s = fit_settings(recipe='plain', size=a.size, batch=a.batch, epochs=a.epochs, device=a.device, pretrained=False,
                    precision='bf16' if a.bf16 else 'f32')
    net = blank_head(CellNet(bare_net(a), [200]*3, [40]*3, np.ones(5))); ticks = np.eye(5, dtype=bool)[labels]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit_stage(net, StageCells(crops, ticks, None), StageCells(crops[:len(crops)//8], ticks[:len(crops)//8], None), s, LeafLoss(np.ones(5)/5), folder=folder)
        return time.perf_counter() - start

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--size', type=int, default=64); ap.add_argument('--batch', type=int, default=32)
    ap.add_argument('--cells', type=int, default=1280)
    ap.add_argument('--epochs', type=int, default=2); ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--threads', type=int); ap.add_argument('--device', default='auto')
    ap.add_argument('--quick', action='store_true')
    a = ap.parse_args(); a.device, a.bf16 = fit_device(a.device)
    if a.quick: a.cells, a.epochs, a.rounds = 128, 1, 1
    if a.threads: torch.set_num_threads(a.threads)
    rng = np.random.default_rng(0)
    crops, labels = rng.integers(256, size=(a.cells, a.size, a.size, 3), dtype=np.uint8), rng.integers(5, size=a.cells)
    where = f'{torch.get_num_threads()} threads' if a.device == 'cpu' else torch.cuda.get_device_name()
    print(f'{a.cells} crops of {a.size} px, batch {a.batch}, {a.epochs} epochs, {a.rounds} rounds, {where}, {"bf16" if a.bf16 else "f32"}')
    for warm in (bare_epochs, our_epochs): warm(argparse.Namespace(**vars(a) | dict(epochs=1)), crops[:2*a.batch], labels[:2*a.batch])
    speed = {k: [] for k in ('bare', 'cblc')}
    for r in range(a.rounds):
        for k, f in (('bare', bare_epochs), ('cblc', our_epochs))[::1 if r % 2 else -1]:
            speed[k].append(a.cells*a.epochs/f(a, crops, labels))
        print(f'round {r+1}: bare {speed["bare"][-1]:.0f}, cblc {speed["cblc"][-1]:.0f} crops/s', flush=True)
    m = {k: statistics.median(v) for k, v in speed.items()}; ratios = [c/b for b, c in zip(speed['bare'], speed['cblc'])]
    print(json.dumps(dict(ratio=round(m['cblc']/m['bare'], 3), ratio_min=round(min(ratios), 3), ratio_max=round(max(ratios), 3), **{f'{k}_crops_per_s': round(v, 1) for k, v in m.items()}, rounds=a.rounds, device=where)))
