"""Memory: does it stay flat with the number of fields, and at any size of a picture or slide?

    python benchmarks/memory.py            40 and 400 fields; 30,000 x 30,000 px; 100,000 x 80,000 px
    python benchmarks/memory.py --quick    10 and 40 fields; 6,000 x 6,000 px; 20,000 x 16,000 px

Every measurement is a process of its own that runs `cblc.diagnose.diagnose` with the models that ship; the
figure is the most memory that process ever held (`ru_maxrss`, the libraries among it).
`memory_ratio`: 400 drawn fields of 1,024 x 768 px against 40 (bar 1.2).
`huge_image_gib`: a TIFF of tiles, one level, in which drawn fields lie on glass (bar 2.5 GiB).
`slide_gib`, `slide_seconds`: a pyramid of which 3 % is marrow, the rest glass (sparse, bar 2.5 GiB); 500
cells are counted in random fields (bar 180 s, wall clock, the start of the program and its imports among it).
The last line is JSON.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from cblc.sources.synthetic import CENTERS, MARROW, draw_field

GLASS = (238, 233, 238)
TILE = 512


def draw_fields(folder, n):
    """Write n fields of 1,024 x 768 px: drawn ones, each in eight ways, so that none shows another's cells"""
    folder.mkdir(parents=True)
    for number in range(n):
        seed, way = divmod(number, 8)
        if way == 0:
            drawn = draw_field(MARROW, CENTERS['center4'], size=1024, seed=seed).image[:768]
        image = np.rot90(drawn[:, ::-1] if way & 4 else drawn, way & 3)
        Image.fromarray(np.ascontiguousarray(image)).save(folder/f'{number:03}.jpg', quality=92)


def marrow_tiles():
    """Draw a field of marrow as tiles: (row, column) -> pixels"""
    field = draw_field(MARROW, CENTERS['center4'], size=2048, seed=3, um_per_px=.2).image
    n = len(field)//TILE
    return {(y, x): field[y*TILE:(y + 1)*TILE, x*TILE:(x + 1)*TILE] for y in range(n) for x in range(n)}, n


def paste(tile, field, top, left):
    """Lay a field into a tile, as far as it reaches there"""
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + len(field), TILE), min(left + len(field), TILE)
    tile[y0:y1, x0:x1] = field[y0 - top:y1 - top, x0 - left:x1 - left]


def tiles_of(width, height, step, marrow, share, seed=0):
    """Give the tiles of one level, row by row: glass, and marrow in random places of 2,048 px"""
    import cv2
    fields, n = marrow
    n_across, n_down = -(-width//(TILE*n)), -(-height//(TILE*n))
    is_marrow = np.random.default_rng(seed).random((n_down, n_across)) < share
    glass = np.full((TILE, TILE, 3), GLASS, np.uint8)
    whole = np.concatenate([np.concatenate([fields[y, x] for x in range(n)], 1) for y in range(n)], 0)
    small = cv2.resize(whole, (len(whole)//step,)*2, interpolation=cv2.INTER_AREA)
    side = len(small)
    for top in range(0, -(-height//step), TILE):
        for left in range(0, -(-width//step), TILE):
            tile = glass.copy()
            for row in range(top//side, min((top + TILE - 1)//side + 1, n_down)):
                for column in range(left//side, min((left + TILE - 1)//side + 1, n_across)):
                    if is_marrow[row, column]:
                        paste(tile, small, row*side - top, column*side - left)
            yield tile


def write_slide(path, width, height, steps, share):
    """Write a TIFF of tiles with one level a step"""
    marrow = marrow_tiles()
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for step in steps:
            shape = (-(-height//step), -(-width//step), 3)
            tiles = tiles_of(width, height, step, marrow, share)
            tiff.write(tiles, shape=shape, dtype=np.uint8, photometric='rgb', tile=(TILE, TILE),
                       compression='zlib', compressionargs=dict(level=1), subfiletype=int(step > 1),
                       resolution=(1e4/.2/step,)*2, resolutionunit='CENTIMETER')
    return path


def run_apart(inputs, out):
    """Diagnose in a process of its own: cells, GiB, seconds"""
    begin = time.time()
    words = [sys.executable, __file__, '--measure', str(out), *map(str, inputs)]
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(answer.stderr[-2000:])
    n_cells, gib = json.loads(answer.stdout.splitlines()[-1])
    return n_cells, round(gib, 2), round(time.time() - begin, 1)


def measure(out, inputs):
    """Diagnose, and print the cells counted and the most memory held"""
    from cblc.diagnose import diagnose
    summary = diagnose(inputs, out, say=len, progress=False)
    print(json.dumps([summary['n_cells'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20]))


def show(what, answer):
    """Print one row of the table"""
    n_cells, gib, seconds = answer
    print(f'{what:<36} {n_cells:>6} cells {gib:>7.2f} GiB {seconds:>7.0f} s', flush=True)


def main():
    """Run what was asked for, and print a table and one line of JSON"""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='smaller')
    parser.add_argument('--only', choices=['fields', 'image', 'slide'])
    parser.add_argument('--measure', nargs='+', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], args.measure[1:])
        return
    few, many, side, slide = 40, 400, 30_000, (100_000, 80_000)
    if args.quick:
        few, many, side, slide = 10, 40, 6000, (20_000, 16_000)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.only in (None, 'slide'):
            path = write_slide(folder/'slide.tif', *slide, (1, 4, 16, 64), .1 if args.quick else .03)
            answer = run_apart([path], folder/'o1')
            show(f'slide {slide[0]:,} x {slide[1]:,} px', answer)
            figures |= dict(zip(('slide_cells', 'slide_gib', 'slide_seconds'), answer))
        if args.only in (None, 'image'):
            answer = run_apart([write_slide(folder/'huge.tif', side, side, (1,), .3)], folder/'o2')
            show(f'picture {side:,} x {side:,} px', answer)
            figures |= dict(zip(('huge_image_cells', 'huge_image_gib', 'huge_image_seconds'), answer))
        if args.only in (None, 'fields'):
            peaks = []
            for n in (few, many):
                draw_fields(folder/f'{n} fields', n)
                answer = run_apart([folder/f'{n} fields'], folder/f'o {n}')
                show(f'{n} fields', answer)
                peaks.append(answer[1])
            figures |= dict(memory_ratio=round(peaks[1]/peaks[0], 3), n_fields=[few, many])
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
