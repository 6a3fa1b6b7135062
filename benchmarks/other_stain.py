"""Blood fields under stains that nobody trained on: is a white cell counted once, and a red cell never?

    python benchmarks/other_stain.py [--model BUNDLE] [--segmenter BUNDLE] [--fields 48] [--quick]

Real fields of two laboratories (TXL-PBC and blood_draaslan, MIT), whose white and red cells are boxed, as
they are and recolored on optical density: as under a gray-blue stain, a violet one, a pale one, and one of
random hue a field. The walk is that of `cblc diagnose`: cells are found, judged for a nucleus, framed,
classified and counted. Fields are every eighth of the list, which the shipped classifier's training keeps
for validation; the segmenter has seen part of TXL-PBC in its own colors.

Of each stain: finds, cells named (with a nucleus and no artefact, wherever they lie) and cells counted (of
those, in the counting frame), each divided by the white boxes; the share of white boxes that hold a
named cell, and the named cells that lie in none. It is a recoloring, no other microscope. The last line is
JSON: for each stain named_per_white, counted_per_white, white_found, in_none.
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

STAINS = {  # weights of the optical density's channels toward one hue, how far toward it, and how dark
    'as it is': ((1., 1., 1.), 0., 1.),
    'gray-blue': ((1.25, 1.0, .75), .8, 1.),
    'violet': ((.9, 1.3, .8), .8, 1.1),
    'pale': ((1., 1., 1.), 0., .6),
    'random': ('random', .8, 1.),
}


def recolored(image, stain, rng):
    "Draw the optical density of a picture toward one hue"
    from cblc.cells.stain import toward_hue
    hue, strength, darkness = STAINS[stain]
    if isinstance(hue, str):
        hue = rng.dirichlet([4., 4., 4.])*3
    return toward_hue(image, hue, strength, darkness)


def read_fields(most):
    "List the fields that were kept for validation: pairs of path and boxes"
    from cblc.sources.real_cells import read_field_boxes
    fields = list(read_field_boxes().groupby('path'))[::8]
    chosen = np.unique(np.linspace(0, len(fields) - 1, min(most, len(fields))).astype(int))
    return [fields[i] for i in chosen]


def write_stained(fields, stain, folder):
    "Write the recolored fields: an images table, one center a laboratory"
    from PIL import Image

    from cblc.core.images import read_image
    rng, rows = np.random.default_rng(0), []
    for number, (path, _) in enumerate(fields):
        target = Path(folder)/f'{number:03}.png'
        Image.fromarray(recolored(read_image(path), stain, rng)).save(target)
        rows.append(dict(image_id=f'{number:03}', path=target, patient_id='', center=Path(path).parts[-3]))
    return pd.DataFrame(rows)


def walk(images, classifier, segmenter):
    "Find, frame, name and count as `cblc diagnose` does: a cells table"
    from cblc.hospital.centers import classify_images
    cells, _, _ = classify_images(images, segmenter, classifier, adapt=True, progress=False)
    return cells


def score(cells, fields):
    "Compare the named cells with the boxes of white cells"
    is_named = cells.has_nucleus.astype(bool) & (cells.category != 'artefact')
    n_white, n_hit, n_in_none = 0, 0, 0
    for number, (_, boxes) in enumerate(fields):
        white = boxes[boxes.kind == 'white'][['x0', 'y0', 'x1', 'y1']].to_numpy()
        own = cells[is_named & (cells.image_id == f'{number:03}')]
        x, y = (np.array([getattr(g.centroid, axis) for g in own.polygon]) for axis in 'xy')
        holds = np.array([(x > x0) & (x < x1) & (y > y0) & (y < y1) for x0, y0, x1, y1 in white])
        holds = holds.reshape(len(white), len(own))
        n_white, n_hit = n_white + len(white), n_hit + int(holds.any(1).sum())
        n_in_none += int((~holds.any(0)).sum())
    return dict(
        white=n_white, finds=len(cells), named=int(is_named.sum()), counted=int(cells.counted.sum()),
        named_per_white=round(float(is_named.sum())/n_white, 3),
        counted_per_white=round(float(cells.counted.sum())/n_white, 3),
        white_found=round(n_hit/n_white, 3), in_none=n_in_none)


def main():
    "Walk the fields under each stain and print the table"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--model', help='a classifier bundle; the shipped one by default')
    parser.add_argument('--segmenter', help='a segmenter bundle; the shipped one by default')
    parser.add_argument('--fields', type=int, default=48)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    from cblc.classifier import Classifier
    from cblc.core.bundle import read_bundle, shipped
    from cblc.segmentation import Segmenter
    classifier = Classifier.load(read_bundle(arguments.model or shipped('classifier'), 'classifier'))
    segmenter = Segmenter.load(arguments.segmenter)
    fields, scores = read_fields(6 if arguments.quick else arguments.fields), {}
    for stain in STAINS:
        with tempfile.TemporaryDirectory() as folder:
            scores[stain] = score(walk(write_stained(fields, stain, folder), classifier, segmenter), fields)
        print(f'{stain:10} {json.dumps(scores[stain])}', flush=True)
    print(f'{len(fields)} fields; random hues from seed 0')
    keys = ('named_per_white', 'counted_per_white', 'white_found', 'in_none')
    print(json.dumps({stain: {key: own[key] for key in keys} for stain, own in scores.items()}))


if __name__ == '__main__':
    main()
