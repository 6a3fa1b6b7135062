"""Matching the contours of one very large picture: cblc against pycocotools.

    python benchmarks/matching.py [--cells 40000] [--rounds 3] [--quick]

Contours of cells on a jittered grid, 28 corners each, and the same ones moved and resized a little, as a
segmenter finds them. Both sides answer which expert contour each found one belongs to, at IoU 0.5.

- cblc: `match` on the polygons, exact areas, one-to-one with the most pairs;
- pycocotools: both sides encoded (`frPyObjects`) and `iou`, a pixel grid. Its answer is a matrix of all
  pairs, 12.8 GB at 40,000, so it is asked in blocks of 4,000 found contours; of each row the best is
  taken, no assignment made.

The two take turns. vs_pycocotools: its seconds over cblc's, median over rounds. growth_4x: cblc's
seconds for all cells over those for a quarter of them. agreement: share of cblc's pairs whose IoU
differs from that of the pixels by less than 0.03.
"""
import argparse
import json
import statistics
import time

import numpy as np
import shapely
from pycocotools import mask as coco

from cblc.core.engine import cores
from cblc.matching import match

CORNERS, PITCH = 28, 52.  # of a contour; px between the grid's cells
BLOCK = 4000              # found contours that pycocotools compares at a time


def rings(middles, radii, phases):
    "Give the corners of cells, n x 28 x 2"
    angle = np.linspace(0, 2*np.pi, CORNERS, endpoint=False)
    shape = 1 + .12*np.cos(2*angle + phases[:, :1]) + .05*np.cos(5*angle + phases[:, 1:])
    radius = radii[:, None]*shape
    return middles[:, None] + np.stack([radius*np.cos(angle), radius*np.sin(angle)], 2)


def draw_cells(n, seed=0):
    "Draw expert contours and those that a segmenter finds, and the side of the picture"
    rng, across = np.random.default_rng(seed), int(np.ceil(np.sqrt(n)))
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(across)), 2).reshape(-1, 2)[:n]
    middles = PITCH*grid + 40 + rng.uniform(-9, 9, (n, 2))
    radii, phases = rng.uniform(17, 26, n), rng.uniform(0, 2*np.pi, (n, 2))
    found = rings(middles + rng.normal(0, 3, (n, 2)), radii*rng.uniform(.9, 1.1, n), phases)
    order = rng.permutation(n)
    return rings(middles, radii, phases), found[order], int(PITCH*across + 80)


def by_cblc(expert, found, side):
    "Match by cblc: pairs and their IoU"
    matched = match(shapely.polygons(expert), shapely.polygons(found))
    return matched.pairs, matched.ious


def encoded(corners, side):
    "Encode contours as pycocotools does"
    return coco.frPyObjects([[float(v) for v in ring.ravel()] for ring in corners], side, side)


def by_pycocotools(expert, found, side):
    "Find the best expert of each found contour: pairs and their IoU"
    truth, pairs, ious = encoded(expert, side), [], []
    for start in range(0, len(found), BLOCK):
        shared = coco.iou(encoded(found[start:start + BLOCK], side), truth, [0]*len(truth))
        best = shared.argmax(1)
        value = shared[np.arange(len(best)), best]
        rows = np.flatnonzero(value >= .5)
        pairs.append(np.stack([best[rows], start + rows], 1))
        ious.append(value[rows])
    return np.concatenate(pairs), np.concatenate(ious)


def timed(matcher, cells):
    "Time one matching: seconds, its pairs and IoU"
    start = time.perf_counter()
    pairs, ious = matcher(*cells)
    return time.perf_counter() - start, dict(zip(map(tuple, pairs.tolist()), ious))


def agreement(ours, theirs):
    "Give the share of pairs that both have with nearly the same IoU"
    return sum(abs(iou - theirs.get(pair, 9)) < .03 for pair, iou in ours.items())/max(len(ours), 1)


def main():
    "Measure and print"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--cells', type=int, default=40000)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.rounds = 2000, 1
    whole, quarter = draw_cells(arguments.cells), draw_cells(arguments.cells//4)
    timed(by_cblc, quarter)  # warm
    rows = []
    for number in range(arguments.rounds):
        seconds, ours = timed(by_cblc, whole)
        quick = timed(by_cblc, quarter)[0]
        slow, theirs = timed(by_pycocotools, whole)
        rows.append((slow/seconds, seconds/quick, seconds, slow))
        print(f'round {number + 1}: cblc {seconds:.2f} s, {quick:.2f} s for a quarter, '
              f'pycocotools {slow:.2f} s', flush=True)
    ratio, growth, seconds, slow = (statistics.median(values) for values in zip(*rows))
    print(json.dumps(dict(
        vs_pycocotools=round(ratio, 1), growth_4x=round(growth, 2), cblc_s=round(seconds, 2),
        pycocotools_s=round(slow, 2), agreement=round(agreement(ours, theirs), 4), pairs=len(ours),
        cells=arguments.cells, cores=cores(), rounds=arguments.rounds)))


if __name__ == '__main__':
    main()
