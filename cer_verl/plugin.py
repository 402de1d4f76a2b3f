"""What verl imports, by entry point or by VERL_USE_EXTERNAL_MODULES=cer_verl.plugin; importing it registers both.

Out: the trainer `cer_sync` in verl's registry, the fused head in the place of verl's. An untested version of verl
is refused in one line. verl swallows what an entry point raises, so the line is logged as well: without it the user
would read `Unknown trainer 'cer_sync'` and no more.
"""

import logging
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

SUPPORTED_VERL = SpecifierSet(">=0.9.1,<0.9.2")  # methods without a promise of stability are overridden


def check_verl_version(installed: str) -> None:
    """Raises ImportError unless `installed` is a version of verl that this package was tested with."""
    if not SUPPORTED_VERL.contains(installed, prereleases=True):
        raise ImportError(f"cer_verl works with verl {SUPPORTED_VERL}, found {installed}: pip install verl==0.9.1")


try:
    check_verl_version(version("verl"))
    from cer_verl import cer_trainer, fused_head

    fused_head.install()
except Exception as error:
    logging.getLogger(__name__).error("the CER plug-in for verl was not loaded: %s: %s", type(error).__name__, error)
    raise

__all__ = ["cer_trainer", "check_verl_version", "fused_head"]
