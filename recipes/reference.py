"""Write the range of CBLC in drawn marrows without leukemia, which pages show where no cohort is given.

    python recipes/reference.py

Takes a second, and gives the same file each time; nbs/ratio/14_reference.ipynb tests that it does.
"""
from pathlib import Path

import cblc
from cblc.core.run import write_json
from cblc.ratio.reference import drawn_reference

if __name__ == '__main__':
    reference = drawn_reference()
    write_json(Path(cblc.__file__).parent / 'assets' / 'reference.json', reference.to_json(), indent=2)
    print(f'{100*reference.low:.1f} to {100*reference.high:.1f} %, median {100*reference.median:.1f} %, '
          f'n={reference.n}')
