"""How long until something happens: the help, the imports, the first field's cells.

    python benchmarks/startup.py [--rounds 5] [--quick]

Each is a fresh process, medians over rounds; beside the seconds stand those of the processor, which a busy
machine does not stretch.

- help_s: `cblc --help`;
- import_s: what `cblc diagnose` imports before it looks at a picture (PyTorch is not among it);
- first_field_s: from the start of a process to the classified cells of one field of 2040 x 1536 px: imports,
  both networks loaded and compiled, the picture read, its quality judged, its cells found and named;
- report_s: `cblc diagnose` of that field, to the written report;
- import_share: import_s over first_field_s, both of the processor.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from PIL import Image

IMPORTS = '''
from cblc.cells.nucleus import has_nucleus
from cblc.cells.quality import quality_warnings
from cblc.hospital.centers import classify_images
from cblc.learn.prediction import load_classifier
from cblc.segmentation import Segmenter
'''
FIELD = IMPORTS + '''
import sys
import pandas as pd
from cblc.core.images import keep_pictures
images = pd.DataFrame(dict(image_id=['a'], path=[sys.argv[1]], patient_id='p', center=''))
with keep_pictures():
    cells, crops, problems = classify_images(images, Segmenter.load(), load_classifier(), progress=False)
    doubts = quality_warnings(images, cells)
assert len(cells) and not problems
assert 'torch' not in sys.modules
'''


def a_field(folder):
    "Take a real field where there is one, else draw one: its path"
    default = Path(__file__).resolve().parents[2]/'shared/data'
    data = Path(os.environ.get('CBLC_DATA', default))
    paths = sorted((data/'segpc_marrow/fullres/images').glob('*.jpg'))
    if paths:
        return paths[0]
    from cblc.sources.synthetic import CENTERS, MARROW, draw_field
    drawn = draw_field(MARROW, CENTERS['center5'], size=768, n_cells=22, seed=0, um_per_px=.13).image
    Image.fromarray(cv2.resize(drawn, (2040, 1536))).save(folder/'field.jpg', quality=90)
    return folder/'field.jpg'


def timed(command):
    "Run a command: its seconds, and the processor's"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(field, folder):
    "List what is timed"
    python = [sys.executable, '-c']
    cblc = [*python, 'from cblc.cli import main; main()']
    return dict(
        help=[*cblc, '--help'], import_=[*python, IMPORTS], first_field=[*python, FIELD, str(field)],
        report=[*cblc, 'diagnose', str(field), '--out', str(folder/'out'), '--force'])


def main():
    "Measure and print"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        listed = commands(a_field(Path(folder)), Path(folder))
        taken = {name: [] for name in listed}
        for _ in range(rounds):
            for name, command in listed.items():
                taken[name].append(timed(command))
        for name, values in taken.items():
            wall, processor = (statistics.median(column) for column in zip(*values))
            name = name.rstrip('_')
            print(f'{name}: {wall:.2f} s, of the processor {processor:.2f} s')
            figures |= {f'{name}_s': round(wall, 2), f'{name}_processor_s': round(processor, 2)}
    share = figures['import_processor_s']/figures['first_field_processor_s']
    print(json.dumps(figures | dict(import_share=round(share, 2), rounds=rounds)))


if __name__ == '__main__':
    main()
