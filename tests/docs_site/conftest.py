"""The scripts of the site are imported as MkDocs imports them: by the names of files in docs/scripts."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "docs" / "scripts"

sys.path.insert(0, str(SCRIPTS))
