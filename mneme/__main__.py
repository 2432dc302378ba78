"""`python -m mneme` is `mneme`."""

import os
import sys

_ours = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir))
if not sys.flags.safe_path and os.path.realpath(sys.path[0] or os.curdir) != _ours:
    del sys.path[0]  # the present folder, which holds no code of ours and may hold a stranger's

from mneme.cli import main  # noqa: E402

sys.exit(main())
