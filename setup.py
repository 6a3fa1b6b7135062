"""Builds cblc from settings.ini, and puts the center notebook where an installed package finds it."""
import configparser, shlex, shutil
from pathlib import Path
from setuptools import setup, find_packages
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = configparser.ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf8')
cfg = ini['DEFAULT']

class BuildWithNotebook(build_py):
    "Copy nbs/05_external.ipynb into the built package: `cblc external` runs it with papermill."
    def run(self):
        super().run()
        if not self.editable_mode:
            to = Path(self.build_lib)/'cblc'/'notebooks'
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(here/'nbs'/'05_external.ipynb', to)

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'], author=cfg['author'],
      license='AGPL-3.0-only', url=cfg['git_url'], long_description=(here/'README.md').read_text(encoding='utf8'), long_description_content_type='text/markdown',
      packages=find_packages(include=['cblc', 'cblc.*']), package_data={'cblc': ['assets/**/*']}, cmdclass={'build_py': BuildWithNotebook},
      python_requires='>=' + cfg['min_python'], install_requires=shlex.split(cfg['requirements']), extras_require={'dev': shlex.split(cfg['dev_requirements']), 'pretrained': shlex.split(cfg['pretrained_requirements']),
                      **{name: shlex.split(cfg[f'{name}_requirements']) for name in ('ray', 'remote', 'why', 'widget')}},
      entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{cfg["lib_name"]}=cblc._modidx:d']}, zip_safe=False,
      classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Natural Language :: English',
                   *[f'Programming Language :: Python :: 3.{v}' for v in (10, 11, 12)]])
