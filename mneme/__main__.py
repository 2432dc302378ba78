"""`python -m mneme` is `mneme`."""

import os
import sys

if not os.path.samefile(sys.path[0] or ".", os.path.join(os.path.dirname(__file__), os.pardir)):
    del sys.path[0]  # the present folder, which holds no code of ours and may hold a stranger's

from mneme.cli import main

sys.exit(main())
